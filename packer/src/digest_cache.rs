//! Digests of contents that were read before, so that an unchanged tree costs a `stat` per file.
//!
//! A content is known by device, inode, size and both times of its file. Files that changed so
//! shortly before the scan that a further change might leave the times as they are have no entry
//! and are read each time.
//!
//! The file: a line with name and version, then per file 56 bytes of identity and 32 of digest.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use crate::place::Unfinished;

const MAGIC: &[u8] = b"mica digest cache 1\n";
const IDENTITY: usize = 56;
const ENTRY: usize = IDENTITY + 32;

/// What [`inputs_digest`](crate::inputs_digest) remembers from one time to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DigestCache {
    entries: HashMap<[u8; IDENTITY], [u8; 32]>,
}

impl DigestCache {
    /// Reads a cache; one that is missing, damaged or of another version is empty.
    pub fn load(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        let entries = bytes.strip_prefix(MAGIC).filter(|rest| rest.len().is_multiple_of(ENTRY));
        let entry = |bytes: &[u8]| {
            let (mut identity, mut digest) = ([0; IDENTITY], [0; 32]);
            identity.copy_from_slice(&bytes[..IDENTITY]);
            digest.copy_from_slice(&bytes[IDENTITY..]);
            (identity, digest)
        };
        Self { entries: entries.unwrap_or_default().chunks_exact(ENTRY).map(entry).collect() }
    }

    /// Writes the cache, replacing what is at `path`.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable();
        let mut bytes = MAGIC.to_vec();
        for (identity, digest) in entries {
            bytes.extend_from_slice(identity);
            bytes.extend_from_slice(digest);
        }
        let mut unfinished = Unfinished::create(path)?;
        unfinished.file().write_all(&bytes)?;
        unfinished.finish()
    }

    /// Number of files known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no file is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn get(&self, identity: &[u8]) -> Option<blake3::Hash> {
        let digest = self.entries.get(<&[u8; IDENTITY]>::try_from(identity).ok()?)?;
        Some(blake3::Hash::from_bytes(*digest))
    }

    pub(crate) fn insert(&mut self, identity: &[u8], digest: &blake3::Hash) {
        if let Ok(identity) = identity.try_into() {
            self.entries.insert(identity, *digest.as_bytes());
        }
    }
}
