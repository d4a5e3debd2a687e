//! Blocks of an earlier image that need not be compressed again.
//!
//! A [`BlockIndex`] says for each stored data block of an image what its raw content hashes to, and
//! what its stored bytes hash to. A writer that has the raw content takes the stored bytes from the
//! earlier image, checks their hash, and gets what compressing would have given: the index is only
//! used if the earlier image was made in the same way, to the version of the library.

use std::collections::HashMap;

use crate::Image;
use crate::format::BlockSize;
use crate::read::{Block, ReadError, WalkError, walk};
use crate::source::Source;

const MAGIC: &[u8] = b"mica block index 1\n";
const ENTRY: usize = 32 + 8 + 4 + 32;

/// Where a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub(super) raw: [u8; 32],
    pub(super) offset: u64,
    pub(super) size: BlockSize,
    pub(super) stored: [u8; 32],
}

/// What the data blocks of an image hold, to be kept beside it for the next
/// [`write`](super::write()). Format: a line with name and version, the line of the image's
/// [description](super::WriteOptions::description), then per block BLAKE3 of the raw content (32
/// bytes), position in the file system (u64), size as in the format (u32), BLAKE3 of the stored
/// bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockIndex {
    description: String,
    entries: Vec<IndexEntry>,
}

/// Bytes that are no block index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a block index of this version")]
pub struct BlockIndexError;

/// Why an image gives no block index.
#[derive(Debug, thiserror::Error)]
pub enum IndexImageError {
    /// The tree cannot be walked.
    #[error("cannot walk the image")]
    Walk(#[from] WalkError),
    /// A block cannot be read.
    #[error("cannot read a block of the image")]
    Read(#[from] ReadError),
}

impl BlockIndex {
    pub(super) fn new(description: String) -> Self {
        Self { description, entries: Vec::new() }
    }

    pub(super) fn push(&mut self, entry: IndexEntry) {
        self.entries.push(entry);
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Makes the index of an image by decoding all of it; `description` is how it was made.
    pub fn of_image(image: &Image, description: &str) -> Result<Self, IndexImageError> {
        let mut index = Self::new(description.to_owned());
        let mut seen = std::collections::HashSet::new();
        let (mut raw, mut stored) = (Vec::new(), Vec::new());
        for entry in walk(image) {
            let inode = entry?.inode;
            if !matches!(inode.kind, crate::InodeKind::File { .. }) {
                continue;
            }
            let blocks = image.blocks(&inode)?;
            for number in 0..blocks.count() {
                let (Block::Data { block, .. } | Block::Fragment { block, .. }) =
                    blocks.block(number)?
                else {
                    continue;
                };
                if !seen.insert(block.offset) {
                    continue;
                }
                image.read_block(&block, image.superblock().block_size as usize, &mut raw)?;
                image.read_stored(&block, &mut stored)?;
                index.push(IndexEntry {
                    raw: *blake3::hash(&raw).as_bytes(),
                    offset: block.offset,
                    size: BlockSize::new(block.stored, block.compressed),
                    stored: *blake3::hash(&stored).as_bytes(),
                });
            }
        }
        Ok(index)
    }

    /// The index as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = [MAGIC, self.description.as_bytes(), b"\n"].concat();
        bytes.reserve(ENTRY * self.entries.len());
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.raw);
            bytes.extend_from_slice(&entry.offset.to_le_bytes());
            bytes.extend_from_slice(&entry.size.0.to_le_bytes());
            bytes.extend_from_slice(&entry.stored);
        }
        bytes
    }

    /// Reads a stored index.
    pub fn parse(bytes: &[u8]) -> Result<Self, BlockIndexError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(BlockIndexError)?;
        let end = rest.iter().position(|&b| b == b'\n').ok_or(BlockIndexError)?;
        let description = std::str::from_utf8(&rest[..end]).map_err(|_| BlockIndexError)?;
        let rest = &rest[end + 1..];
        if !rest.len().is_multiple_of(ENTRY) {
            return Err(BlockIndexError);
        }
        let entry = |bytes: &[u8]| {
            let (mut raw, mut stored) = ([0; 32], [0; 32]);
            let (mut offset, mut size) = ([0; 8], [0; 4]);
            raw.copy_from_slice(&bytes[..32]);
            offset.copy_from_slice(&bytes[32..40]);
            size.copy_from_slice(&bytes[40..44]);
            stored.copy_from_slice(&bytes[44..]);
            let (offset, size) = (u64::from_le_bytes(offset), BlockSize(u32::from_le_bytes(size)));
            IndexEntry { raw, offset, size, stored }
        };
        let entries = rest.chunks_exact(ENTRY).map(entry).collect();
        Ok(Self { description: description.to_owned(), entries })
    }
}

/// An earlier image whose blocks are taken over.
pub struct Previous {
    source: Box<dyn Source>,
    /// Where the file system starts in `source`.
    start: u64,
    description: String,
    blocks: HashMap<[u8; 32], IndexEntry>,
}

impl Previous {
    /// The image in `source` from `start` on, whose index is `index`.
    pub fn new(source: Box<dyn Source>, start: u64, index: &BlockIndex) -> Self {
        let blocks = index.entries.iter().map(|entry| (entry.raw, *entry)).collect();
        Self { source, start, description: index.description.clone(), blocks }
    }

    pub(super) fn fits(&self, description: &str) -> bool {
        self.description == description
    }

    /// The stored bytes of a block with this raw content. An index or image that is damaged gives
    /// nothing, and the block is compressed again.
    pub(super) fn find(&self, raw: &blake3::Hash, longest: usize) -> Option<(Vec<u8>, IndexEntry)> {
        let entry = self.blocks.get(raw.as_bytes())?;
        let length = entry.size.stored() as usize;
        if length > longest {
            return None;
        }
        let mut bytes = vec![0; length];
        let at = self.start.checked_add(entry.offset)?;
        self.source.read_exact_at(&mut bytes, at).ok()?;
        (*blake3::hash(&bytes).as_bytes() == entry.stored).then_some((bytes, *entry))
    }
}

impl std::fmt::Debug for Previous {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Previous({} blocks)", self.blocks.len())
    }
}
