//! The squashfs 4.0 structures on disk, each with decode and encode.
//!
//! Pure: bytes in, values out, and back. Nothing here does I/O, allocates by a size that an image claims, or
//! knows about compression. The layout follows the kernel's `Documentation/filesystems/squashfs.rst` and
//! `fs/squashfs/squashfs_fs.h`; names of constants are theirs where they have one. All numbers are little endian.
//!
//! ```text
//!  ---------------
//! |  superblock   |  96 bytes                                     [superblock]
//! |  compressor   |  options, where they differ from the defaults (one metadata block, never compressed)
//! |  datablocks   |  file blocks and fragment blocks
//! |  inode table  |  metadata blocks                              [inode]
//! |  dir table    |  metadata blocks                              [dir]
//! |  fragments    |  metadata blocks, then their positions (u64)  [table]
//! |  export       |  inode number -> reference; the same two levels
//! |  uid/gid      |  ids as u32; the same two levels
//! |  xattrs       |  keys and values, id table, positions         [xattr]
//!  ---------------
//! ```
//!
//! A **metadata block** holds 8192 bytes when decoded (the last of a table less) behind a two-byte header
//! ([`metadata`]). A **reference** into a table is the position of a metadata block relative to the table's start,
//! shifted left by 16, plus an offset into the decoded block ([`MetaRef`]).

pub mod dir;
pub mod inode;
pub mod metadata;
pub mod superblock;
pub mod table;
pub mod xattr;

mod bytes;

pub use dir::{DirEntryHeader, DirHeader, DirIndex};
pub use inode::{BlockSize, FragmentPosition, InodeBody, InodeRecord, InodeType};
pub use metadata::{METADATA_SIZE, MetaHeader, MetaRef};
pub use superblock::{Flags, Superblock};
pub use table::FragmentEntry;
pub use xattr::{XattrId, XattrPrefix};

/// "No such table" in the superblock's table positions.
pub const NO_TABLE: u64 = u64::MAX;
/// "No fragment" in a file's fragment index.
pub const NO_FRAGMENT: u32 = u32::MAX;
/// "No extended attributes" in an inode's xattr index.
pub const NO_XATTR: u32 = u32::MAX;
/// Longest name of a directory entry.
pub const NAME_MAX: usize = 256;
/// Longest symlink target the kernel can return (`PATH_MAX` less its NUL).
pub const SYMLINK_MAX: u32 = 65535;
/// Smallest block size of a file system.
pub const BLOCK_SIZE_MIN: u32 = 4096;
/// Largest block size of a file system (`SQUASHFS_FILE_MAX_SIZE`).
pub const BLOCK_SIZE_MAX: u32 = 1 << 20;

/// A structure that is not what the format allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end inside the structure.
    #[error("{what} is cut short")]
    Short {
        /// The structure.
        what: &'static str,
    },
    /// A field has a value that the format does not allow.
    #[error("{what} is {value}, which is not allowed")]
    Value {
        /// The field.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The superblock's magic number is not squashfs's.
    #[error("not a squashfs image")]
    Magic,
    /// A big-endian image; version 4 has none.
    #[error("a big-endian squashfs image of version 3 or older, instead of 4.0")]
    BigEndian,
    /// A version of squashfs other than 4.0.
    #[error("squashfs version {major}.{minor} instead of 4.0")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
}

#[cfg(test)]
mod tests;
