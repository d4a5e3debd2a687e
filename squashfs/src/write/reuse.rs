//! Blocks of an earlier image that need not be compressed again.
//!
//! A [`BlockIndex`] says for each stored data block of an image what its raw content hashes to, and
//! what its stored bytes hash to. A writer that has the hash of the raw content takes the stored bytes from the
//! earlier image, checks their hash, and gets what compressing would have given: the index is only
//! used if the earlier image was made in the same way, to the version of the library.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::data::is_zero;
use crate::Image;
use crate::format::BlockSize;
use crate::read::{Block, BlockRef, ReadError, WalkError, walk};
use crate::source::Source;

const MAGIC: &[u8] = b"mica block index 2\n";
const ENTRY: usize = 32 + 8 + 4 + 32;

/// What a block of a file or a fragment block is known by, see [`BlockIndex`].
pub(super) type Key = [u8; 32];

/// The key of a fragment block, from sizes and hashes of the small files in it; none if a hash is
/// missing.
pub(super) fn fragment_key(members: impl Iterator<Item = (u32, Option<[u8; 32]>)>) -> Option<Key> {
    let mut hasher = blake3::Hasher::new_derive_key("mica block index 2: fragment block");
    for (size, hash) in members {
        hasher.update(&size.to_le_bytes());
        hasher.update(&hash?);
    }
    Some(*hasher.finalize().as_bytes())
}

/// BLAKE3 of a small file; all zeros for one that is.
pub(super) fn small_digest(bytes: &[u8]) -> [u8; 32] {
    if is_zero(bytes) { [0; 32] } else { *blake3::hash(bytes).as_bytes() }
}

/// Where a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub(super) key: Key,
    pub(super) offset: u64,
    pub(super) size: BlockSize,
    pub(super) stored: [u8; 32],
}

/// What the data blocks of an image hold, to be kept beside it for the next
/// [`write`](super::write()). Format: a line with name and version, the line of the image's
/// [description](super::WriteOptions::description), then per block a key (32 bytes), position in
/// the file system (u64), size as in the format (u32), BLAKE3 of the stored bytes. The key is BLAKE3
/// of the raw content. That of a fragment block is made from size and BLAKE3 of each file in it, so
/// that it is known where these are, without reading the files.
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
        let mut seen = HashSet::new();
        // Fragment blocks by position, with the places of the files in them.
        let mut fragments: BTreeMap<u64, (BlockRef, BTreeSet<(u32, u32)>)> = BTreeMap::new();
        let mut reader = BlockReader { image, raw: Vec::new(), stored: Vec::new() };
        for entry in walk(image) {
            let inode = entry?.inode;
            if !matches!(inode.kind, crate::InodeKind::File { .. }) {
                continue;
            }
            let blocks = image.blocks(&inode)?;
            for number in 0..blocks.count() {
                match blocks.block(number)? {
                    Block::Data { block, .. } if seen.insert(block.offset) => {
                        let entry = reader.entry(&block, |raw| Some(*blake3::hash(raw).as_bytes()));
                        index.entries.extend(entry?);
                    }
                    Block::Fragment { block, start, len } => {
                        let (_, members) =
                            fragments.entry(block.offset).or_insert((block, BTreeSet::new()));
                        members.insert((start, len));
                    }
                    _ => {}
                }
            }
        }
        for (block, members) in fragments.values() {
            let entry = reader.entry(block, |raw| key_of_fragment(raw, members));
            index.entries.extend(entry?);
        }
        Ok(index)
    }

    /// The index as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = [MAGIC, self.description.as_bytes(), b"\n"].concat();
        bytes.reserve(ENTRY * self.entries.len());
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.key);
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
            let (mut key, mut stored) = ([0; 32], [0; 32]);
            let (mut offset, mut size) = ([0; 8], [0; 4]);
            key.copy_from_slice(&bytes[..32]);
            offset.copy_from_slice(&bytes[32..40]);
            size.copy_from_slice(&bytes[40..44]);
            stored.copy_from_slice(&bytes[44..]);
            let (offset, size) = (u64::from_le_bytes(offset), BlockSize(u32::from_le_bytes(size)));
            IndexEntry { key, offset, size, stored }
        };
        let entries = rest.chunks_exact(ENTRY).map(entry).collect();
        Ok(Self { description: description.to_owned(), entries })
    }
}

struct BlockReader<'a> {
    image: &'a Image,
    raw: Vec<u8>,
    stored: Vec<u8>,
}

impl BlockReader<'_> {
    /// The entry of a block, if its content has a key.
    fn entry(
        &mut self,
        block: &BlockRef,
        key: impl FnOnce(&[u8]) -> Option<Key>,
    ) -> Result<Option<IndexEntry>, ReadError> {
        let block_size = self.image.superblock().block_size as usize;
        self.image.read_block(block, block_size, &mut self.raw)?;
        self.image.read_stored(block, &mut self.stored)?;
        let size = BlockSize::new(block.stored, block.compressed);
        let stored = *blake3::hash(&self.stored).as_bytes();
        Ok(key(&self.raw).map(|key| IndexEntry { key, offset: block.offset, size, stored }))
    }
}

/// The key of a fragment block, if the files in it leave nothing over.
fn key_of_fragment(raw: &[u8], members: &BTreeSet<(u32, u32)>) -> Option<Key> {
    let mut end = 0;
    let key = fragment_key(members.iter().map(|&(start, len)| {
        let is_next = start as usize == end;
        end = start as usize + len as usize;
        (len, raw.get(start as usize..end).filter(|_| is_next).map(small_digest))
    }));
    key.filter(|_| end == raw.len())
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
        let blocks = index.entries.iter().map(|entry| (entry.key, *entry)).collect();
        Self { source, start, description: index.description.clone(), blocks }
    }

    pub(super) fn fits(&self, description: &str) -> bool {
        self.description == description
    }

    /// The stored bytes of the block with this key. An index or image that is damaged gives
    /// nothing, and the block is compressed again.
    pub(super) fn find(&self, key: &Key, longest: usize) -> Option<(Vec<u8>, IndexEntry)> {
        let entry = self.blocks.get(key)?;
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
