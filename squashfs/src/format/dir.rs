//! Directory listings and their index.
//!
//! A listing is a run of headers, each followed by up to 256 entries sorted by name. All entries under one header
//! have their inodes in the same metadata block and numbers within ±32767 of the header's. A directory's recorded
//! size is 3 more than its listing (for `.` and `..`, which are not stored); an empty one has size 3.

use super::bytes::{Cursor, Put};
use super::{FormatError, InodeType, NAME_MAX};

/// Most entries under one header (`SQUASHFS_DIR_COUNT`).
pub const ENTRIES_MAX: u32 = 256;
/// What a directory's recorded size is more than its listing.
pub const SIZE_EXTRA: u32 = 3;

/// A header in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirHeader {
    /// Entries that follow, 1 to 256 (stored less one).
    pub count: u32,
    /// Metadata block of the entries' inodes, relative to the inode table.
    pub start: u32,
    /// Inode number the entries' numbers are relative to.
    pub number: u32,
}

impl DirHeader {
    /// Its size on disk.
    pub const SIZE: usize = 12;

    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(bytes, "directory header");
        let raw = c.u32()?;
        if raw >= ENTRIES_MAX {
            return Err(FormatError::Value { what: "directory entry count", value: raw.into() });
        }
        Ok(Self { count: raw + 1, start: c.u32()?, number: c.u32()? })
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.u32(self.count.wrapping_sub(1));
        out.u32(self.start);
        out.u32(self.number);
    }
}

/// The fixed part of a directory entry; the name follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntryHeader {
    /// Offset of the inode in its decoded metadata block.
    pub offset: u16,
    /// Inode number relative to the header's.
    pub number_delta: i16,
    /// Kind of file; always one of the basic kinds.
    pub kind: InodeType,
    /// Bytes of the name, 1 to 256 (stored less one).
    pub name_len: u16,
}

impl DirEntryHeader {
    /// Its size on disk, without the name.
    pub const SIZE: usize = 8;

    /// Reads the fixed part.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(bytes, "directory entry");
        let (offset, number_delta, kind, raw_len) = (c.u16()?, c.i16()?, c.u16()?, c.u16()?);
        if usize::from(raw_len) >= NAME_MAX {
            return Err(FormatError::Value { what: "name length", value: raw_len.into() });
        }
        // Writers store the basic kind; the extended kinds are read as well, as unsquashfs does.
        let kind = InodeType::from_raw(kind)?.basic();
        Ok(Self { offset, number_delta, kind, name_len: raw_len + 1 })
    }

    /// Appends the fixed part; the caller appends the name.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.u16(self.offset);
        out.extend_from_slice(&self.number_delta.to_le_bytes());
        out.u16(self.kind.basic() as u16);
        out.u16(self.name_len.wrapping_sub(1));
    }
}

/// An entry of a directory's index, stored behind an extended directory inode: the first name in a metadata block of
/// the listing. `name` follows it on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirIndex {
    /// Offset into the listing at which a header starts.
    pub position: u32,
    /// Metadata block that holds this offset, relative to the directory table.
    pub start: u32,
    /// Bytes of the name (stored less one).
    pub name_len: u32,
}

impl DirIndex {
    /// Its size on disk, without the name.
    pub const SIZE: usize = 12;

    /// Reads the fixed part.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(bytes, "directory index");
        let (position, start, raw_len) = (c.u32()?, c.u32()?, c.u32()?);
        if raw_len as usize >= NAME_MAX {
            return Err(FormatError::Value { what: "index name length", value: raw_len.into() });
        }
        Ok(Self { position, start, name_len: raw_len + 1 })
    }

    /// Appends the fixed part; the caller appends the name.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.u32(self.position);
        out.u32(self.start);
        out.u32(self.name_len.wrapping_sub(1));
    }
}
