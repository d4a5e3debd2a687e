//! Inodes: 16 bytes common to all kinds, a body by kind, and a tail of varying length.
//!
//! Every kind exists in a basic form and in an extended one (number + 7) with wider fields and an xattr index. The
//! encoder picks the basic form whenever it can hold the values. The tail follows the body:
//!
//! | kind | tail |
//! |---|---|
//! | directory, extended only | `index_count` index entries ([`super::DirIndex`] and name) |
//! | file | one [`BlockSize`] (`u32`) per full block, and one for the rest if it is not in a fragment |
//! | symlink | the target; in the extended form the xattr index comes after it |

use super::bytes::{Cursor, Put};
use super::{FormatError, NO_FRAGMENT, NO_XATTR, SYMLINK_MAX};

/// The kinds of inodes by their number on disk, basic forms first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs, reason = "the names say it")]
pub enum InodeType {
    Directory = 1,
    File = 2,
    Symlink = 3,
    BlockDevice = 4,
    CharDevice = 5,
    Fifo = 6,
    Socket = 7,
    ExtDirectory = 8,
    ExtFile = 9,
    ExtSymlink = 10,
    ExtBlockDevice = 11,
    ExtCharDevice = 12,
    ExtFifo = 13,
    ExtSocket = 14,
}

impl InodeType {
    const ALL: [Self; 14] = [
        Self::Directory,
        Self::File,
        Self::Symlink,
        Self::BlockDevice,
        Self::CharDevice,
        Self::Fifo,
        Self::Socket,
        Self::ExtDirectory,
        Self::ExtFile,
        Self::ExtSymlink,
        Self::ExtBlockDevice,
        Self::ExtCharDevice,
        Self::ExtFifo,
        Self::ExtSocket,
    ];

    /// From the number on disk.
    pub fn from_raw(raw: u16) -> Result<Self, FormatError> {
        usize::from(raw)
            .checked_sub(1)
            .and_then(|i| Self::ALL.get(i).copied())
            .ok_or(FormatError::Value { what: "inode type", value: raw.into() })
    }

    /// The basic form of the same kind.
    pub fn basic(self) -> Self {
        if self.is_extended() { Self::ALL[self as usize - 8] } else { self }
    }

    /// The extended form of the same kind.
    pub fn extended(self) -> Self {
        if self.is_extended() { self } else { Self::ALL[self as usize + 6] }
    }

    /// Whether this is an extended form.
    pub fn is_extended(self) -> bool {
        self as u16 > 7
    }

    /// Bytes of header and body on disk, without the tail.
    pub fn fixed_size(self) -> usize {
        InodeRecord::HEADER_SIZE
            + match self {
                Self::Directory => 16,
                Self::File => 16,
                Self::Symlink | Self::BlockDevice | Self::CharDevice => 8,
                Self::Fifo | Self::Socket => 4,
                Self::ExtDirectory => 24,
                Self::ExtFile => 40,
                Self::ExtSymlink => 8,
                Self::ExtBlockDevice | Self::ExtCharDevice => 12,
                Self::ExtFifo | Self::ExtSocket => 8,
            }
    }
}

/// Stored size of a data or fragment block: bit 24 says "stored as it is", 0 is a hole of a full block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSize(pub u32);

impl BlockSize {
    /// A block of zeros that is not stored.
    pub const HOLE: Self = Self(0);
    const UNCOMPRESSED: u32 = 1 << 24;

    /// A block of `stored` bytes (below 2^24) on disk.
    pub fn new(stored: u32, compressed: bool) -> Self {
        Self(stored | if compressed { 0 } else { Self::UNCOMPRESSED })
    }

    /// Bytes on disk. Bits above 24 are kept, so that a damaged size is seen as too large.
    pub fn stored(self) -> u32 {
        self.0 & !Self::UNCOMPRESSED
    }

    /// Whether the bytes on disk are compressed.
    pub fn is_compressed(self) -> bool {
        self.0 & Self::UNCOMPRESSED == 0
    }

    /// Whether nothing is stored.
    pub fn is_hole(self) -> bool {
        self.stored() == 0
    }
}

/// Where a file's tail end is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragmentPosition {
    /// Index into the fragment table.
    pub index: u32,
    /// Offset into the decoded fragment block.
    pub offset: u32,
}

