//! Inodes.

use std::fmt;

use super::core::Core;
use super::cursor::{Cursor, Place};
use super::error::ReadError;
use crate::format::inode::device_parts;
use crate::format::{FragmentPosition, InodeBody, InodeRecord, InodeType, MetaRef, NO_XATTR};

/// Stable handle of an inode: where it is in the inode table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeRef(pub u64);

/// Kind of a file, without more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum FileKind {
    Directory,
    File,
    Symlink,
    BlockDevice,
    CharDevice,
    Fifo,
    Socket,
}

impl FileKind {
    /// The file type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::File => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    pub(crate) fn from_type(kind: InodeType) -> Self {
        match kind.basic() {
            InodeType::Directory => Self::Directory,
            InodeType::File => Self::File,
            InodeType::Symlink => Self::Symlink,
            InodeType::BlockDevice => Self::BlockDevice,
            InodeType::CharDevice => Self::CharDevice,
            InodeType::Fifo => Self::Fifo,
            _ => Self::Socket,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Directory => "directory",
            Self::File => "file",
            Self::Symlink => "symlink",
            Self::BlockDevice => "block device",
            Self::CharDevice => "character device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        })
    }
}

/// An inode: what `stat` needs, and where to find the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its handle.
    pub reference: InodeRef,
    /// Its number, unique in the image; hard links of one file share it.
    pub number: u32,
    /// Kind, and what belongs to it.
    pub kind: InodeKind,
    /// Permission bits (`07777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: u32,
    /// Hard links.
    pub nlink: u32,
    /// Index into the xattr id table.
    pub(crate) xattr: Option<u32>,
}

/// Kind of an inode, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    private_interfaces,
    reason = "places are for this crate; the variants are matched with `..`"
)]
pub enum InodeKind {
    /// A directory.
    #[non_exhaustive]
    Directory {
        /// Number of the parent's inode.
        parent: u32,
        /// Where the listing is, and its bytes.
        listing: Listing,
    },
    /// A regular file.
    #[non_exhaustive]
    File {
        /// Size in bytes.
        size: u64,
        /// Where the content is.
        content: Content,
    },
    /// A symbolic link.
    #[non_exhaustive]
    Symlink {
        /// Bytes of the target.
        len: u32,
        /// Where it is.
        target: Target,
    },
    /// A block device.
    BlockDevice {
        /// Device number as stored; [`Inode::device`] splits it.
        rdev: u32,
    },
    /// A character device.
    CharDevice {
        /// Device number as stored; [`Inode::device`] splits it.
        rdev: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Where a directory's entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listing {
    /// First metadata block, relative to the directory table, and offset in it.
    pub(crate) start: MetaRef,
    /// Bytes of the listing.
    pub(crate) size: u32,
    /// Index entries, and where they are.
    pub(crate) index_count: u16,
    pub(crate) index: Place,
}

/// Where a file's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// First data block.
    pub(crate) start: u64,
    pub(crate) fragment: Option<FragmentPosition>,
    /// Bytes in holes, as the image records them.
    pub(crate) sparse: u64,
    /// The block sizes.
    pub(crate) list: Place,
}

/// Where a symlink's target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub(crate) place: Place,
}

impl Inode {
    /// Kind, without more.
    pub fn file_kind(&self) -> FileKind {
        match self.kind {
            InodeKind::Directory { .. } => FileKind::Directory,
            InodeKind::File { .. } => FileKind::File,
            InodeKind::Symlink { .. } => FileKind::Symlink,
            InodeKind::BlockDevice { .. } => FileKind::BlockDevice,
            InodeKind::CharDevice { .. } => FileKind::CharDevice,
            InodeKind::Fifo => FileKind::Fifo,
            InodeKind::Socket => FileKind::Socket,
        }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, InodeKind::Directory { .. })
    }

    /// Size as `stat` gives it: bytes of a file, of a symlink's target, of a directory's listing.
    pub fn size(&self) -> u64 {
        match self.kind {
            InodeKind::File { size, .. } => size,
            InodeKind::Symlink { len, .. } => len.into(),
            InodeKind::Directory { listing, .. } => u64::from(listing.size) + 3,
            _ => 0,
        }
    }

    /// Bytes of a file that are in holes, as the image records them.
    pub fn sparse_bytes(&self) -> u64 {
        match self.kind {
            InodeKind::File { content, .. } => content.sparse,
            _ => 0,
        }
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> Option<(u32, u32)> {
        match self.kind {
            InodeKind::BlockDevice { rdev } | InodeKind::CharDevice { rdev } => {
                Some(device_parts(rdev))
            }
            _ => None,
        }
    }

    /// Whether the inode has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.xattr.is_some()
    }

    /// Which set of extended attributes the inode has: those with the same number have the same.
    pub fn xattr_set(&self) -> Option<u32> {
        self.xattr
    }

    /// Number of the directory above a directory, as the image records it.
    pub fn parent(&self) -> Option<u32> {
        match self.kind {
            InodeKind::Directory { parent, .. } => Some(parent),
            _ => None,
        }
    }

    pub(crate) fn wrong_kind(&self, wanted: &'static str) -> ReadError {
        ReadError::Kind { number: self.number, wanted }
    }
}

