//! What an earlier scan and pack found out, so that packing an unchanged tree costs a `stat` per
//! file.
//!
//! A file is known by device, inode, size and both times. One that changed so shortly before the
//! scan that a further change might leave the times as they are has no entry and is read each
//! time. Of a known file the cache says what its [pieces](ContentDigest) are, and that it has no
//! extended attributes (a change to these shows in the times as well). And it says which image was
//! made of a directory: if neither has changed since, there is nothing to do.
//!
//! ```text
//! "mica scan cache 1\n"
//! the last image: length (u32), bytes, BLAKE3 of the bytes
//! per file: identity (56 bytes), no attributes (u8), number of pieces (u32; all ones: not known),
//!           per piece offset (u64) and BLAKE3 (32 bytes)
//! BLAKE3 of the files' entries
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::OnceLock;

use mica_squashfs::write::{ContentDigest, NodeKind};

use crate::place::Unfinished;
use crate::scan::{Change, Scan};

const MAGIC: &[u8] = b"mica scan cache 1\n";
/// Bytes that tell one state of a file from another.
pub(crate) const IDENTITY: usize = 56;
const HASH: usize = 32;
const HEAD: usize = IDENTITY + 1 + 4;
const PIECE: usize = 8 + HASH;
const UNKNOWN: u32 = u32::MAX;
/// The description of the last image is short; what claims more is damaged.
const LAST_MAX: usize = 4096;

/// What is known from an earlier time about files, and about the image made of them.
#[derive(Debug, Default)]
pub struct ScanCache {
    entries: Vec<u8>,
    /// Where the entries of a device and inode are in `entries`; made when it is first needed.
    index: OnceLock<Index>,
}

impl ScanCache {
    /// What can be remembered of a scan whose files have been read.
    pub fn of(scan: &Scan) -> Self {
        // What was left out leaves no trace in the tree.
        let complete = scan.notices.iter().all(|notice| notice.change == Change::TimeBeforeEpoch);
        // Most files are one piece.
        let mut entries = Vec::with_capacity(scan.files as usize * (HEAD + PIECE));
        for id in scan.tree.ids() {
            let node = scan.tree.node(id);
            let NodeKind::File(content) = &node.kind else { continue };
            let Some(identity) = content.identity().filter(|bytes| bytes.len() == IDENTITY) else {
                continue;
            };
            let pieces = content.known_digest().map(ContentDigest::pieces);
            let count = pieces.map_or(UNKNOWN, |pieces| pieces.len() as u32);
            entries.extend_from_slice(&identity);
            entries.push((node.metadata.xattrs.is_empty() && complete).into());
            entries.extend_from_slice(&count.to_le_bytes());
            for (offset, hash) in pieces.unwrap_or_default() {
                entries.extend_from_slice(&offset.to_le_bytes());
                entries.extend_from_slice(hash);
            }
        }
        Self { entries, index: OnceLock::new() }
    }

    /// Reads a cache; one that is missing, damaged or of another version knows nothing.
    pub fn load(path: &Path) -> Self {
        Self::from_bytes(std::fs::read(path).unwrap_or_default())
    }

    pub(crate) fn from_bytes(mut bytes: Vec<u8>) -> Self {
        let range = || {
            let entries = checked(split_last(bytes.strip_prefix(MAGIC)?)?.1)?;
            let start = bytes.len() - HASH - entries.len();
            Some(start..start + entries.len())
        };
        let range = range().unwrap_or_default();
        bytes.truncate(range.end);
        bytes.drain(..range.start);
        Self { entries: bytes, index: OnceLock::new() }
    }