/// What differs by kind, without the tail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InodeBody {
    /// A directory.
    Directory {
        /// Metadata block where the listing starts, relative to the directory table.
        block: u32,
        /// Offset of the listing in that decoded block.
        offset: u16,
        /// Bytes of the listing plus 3.
        size: u32,
        /// Hard links: 2 plus the number of subdirectories.
        nlink: u32,
        /// Inode number of the parent; the root has number of inodes + 1.
        parent: u32,
        /// Index entries in the tail.
        index_count: u16,
    },
    /// A regular file.
    File {
        /// Position of the first data block in the file system.
        start: u64,
        /// Size in bytes.
        size: u64,
        /// Bytes in holes.
        sparse: u64,
        /// Hard links.
        nlink: u32,
        /// Tail end.
        fragment: Option<FragmentPosition>,
    },
    /// A symbolic link.
    Symlink {
        /// Hard links.
        nlink: u32,
        /// Bytes of the target, in the tail.
        target_len: u32,
    },
    /// A block device.
    BlockDevice {
        /// Hard links.
        nlink: u32,
        /// Device number: `(major << 8) | (minor & 0xff) | ((minor & !0xff) << 12)`.
        rdev: u32,
    },
    /// A character device.
    CharDevice {
        /// Hard links.
        nlink: u32,
        /// Device number, as for block devices.
        rdev: u32,
    },
    /// A named pipe.
    Fifo {
        /// Hard links.
        nlink: u32,
    },
    /// A socket.
    Socket {
        /// Hard links.
        nlink: u32,
    },
}

/// An inode without its tail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InodeRecord {
    /// Permission bits (`07777`).
    pub mode: u16,
    /// Index of the owner in the id table.
    pub uid: u16,
    /// Index of the group in the id table.
    pub gid: u16,
    /// Modification time in seconds since 1970.
    pub mtime: u32,
    /// Inode number, from 1.
    pub number: u32,
    /// Index into the xattr id table. After [`InodeRecord::decode`] of an extended symlink still unknown (`None`):
    /// it stands behind the target.
    pub xattr: Option<u32>,
    /// What differs by kind.
    pub body: InodeBody,
}

impl InodeRecord {
    /// Bytes common to all kinds.
    pub const HEADER_SIZE: usize = 16;

    /// Kind of an inode from its first two bytes.
    pub fn peek_type(bytes: &[u8]) -> Result<InodeType, FormatError> {
        InodeType::from_raw(Cursor::new(bytes, "inode").u16()?)
    }

    /// Reads header and body ([`InodeType::fixed_size`] bytes).
    pub fn decode(bytes: &[u8]) -> Result<(InodeType, Self), FormatError> {
        let mut c = Cursor::new(bytes, "inode");
        let kind = InodeType::from_raw(c.u16()?)?;
        let (mode, uid, gid, mtime, number) = (c.u16()?, c.u16()?, c.u16()?, c.u32()?, c.u32()?);
        let (body, xattr) = decode_body(kind, &mut c)?;
        let xattr = (xattr != NO_XATTR).then_some(xattr);
        Ok((kind, Self { mode: mode & 0o7777, uid, gid, mtime, number, xattr, body }))
    }

    /// The smallest kind that can hold this inode.
    pub fn kind(&self) -> InodeType {
        let wide = self.xattr.is_some();
        let (basic, wide) = match &self.body {
            InodeBody::Directory { size, index_count, .. } => {
                (InodeType::Directory, wide || *size > u16::MAX.into() || *index_count > 0)
            }
            InodeBody::File { start, size, sparse, nlink, .. } => {
                let narrow = u32::try_from(*start).is_ok() && u32::try_from(*size).is_ok();
                (InodeType::File, wide || !narrow || *sparse > 0 || *nlink != 1)
            }
            InodeBody::Symlink { .. } => (InodeType::Symlink, wide),
            InodeBody::BlockDevice { .. } => (InodeType::BlockDevice, wide),
            InodeBody::CharDevice { .. } => (InodeType::CharDevice, wide),
            InodeBody::Fifo { .. } => (InodeType::Fifo, wide),
            InodeBody::Socket { .. } => (InodeType::Socket, wide),
        };
        if wide { basic.extended() } else { basic }
    }

    /// Appends the inode in the form [`InodeRecord::kind`] says, with `tail` (the encoded index, block sizes or
    /// target) in its place.
    pub fn encode(&self, tail: &[u8], out: &mut Vec<u8>) {
        let kind = self.kind();
        out.u16(kind as u16);
        out.u16(self.mode);
        out.u16(self.uid);
        out.u16(self.gid);
        out.u32(self.mtime);
        out.u32(self.number);
        let xattr = self.xattr.unwrap_or(NO_XATTR);
        encode_body(&self.body, kind.is_extended(), xattr, out);
        out.extend_from_slice(tail);
        if kind == InodeType::ExtSymlink {
            out.u32(xattr);
        }
    }
}

