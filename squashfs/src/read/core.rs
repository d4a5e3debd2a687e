//! What all parts of the reader share: the source, the superblock, the caches, and reading one block.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use super::cache::Cache;
use super::dir::Signposts;
use super::error::ReadError;
use crate::codec::{Compression, with_decompressor};
use crate::format::xattr::XattrTable;
use crate::format::{METADATA_SIZE, MetaHeader, Superblock};
use crate::source::Source;

pub(crate) struct Core {
    pub(crate) source: Box<dyn Source>,
    /// Where the file system starts in the source.
    pub(crate) start: u64,
    pub(crate) superblock: Superblock,
    pub(crate) compression: Compression,
    pub(crate) xattrs: Option<XattrTable>,
    /// Decoded metadata blocks by position.
    pub(crate) metadata: Cache<MetaBlock>,
    /// Decoded data blocks by position, for [`super::Image::read_at`] alone.
    pub(crate) data: Cache<Vec<u8>>,
    /// The id table: 256 KiB at most, read on first use.
    pub(crate) ids: OnceLock<Vec<u32>>,
    /// What [`super::OpenOptions::interrupted`] says.
    pub(crate) interrupted: Option<fn() -> bool>,
    /// Places in the large directories that were searched last.
    pub(crate) signposts: Cache<Signposts>,
}

/// A decoded metadata block.
pub(crate) struct MetaBlock {
    pub(crate) bytes: Vec<u8>,
    /// Position of the block after it.
    pub(crate) next: u64,
}

thread_local! {
    /// Stored bytes on their way to the decoder: one buffer per thread, as large as the largest block read.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Core {
    /// Fills `buf` from `position` in the file system; past its end is an error even if the file goes on.
    pub(crate) fn read(&self, position: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = buf.len();
        let end = position.checked_add(len as u64);
        if end.is_none_or(|end| end > self.superblock.bytes_used) {
            return Err(ReadError::Range { what: "position of a block", value: position });
        }
        self.source.read_exact_at(buf, self.start + position).map_err(|source| ReadError::Io {
            position,
            len,
            source,
        })
    }

    /// The metadata block at `position`, which must end at `limit` at the latest.
    pub(crate) fn meta_block(
        &self,
        position: u64,
        limit: u64,
    ) -> Result<Arc<MetaBlock>, ReadError> {
        let block = match self.metadata.get(position) {
            Some(block) => block,
            None => {
                // Whatever takes long decodes metadata all the time.
                if self.interrupted.is_some_and(|interrupted| interrupted()) {
                    return Err(ReadError::Interrupted);
                }
                let block = Arc::new(self.decode_meta(position, limit)?);
                let cost = block.bytes.capacity() + 96;
                self.metadata.put(position, Arc::clone(&block), cost);
                block
            }
        };
        // Also for a cached block: the cache does not know on behalf of which table it was read.
        if block.next > limit {
            return Err(ReadError::Range { what: "position of a metadata block", value: position });
        }
        Ok(block)
    }

    fn decode_meta(&self, position: u64, limit: u64) -> Result<MetaBlock, ReadError> {
        let limit = limit.min(self.superblock.bytes_used);
        // Header and block in one read: a few kilobytes too many cost less than a second call.
        let room = limit.saturating_sub(position).min((MetaHeader::SIZE + METADATA_SIZE) as u64);
        with_stored(room as usize, |stored| {
            self.read(position, stored)?;
            let Some((header, rest)) = stored.split_first_chunk::<2>() else {
                return Err(ReadError::Range {
                    what: "position of a metadata block",
                    value: position,
                });
            };
            let header = MetaHeader::decode(*header)
                .map_err(|source| ReadError::Format { position, source })?;
            let body = rest.get(..usize::from(header.stored)).ok_or(ReadError::Range {
                what: "end of a metadata block",
                value: position + u64::from(header.stored),
            })?;
            let mut bytes = Vec::new();
            if header.compressed {
                self.decompress(position, body, METADATA_SIZE, &mut bytes)?;
                bytes.shrink_to_fit();
            } else {
                bytes.extend_from_slice(body);
            }
            if bytes.is_empty() {
                return Err(ReadError::BlockLength { position, have: 0, want: METADATA_SIZE });
            }
            let next = position + (MetaHeader::SIZE + body.len()) as u64;
            Ok(MetaBlock { bytes, next })
        })
    }

    /// Reads `stored` bytes at `position` and decodes them into `out`: at most `max` bytes.
    pub(crate) fn data_block(
        &self,
        position: u64,
        stored: u32,
        compressed: bool,
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        if stored == 0 || stored > self.superblock.block_size {
            return Err(ReadError::Range { what: "stored size of a block", value: stored.into() });
        }
        let len = stored as usize;
        if compressed {
            return with_stored(len, |bytes| {
                self.read(position, bytes)?;
                self.decompress(position, bytes, max, out)
            });
        }
        if len > max {
            return Err(ReadError::BlockLength { position, have: len, want: max });
        }
        out.resize(len, 0);
        self.read(position, out)
    }

    /// Decodes the block `bytes`, which is at `position`, into at most `max` bytes.
    pub(crate) fn decompress(
        &self,
        position: u64,
        bytes: &[u8],
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        with_decompressor(self.compression, |d| d.decompress(bytes, max, out))
            .map_err(|source| ReadError::Block { position, source })
    }
}

/// Lends this thread's buffer, `len` bytes of it. Its content is whatever the last block left there.
fn with_stored<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    // Taken, not borrowed: a source that reads another image of this crate inside must not find it in use.
    let mut buffer = STORED.take();
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let result = f(&mut buffer[..len]);
    STORED.set(buffer);
    result
}