impl Core {
    pub(crate) fn inode(&self, reference: InodeRef) -> Result<Inode, ReadError> {
        let meta = MetaRef(reference.0);
        let table = self.superblock.inode_table;
        let limit = self.superblock.directory_table;
        if meta.block() >= limit - table {
            return Err(ReadError::Range { what: "inode reference", value: reference.0 });
        }
        let mut cursor = Cursor::new(self, Place::in_table(table, meta), limit)?;
        // The largest fixed part is 56 bytes; the first two say how many belong to this kind.
        let mut bytes = [0; 56];
        cursor.read(&mut bytes[..2])?;
        let size = cursor.check(InodeRecord::peek_type(&bytes))?.fixed_size();
        cursor.read(&mut bytes[2..size])?;
        let (kind, record) = cursor.check(InodeRecord::decode(&bytes[..size]))?;
        let tail = cursor.place();
        let mut xattr = record.xattr;
        if let (InodeType::ExtSymlink, InodeBody::Symlink { target_len, .. }) = (kind, &record.body)
        {
            cursor.skip(u64::from(*target_len))?;
            let raw = u32::from_le_bytes(cursor.array()?);
            xattr = (raw != NO_XATTR).then_some(raw);
        }
        let (kind, nlink) = inode_kind(&record.body, tail)?;
        Ok(Inode {
            reference,
            number: record.number,
            kind,
            mode: record.mode,
            uid: self.id(record.uid)?,
            gid: self.id(record.gid)?,
            mtime: record.mtime,
            nlink,
            xattr,
        })
    }

    /// The target of a symlink.
    pub(crate) fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let InodeKind::Symlink { len, target } = inode.kind else {
            return Err(inode.wrong_kind("symlink"));
        };
        let mut cursor = Cursor::new(self, target.place, self.superblock.directory_table)?;
        let mut out = Vec::new();
        cursor.append(len as usize, &mut out)?;
        Ok(out)
    }
}

fn inode_kind(body: &InodeBody, tail: Place) -> Result<(InodeKind, u32), ReadError> {
    Ok(match *body {
        InodeBody::Directory { block, offset, size, nlink, parent, index_count } => {
            let listing = Listing {
                start: MetaRef::new(block.into(), offset),
                // A recorded size below 3 is an empty directory to every other reader too.
                size: size.saturating_sub(crate::format::dir::SIZE_EXTRA),
                index_count,
                index: tail,
            };
            (InodeKind::Directory { parent, listing }, nlink)
        }
        InodeBody::File { start, size, sparse, nlink, fragment } => {
            if size > i64::MAX as u64 {
                return Err(ReadError::Range { what: "file size", value: size });
            }
            (
                InodeKind::File { size, content: Content { start, fragment, sparse, list: tail } },
                nlink,
            )
        }
        InodeBody::Symlink { nlink, target_len } => {
            (InodeKind::Symlink { len: target_len, target: Target { place: tail } }, nlink)
        }
        InodeBody::BlockDevice { nlink, rdev } => (InodeKind::BlockDevice { rdev }, nlink),
        InodeBody::CharDevice { nlink, rdev } => (InodeKind::CharDevice { rdev }, nlink),
        InodeBody::Fifo { nlink } => (InodeKind::Fifo, nlink),
        InodeBody::Socket { nlink } => (InodeKind::Socket, nlink),
    })
}