fn decode_body(kind: InodeType, c: &mut Cursor<'_>) -> Result<(InodeBody, u32), FormatError> {
    let mut xattr = NO_XATTR;
    let body = match kind {
        InodeType::Directory => {
            let (block, nlink, size, offset, parent) =
                (c.u32()?, c.u32()?, c.u16()?, c.u16()?, c.u32()?);
            InodeBody::Directory { block, offset, size: size.into(), nlink, parent, index_count: 0 }
        }
        InodeType::ExtDirectory => {
            let (nlink, size, block, parent) = (c.u32()?, c.u32()?, c.u32()?, c.u32()?);
            let (index_count, offset) = (c.u16()?, c.u16()?);
            xattr = c.u32()?;
            InodeBody::Directory { block, offset, size, nlink, parent, index_count }
        }
        InodeType::File => {
            let (start, fragment) = (c.u32()?, decode_fragment(c)?);
            let size = c.u32()?;
            InodeBody::File {
                start: start.into(),
                size: size.into(),
                sparse: 0,
                nlink: 1,
                fragment,
            }
        }
        InodeType::ExtFile => {
            let (start, size, sparse, nlink) = (c.u64()?, c.u64()?, c.u64()?, c.u32()?);
            let fragment = decode_fragment(c)?;
            xattr = c.u32()?;
            InodeBody::File { start, size, sparse, nlink, fragment }
        }
        InodeType::Symlink | InodeType::ExtSymlink => {
            let (nlink, target_len) = (c.u32()?, c.u32()?);
            if target_len > SYMLINK_MAX {
                let what = "symlink target length";
                return Err(FormatError::Value { what, value: target_len.into() });
            }
            InodeBody::Symlink { nlink, target_len }
        }
        InodeType::BlockDevice | InodeType::CharDevice => device(kind, c)?,
        InodeType::ExtBlockDevice | InodeType::ExtCharDevice => {
            let body = device(kind, c)?;
            xattr = c.u32()?;
            body
        }
        InodeType::Fifo => InodeBody::Fifo { nlink: c.u32()? },
        InodeType::Socket => InodeBody::Socket { nlink: c.u32()? },
        InodeType::ExtFifo | InodeType::ExtSocket => {
            let nlink = c.u32()?;
            xattr = c.u32()?;
            match kind {
                InodeType::ExtFifo => InodeBody::Fifo { nlink },
                _ => InodeBody::Socket { nlink },
            }
        }
    };
    Ok((body, xattr))
}

fn device(kind: InodeType, c: &mut Cursor<'_>) -> Result<InodeBody, FormatError> {
    let (nlink, rdev) = (c.u32()?, c.u32()?);
    Ok(match kind.basic() {
        InodeType::BlockDevice => InodeBody::BlockDevice { nlink, rdev },
        _ => InodeBody::CharDevice { nlink, rdev },
    })
}

fn decode_fragment(c: &mut Cursor<'_>) -> Result<Option<FragmentPosition>, FormatError> {
    let (index, offset) = (c.u32()?, c.u32()?);
    Ok((index != NO_FRAGMENT).then_some(FragmentPosition { index, offset }))
}

fn encode_body(body: &InodeBody, extended: bool, xattr: u32, out: &mut Vec<u8>) {
    match *body {
        InodeBody::Directory { block, offset, size, nlink, parent, index_count } => {
            if extended {
                out.u32(nlink);
                out.u32(size);
                out.u32(block);
                out.u32(parent);
                out.u16(index_count);
                out.u16(offset);
                out.u32(xattr);
            } else {
                out.u32(block);
                out.u32(nlink);
                out.u16(size as u16);
                out.u16(offset);
                out.u32(parent);
            }
        }
        InodeBody::File { start, size, sparse, nlink, fragment } => {
            let (index, offset) = fragment.map_or((NO_FRAGMENT, 0), |f| (f.index, f.offset));
            if extended {
                out.u64(start);
                out.u64(size);
                out.u64(sparse);
                out.u32(nlink);
                out.u32(index);
                out.u32(offset);
                out.u32(xattr);
            } else {
                out.u32(start as u32);
                out.u32(index);
                out.u32(offset);
                out.u32(size as u32);
            }
        }
        InodeBody::Symlink { nlink, target_len } => {
            out.u32(nlink);
            out.u32(target_len);
        }
        InodeBody::BlockDevice { nlink, rdev } | InodeBody::CharDevice { nlink, rdev } => {
            out.u32(nlink);
            out.u32(rdev);
            if extended {
                out.u32(xattr);
            }
        }
        InodeBody::Fifo { nlink } | InodeBody::Socket { nlink } => {
            out.u32(nlink);
            if extended {
                out.u32(xattr);
            }
        }
    }
}

/// Packs a device number as Linux does in file systems (`new_encode_dev`): 12 bits of major, 20 bits of minor.
/// `None` if a part does not fit.
pub fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

/// Major and minor of a packed device number (`new_decode_dev`).
pub fn device_parts(rdev: u32) -> (u32, u32) {
    ((rdev & 0x000f_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0x000f_ff00))
}
