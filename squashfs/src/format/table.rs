//! Tables with two levels: entries packed into metadata blocks, then the positions of those blocks as `u64`.
//!
//! The superblock points at the positions. Fragment, export and id tables have this shape; the xattr id table has it
//! behind a header ([`super::xattr`]).

use super::bytes::{Cursor, Put};
use super::{BlockSize, FormatError, METADATA_SIZE};

/// Bytes of an id table entry (`u32`).
pub const ID_SIZE: usize = 4;
/// Bytes of an export table entry (`u64`, an inode reference).
pub const EXPORT_SIZE: usize = 8;

/// How many metadata blocks a table of `entries` entries of `size` bytes fills.
pub fn blocks(entries: u64, size: usize) -> u64 {
    (entries * size as u64).div_ceil(METADATA_SIZE as u64)
}

/// A fragment block: where it is and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentEntry {
    /// Position in the file system.
    pub start: u64,
    /// Stored size and compression.
    pub size: BlockSize,
}

impl FragmentEntry {
    /// Its size on disk; 512 fill a metadata block.
    pub const SIZE: usize = 16;

    /// Reads an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(bytes, "fragment entry");
        let entry = Self { start: c.u64()?, size: BlockSize(c.u32()?) };
        c.u32()?;
        Ok(entry)
    }

    /// Appends the entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.u64(self.start);
        out.u32(self.size.0);
        out.u32(0);
    }
}
