//! What a worker does to a block.

use std::sync::OnceLock;

use super::data::{ReadFailure, is_zero};
use super::fragment::{Cut, Failure, read_whole};
use super::layout::Stored;
use super::pool::Worker;
use super::reuse::{Key, fragment_key};
use super::tree::{Content, OpenContent};
use crate::format::BlockSize;

/// A content that is opened when it is first read: a file whose blocks are all taken from an
/// earlier image never is.
pub(super) struct Reader<'t> {
    content: &'t dyn Content,
    open: OnceLock<Box<dyn OpenContent + 't>>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(content: &'t dyn Content) -> Self {
        Self { content, open: OnceLock::new() }
    }

    pub(super) fn get(&self) -> std::io::Result<&(dyn OpenContent + 't)> {
        match self.open.get() {
            Some(open) => Ok(&**open),
            None => {
                let open = self.content.open()?;
                Ok(&**self.open.get_or_init(|| open))
            }
        }
    }

    /// False if it was read and is no longer what it was.
    pub(super) fn is_unchanged(&self) -> std::io::Result<bool> {
        self.open.get().map_or(Ok(true), |open| open.is_unchanged())
    }
}

impl Worker {
    /// Stores `length` bytes of a file, which hash to `known` if that is known; or a hole.
    pub(super) fn store_piece(
        &mut self,
        reader: &Reader<'_>,
        offset: u64,
        length: u32,
        known: Option<Key>,
    ) -> Result<Stored, ReadFailure> {
        if let Some(stored) = known.and_then(|key| self.reuse(key, length as usize)) {
            return Ok(stored);
        }
        self.raw.resize(length as usize, 0);
        reader.get()?.read_exact_at(&mut self.raw, offset)?;
        if known.is_none() && is_zero(&self.raw) {
            let (bytes, size) = (Vec::new(), BlockSize::HOLE);
            return Ok(Stored { bytes, size, key: None, digest: None, reused: false });
        }
        let key = match known {
            None if self.keyed() => Some(*blake3::hash(&self.raw).as_bytes()),
            known => known,
        };
        match key.filter(|_| known.is_none()).and_then(|key| self.reuse(key, self.raw.len())) {
            Some(stored) => Ok(stored),
            None => self.compress(key),
        }
    }

    /// Stores a fragment block.
    pub(super) fn store_fragment(&mut self, cut: Cut<'_>) -> Result<Stored, Failure> {
        let first = cut.members[0].file.id;
        let key = self.keyed().then(|| {
            let members = cut.members.iter();
            fragment_key(members.map(|member| (member.file.size as u32, member.digest)))
        });
        let key = key.flatten();
        if let Some(stored) = key.and_then(|key| self.reuse(key, cut.length)) {
            return Ok(stored);
        }
        if cut.bytes.len() == cut.length {
            self.raw = cut.bytes;
        } else {
            self.raw.resize(cut.length, 0);
            let (mut rest, mut read) = (&mut self.raw[..], &cut.bytes[..]);
            for member in &cut.members {
                let (place, behind) = rest.split_at_mut(member.file.size as usize);
                rest = behind;
                if member.is_read {
                    let (bytes, behind) = read.split_at(place.len());
                    place.copy_from_slice(bytes);
                    read = behind;
                } else {
                    let id = member.file.id;
                    read_whole(&member.file, place).map_err(|failure| (id, failure))?;
                }
            }
        }
        self.compress(key).map_err(|failure| (first, failure))
    }

    /// Whether blocks are known by keys.
    pub(super) fn keyed(&self) -> bool {
        self.index || self.previous.is_some()
    }

    /// What the earlier image has stored for this key.
    fn reuse(&self, key: Key, length: usize) -> Option<Stored> {
        let (bytes, entry) = self.previous.as_ref()?.find(&key, length)?;
        let (key, digest) = (Some(key), Some(entry.stored));
        Some(Stored { bytes, size: entry.size, key, digest, reused: true })
    }

    fn compress(&mut self, key: Option<Key>) -> Result<Stored, ReadFailure> {
        let shrunk = self.compressor.compress(&self.raw, &mut self.compressed);
        let shrunk = shrunk.map_err(ReadFailure::Codec)?;
        // A copy of the right size: what waits to be written should not hold the room that
        // compressing needed, and that room is not given back and asked for again.
        let bytes = if shrunk { &self.compressed } else { &self.raw }.clone();
        let digest = self.index.then(|| *blake3::hash(&bytes).as_bytes());
        let size = BlockSize::new(bytes.len() as u32, shrunk);
        Ok(Stored { bytes, size, key, digest, reused: false })
    }
}
