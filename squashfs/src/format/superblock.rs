//! The superblock: the first 96 bytes of a file system.

use super::bytes::{Cursor, Put};
use super::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, FormatError, MetaRef, NO_TABLE};

/// `hsqs`, little endian.
pub const MAGIC: u32 = 0x7371_7368;

/// Feature bits of the superblock (`SQUASHFS_*` in `squashfs_fs.h`). Apart from [`Flags::COMPRESSOR_OPTIONS`] they
/// only record how the image was made; a reader does not need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// Inodes are stored uncompressed.
    pub const NO_INODES: u16 = 0x0001;
    /// Data blocks are stored uncompressed.
    pub const NO_DATA: u16 = 0x0002;
    /// Set by no current writer (formerly: check data).
    pub const CHECK: u16 = 0x0004;
    /// Fragments are stored uncompressed.
    pub const NO_FRAGMENT_COMPRESSION: u16 = 0x0008;
    /// There are no fragments.
    pub const NO_FRAGMENTS: u16 = 0x0010;
    /// Tail ends go into fragments whatever the file's size.
    pub const ALWAYS_FRAGMENTS: u16 = 0x0020;
    /// Duplicate files were looked for.
    pub const DUPLICATES: u16 = 0x0040;
    /// There is an export table.
    pub const EXPORT: u16 = 0x0080;
    /// Extended attributes are stored uncompressed.
    pub const NO_XATTR_COMPRESSION: u16 = 0x0100;
    /// There are no extended attributes.
    pub const NO_XATTRS: u16 = 0x0200;
    /// Compressor options follow the superblock.
    pub const COMPRESSOR_OPTIONS: u16 = 0x0400;
    /// The id table is stored uncompressed.
    pub const NO_IDS: u16 = 0x0800;

    /// Whether all of `bits` are set.
    pub fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }
}

/// The superblock, field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Number of inodes.
    pub inodes: u32,
    /// When the file system was made, in seconds since 1970.
    pub mkfs_time: u32,
    /// Size of a data block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Number of fragment blocks.
    pub fragments: u32,
    /// Compressor id; [`Compression::from_id`](crate::codec::Compression::from_id) names it.
    pub compressor: u16,
    /// Feature bits.
    pub flags: Flags,
    /// Number of entries in the id table.
    pub ids: u16,
    /// Where the root directory's inode is.
    pub root: MetaRef,
    /// Bytes of the file system, padding not counted.
    pub bytes_used: u64,
    /// Start of the id table's positions.
    pub id_table: u64,
    /// Start of the xattr id table, or [`NO_TABLE`].
    pub xattr_table: u64,
    /// Start of the inode table.
    pub inode_table: u64,
    /// Start of the directory table.
    pub directory_table: u64,
    /// Start of the fragment table's positions, or [`NO_TABLE`].
    pub fragment_table: u64,
    /// Start of the export table's positions, or [`NO_TABLE`].
    pub export_table: u64,
}

impl Superblock {
    /// Its size on disk.
    pub const SIZE: usize = 96;

    /// Reads a superblock and checks everything that can be checked without the rest of the image.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut c = Cursor::new(bytes, "superblock");
        match c.u32()? {
            MAGIC => {}
            magic if magic.swap_bytes() == MAGIC => return Err(FormatError::BigEndian),
            _ => return Err(FormatError::Magic),
        }
        let inodes = c.u32()?;
        let mkfs_time = c.u32()?;
        let block_size = c.u32()?;
        let fragments = c.u32()?;
        let compressor = c.u16()?;
        let block_log = c.u16()?;
        let flags = Flags(c.u16()?);
        let ids = c.u16()?;
        let (major, minor) = (c.u16()?, c.u16()?);
        if (major, minor) != (4, 0) {
            return Err(FormatError::Version { major, minor });
        }
        let superblock = Self {
            inodes,
            mkfs_time,
            block_size,
            fragments,
            compressor,
            flags,
            ids,
            root: MetaRef(c.u64()?),
            bytes_used: c.u64()?,
            id_table: c.u64()?,
            xattr_table: c.u64()?,
            inode_table: c.u64()?,
            directory_table: c.u64()?,
            fragment_table: c.u64()?,
            export_table: c.u64()?,
        };
        superblock.check(block_log)?;
        Ok(superblock)
    }

    fn check(&self, block_log: u16) -> Result<(), FormatError> {
        let bad = |what, value| Err(FormatError::Value { what, value });
        if !self.block_size.is_power_of_two()
            || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&self.block_size)
        {
            return bad("block size", self.block_size.into());
        }
        if u32::from(block_log) != self.block_size.trailing_zeros() {
            return bad("block log", block_log.into());
        }
        if self.ids == 0 {
            return bad("number of ids", 0);
        }
        if self.bytes_used < Self::SIZE as u64 || self.bytes_used > 1 << 62 {
            return bad("file system size", self.bytes_used);
        }
        // The kernel and all writers put the inode table right before the directory table; what follows the
        // directory table may come in any order.
        if self.inode_table < Self::SIZE as u64 || self.inode_table >= self.directory_table {
            return bad("inode table position", self.inode_table);
        }
        if self.directory_table > self.bytes_used {
            return bad("directory table position", self.directory_table);
        }
        let after = self.directory_table..self.bytes_used;
        if !after.contains(&self.id_table) {
            return bad("id table position", self.id_table);
        }
        if self.fragments > 0 && !after.contains(&self.fragment_table) {
            return bad("fragment table position", self.fragment_table);
        }
        for (what, position) in [
            ("xattr table position", self.xattr_table),
            ("export table position", self.export_table),
        ] {
            if position != NO_TABLE && !after.contains(&position) {
                return bad(what, position);
            }
        }
        if self.root.block() >= self.directory_table - self.inode_table {
            return bad("root inode reference", self.root.0);
        }
        Ok(())
    }

    /// The superblock's bytes.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = Vec::with_capacity(Self::SIZE);
        out.u32(MAGIC);
        out.u32(self.inodes);
        out.u32(self.mkfs_time);
        out.u32(self.block_size);
        out.u32(self.fragments);
        out.u16(self.compressor);
        out.u16(self.block_size.trailing_zeros() as u16);
        out.u16(self.flags.0);
        out.u16(self.ids);
        out.u16(4);
        out.u16(0);
        out.u64(self.root.0);
        out.u64(self.bytes_used);
        out.u64(self.id_table);
        out.u64(self.xattr_table);
        out.u64(self.inode_table);
        out.u64(self.directory_table);
        out.u64(self.fragment_table);
        out.u64(self.export_table);
        let mut bytes = [0; Self::SIZE];
        bytes.copy_from_slice(&out);
        bytes
    }
}