    /// Writes the cache, replacing what is at `path`.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        self.save_with(path, &[])
    }

    /// The same with a description of the image that was made.
    pub(crate) fn save_with(&self, path: &Path, last: &[u8]) -> io::Result<()> {
        let mut unfinished = Unfinished::create(path)?;
        let length = (last.len() as u32).to_le_bytes();
        let hashes = [blake3::hash(last), blake3::hash(&self.entries)];
        for part in
            [MAGIC, &length, last, hashes[0].as_bytes(), &self.entries, hashes[1].as_bytes()]
        {
            unfinished.file().write_all(part)?;
        }
        unfinished.name()
    }

    /// Whether both know the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// Number of files known.
    pub fn len(&self) -> usize {
        self.index().len()
    }

    /// Whether no file is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let (mut index, mut rest) = (Index::default(), &self.entries[..]);
            index.reserve(self.entries.len() / (HEAD + PIECE));
            while let (Some(key), Some((.., behind))) = (rest.first_chunk(), split_entry(rest)) {
                // What lies beyond 4 GiB is not known.
                let Ok(at) = u32::try_from(self.entries.len() - rest.len()) else { break };
                index.insert(*key, at);
                rest = behind;
            }
            index
        })
    }

    /// Where the entry of this file is, if it is known.
    pub(crate) fn find(&self, identity: &[u8; IDENTITY]) -> Option<u32> {
        let at = *self.index().get(identity.first_chunk()?)?;
        self.entries[at as usize..].starts_with(identity).then_some(at)
    }

    fn entry(&self, at: u32) -> Option<Split<'_>> {
        split_entry(self.entries.get(at as usize..)?)
    }

    /// Whether the file of this entry is known to have no extended attributes.
    pub(crate) fn is_plain(&self, at: u32) -> bool {
        self.entry(at).is_some_and(|(plain, ..)| plain)
    }

    /// What the file of this entry holds.
    pub(crate) fn digest(&self, at: u32) -> Option<ContentDigest> {
        let pieces = self.entry(at)?.1?;
        // Each has its length, so none is left out.
        let pieces = pieces.chunks_exact(PIECE).filter_map(|bytes| {
            let (offset, hash) = bytes.split_first_chunk()?;
            Some((u64::from_le_bytes(*offset), hash.try_into().ok()?))
        });
        let (_, size) = self.entries.get(at as usize..)?.split_at_checked(16)?;
        Some(ContentDigest::new(u64::from_le_bytes(*size.first_chunk()?), pieces))
    }
}

/// Positions by device and inode.
type Index = HashMap<[u8; 16], u32, BuildHasherDefault<NumbersHasher>>;

/// Device and inode numbers are given out by the kernel: nobody chooses them so that they collide,
/// and mixing them needs no secret.
#[derive(Default)]
struct NumbersHasher(u64);

impl Hasher for NumbersHasher {
    fn write(&mut self, bytes: &[u8]) {
        for number in bytes.chunks_exact(8) {
            let number = number.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            self.0 = (self.0.rotate_left(31) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

/// What [`ScanCache::save_with`] was told of the last image, without reading the rest of the file.
pub(crate) fn last_image(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let most = MAGIC.len() + 4 + LAST_MAX + HASH;
    File::open(path).ok()?.take(most as u64).read_to_end(&mut head).ok()?;
    let (last, _) = split_last(head.strip_prefix(MAGIC)?)?;
    Some(last.to_vec())
}

/// Whether it has no attributes, its pieces, and what follows the entry.
type Split<'a> = (bool, Option<&'a [u8]>, &'a [u8]);

fn split_entry(bytes: &[u8]) -> Option<Split<'_>> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let (_, flag) = head.split_at(IDENTITY);
    let count = u32::from_le_bytes(*flag[1..].first_chunk()?);
    if count == UNKNOWN {
        return Some((flag[0] == 1, None, rest));
    }
    let (pieces, rest) = rest.split_at_checked(count as usize * PIECE)?;
    Some((flag[0] == 1, Some(pieces), rest))
}

fn split_last(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    let (last, rest) = rest.split_at_checked((length <= LAST_MAX).then_some(length + HASH)?)?;
    Some((checked(last)?, rest))
}

/// Bytes without their hash, if it fits.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (bytes, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH)?)?;
    (blake3::hash(bytes).as_bytes() == hash).then_some(bytes)
}
