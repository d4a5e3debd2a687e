//! Extended attributes.
//!
//! Inodes name an entry of the id table ([`XattrId`]); inodes with the same set share one. The entry says where the
//! set's pairs start in the key/value table and how many there are. A pair is a key ([`KeyHeader`] and name without
//! its prefix) and a value (`u32` length and bytes), or, out of line, a value of 8 bytes: a [`MetaRef`] to a value
//! stored with another key.

use super::bytes::{Cursor, Put};
use super::{FormatError, MetaRef};

/// Set in a key's type when its value is stored out of line (`SQUASHFS_XATTR_VALUE_OOL`).
pub const OUT_OF_LINE: u16 = 0x0100;
/// Largest value Linux allows (`XATTR_SIZE_MAX`).
pub const VALUE_MAX: u32 = 65536;
/// Longest name Linux allows, prefix included (`XATTR_NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// The namespaces that squashfs can store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XattrPrefix {
    /// `user.`
    User = 0,
    /// `trusted.`
    Trusted = 1,
    /// `security.`
    Security = 2,
}

impl XattrPrefix {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::User, Self::Trusted, Self::Security];

    /// The prefix with its dot.
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::User => b"user.",
            Self::Trusted => b"trusted.",
            Self::Security => b"security.",
        }
    }

    /// Splits a full name into prefix and rest; `None` for a namespace that squashfs cannot store.
    pub fn split(name: &[u8]) -> Option<(Self, &[u8])> {
        Self::ALL
            .into_iter()
            .find_map(|prefix| Some((prefix, name.strip_prefix(prefix.as_bytes())?)))
    }
}

/// The fixed part of a key; its name (without the prefix) follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHeader {
    /// Namespace.
    pub prefix: XattrPrefix,
    /// Whether the value is a reference.
    pub out_of_line: bool,
    /// Bytes of the name.
    pub name_len: u16,
}

impl KeyHeader {
    /// Its size on disk.
    pub const SIZE: usize = 4;

    /// Reads the fixed part.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(bytes, "xattr key");
        let (kind, name_len) = (c.u16()?, c.u16()?);
        let prefix = match kind & 0xff {
            0 => XattrPrefix::User,
            1 => XattrPrefix::Trusted,
            2 => XattrPrefix::Security,
            _ => return Err(FormatError::Value { what: "xattr namespace", value: kind.into() }),
        };
        if usize::from(name_len) > NAME_MAX {
            return Err(FormatError::Value { what: "xattr name length", value: name_len.into() });
        }
        Ok(Self { prefix, out_of_line: kind & OUT_OF_LINE != 0, name_len })
    }

    /// Appends the fixed part; the caller appends the name.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.u16(self.prefix as u16 | if self.out_of_line { OUT_OF_LINE } else { 0 });
        out.u16(self.name_len);
    }
}

/// An entry of the id table: one set of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrId {
    /// First pair, in the key/value table.
    pub first: MetaRef,
    /// Number of pairs.
    pub count: u32,
    /// Bytes that `listxattr` needs and the values take, decoded.
    pub size: u32,
}

impl XattrId {
    /// Its size on disk.
    pub const SIZE: usize = 16;

    /// Reads an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(bytes, "xattr id");
        Ok(Self { first: MetaRef(c.u64()?), count: c.u32()?, size: c.u32()? })
    }

    /// Appends the entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.u64(self.first.0);
        out.u32(self.count);
        out.u32(self.size);
    }
}

/// What the superblock's xattr table position points at; the positions of the id blocks follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrTable {
    /// Start of the key/value table.
    pub values: u64,
    /// Number of ids.
    pub ids: u32,
}

impl XattrTable {
    /// Its size on disk.
    pub const SIZE: usize = 16;

    /// Reads the header.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(bytes, "xattr table");
        let table = Self { values: c.u64()?, ids: c.u32()? };
        c.u32()?;
        Ok(table)
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.u64(self.values);
        out.u32(self.ids);
        out.u32(0);
    }
}
