//! Content of the layers' files.

use std::ops::Range;
use std::sync::Arc;

use mica_squashfs::{Inode, ReadError};

use super::layers::is_mark;
use super::{Lower, LowerPart, Res, Store, Wish};
use crate::asker;
use crate::decode::OpenFile;

impl Lower {
    /// The blocks of a file; the lists of the files read last are kept.
    pub(super) fn file(&self, part: LowerPart) -> Res<Arc<OpenFile>> {
        let key = self.ino(part);
        if let Some(file) = self.files.get(key) {
            return Ok(file);
        }
        let inode = self.inode(part.layer, part.node.reference)?;
        self.refuse_metacopy(part, &inode)?;
        let blocks = self.image(part.layer).blocks(&inode);
        let blocks = blocks.map_err(|e| self.fail(part.layer, e))?;
        let file = Arc::new(OpenFile::new(part.layer, inode.reference.0, blocks));
        self.files.put(key, Arc::clone(&file), file.blocks.weight());
        Ok(file)
    }

    /// A file whose content overlayfs left in a layer below looks like zeros: never show those.
    fn refuse_metacopy(&self, part: LowerPart, inode: &Inode) -> Res<()> {
        match self.keys_of(part.layer, inode)?.iter().any(|key| is_mark(&key.name, b"metacopy")) {
            true => {
                let wanted = "file with its own content (it has overlay.metacopy)";
                Err(self.fail(part.layer, ReadError::Kind { number: inode.number, wanted }))
            }
            false => Ok(()),
        }
    }

    /// Whether a file's content can be had: fails if the inode doesn't say where it is.
    pub(crate) fn check_content(&self, part: LowerPart) -> Res<()> {
        self.file(part).map(drop)
    }

    /// Reads from a file: calls `reply` once, with as many bytes as there are, up to `size`.
    pub(crate) fn read<T>(
        &self,
        part: LowerPart,
        offset: u64,
        size: usize,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Res<T> {
        let file = self.file(part)?;
        let end = offset.saturating_add(size as u64).min(file.blocks.size());
        if offset >= end {
            return Ok(reply(&[]));
        }
        let block_size = u64::from(file.blocks.block_size());
        let (first, last) = (offset / block_size, (end - 1) / block_size);
        if file.goes_on(offset, end) {
            self.ahead.ask(&self.decoder, &file, last + 1);
        }
        let within = (offset % block_size) as usize;
        if first == last {
            let to = within + (end - offset) as usize;
            return self.decoder.with_block(
                &file,
                first,
                whole(within, to, block_size),
                |bytes, _| match bytes {
                    Some(bytes) => reply(&bytes[within..to]),
                    None => reply(&vec![0; to - within]),
                },
            );
        }
        let mut out = Vec::with_capacity((end - offset) as usize);
        for index in first..=last {
            let covered = end >= (index + 1) * block_size && (index > first || within == 0);
            self.decoder.with_block(&file, index, covered, |bytes, len| {
                let from = if index == first { within } else { 0 };
                let to = len.min((end - index * block_size) as usize);
                match bytes {
                    Some(bytes) => out.extend_from_slice(&bytes[from..to]),
                    None => out.resize(out.len() + (to - from), 0),
                }
            })?;
        }
        Ok(reply(&out))
    }

    /// Calls `store` with the blocks of a file if it has no more than `limit` bytes, and says how many; `None` if that was not
    /// to be.
    pub(crate) fn hand_over(
        &self,
        part: LowerPart,
        wish: Wish,
        limit: u64,
        store: Store<'_>,
    ) -> Res<Option<u64>> {
        let file = self.file(part)?;
        let (size, count) = (file.blocks.size(), file.blocks.count());
        let is_ready = match wish {
            Wish::Now if size > limit => return Ok(None),
            Wish::Now => true,
            Wish::Decoded => {
                size <= limit && (0..count).all(|index| self.decoder.is_decoded(&file, index))
            }
        };
        if !is_ready {
            self.ahead.ask(&self.decoder, &file, 0);
            return Ok(None);
        }
        for index in 0..count {
            let at = index * u64::from(file.blocks.block_size());
            self.decoder.with_block(&file, index, false, |bytes, _| {
                bytes.into_iter().for_each(|bytes| store(at, bytes));
            })?;
        }
        Ok(Some(size))
    }

    /// Decodes the blocks of which a read will take a part, and calls `store` with the other parts. Those that were decoded
    /// before are left alone.
    pub(crate) fn hand_over_rest(
        &self,
        part: LowerPart,
        range: Range<u64>,
        store: Store<'_>,
    ) -> Res<()> {
        let file = self.file(part)?;
        let (size, block_size) = (file.blocks.size(), u64::from(file.blocks.block_size()));
        if range.start >= size.min(range.end) {
            return Ok(());
        }
        let (first, last) = (range.start / block_size, (range.end.min(size) - 1) / block_size);
        for index in first..=last {
            let at = index * block_size;
            let end = size.min(at + block_size);
            let is_part = range.start > at || range.end < end;
            if !is_part || (self.decoder.is_decoded(&file, index) && size > block_size) {
                continue;
            }
            self.decoder.with_block(&file, index, false, |bytes, len| {
                let Some(bytes) = bytes else { return };
                let before = range.start.saturating_sub(at) as usize;
                let after = len.min((range.end - at) as usize);
                if before > 0 {
                    store(at, &bytes[..before]);
                }
                if after < len {
                    store(at + after as u64, &bytes[after..]);
                }
            })?;
        }
        Ok(())
    }

    /// Calls `sink` with every stored run of a file, in order; holes are left out.
    pub(crate) fn copy<E>(
        &self,
        part: LowerPart,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Res<Result<(), E>> {
        let file = self.file(part)?;
        let mut index = 0;
        while index < file.blocks.count() {
            if asker::gave_up() {
                return Err(self.fail(part.layer, ReadError::Interrupted));
            }
            let next = file.blocks.next_kind(index, false);
            index = match next.map_err(|e| self.fail(part.layer, e))? {
                Ok(stored) => stored,
                Err(so_far) => {
                    index = so_far;
                    continue;
                }
            };
            if index >= file.blocks.count() {
                break;
            }
            let at = index * u64::from(file.blocks.block_size());
            self.ahead.ask(&self.decoder, &file, index + 1);
            let written = self.decoder.with_block(&file, index, true, |bytes, _| match bytes {
                Some(bytes) => sink(at, bytes),
                None => Ok(()),
            })?;
            if written.is_err() {
                return Ok(written);
            }
            index += 1;
        }
        Ok(Ok(()))
    }

    /// The next data (or hole) at or after `offset`; `None` past the end. Of a file with very many blocks it may say data
    /// where a hole is.
    pub(crate) fn seek(&self, part: LowerPart, offset: u64, hole: bool) -> Res<Option<u64>> {
        let file = self.file(part)?;
        let file = &file.blocks;
        if offset >= file.size() {
            return Ok(None);
        }
        let block_size = u64::from(file.block_size());
        let next = file.next_kind(offset / block_size, hole);
        let index = match (next.map_err(|e| self.fail(part.layer, e))?, hole) {
            (Ok(index), _) | (Err(index), false) => index,
            (Err(_), true) => file.count(),
        };
        match (index < file.count(), hole) {
            (true, _) => Ok(Some(offset.max(index * block_size))),
            // The end of a file counts as a hole.
            (false, true) => Ok(Some(file.size())),
            (false, false) => Ok(None),
        }
    }
}

/// Whether a read takes a block from its beginning to its end.
fn whole(from: usize, to: usize, block_size: u64) -> bool {
    from == 0 && to as u64 == block_size
}
