//! Metadata blocks and references into them.

use super::FormatError;

/// Decoded size of every metadata block but the last of a table (`SQUASHFS_METADATA_SIZE`).
pub const METADATA_SIZE: usize = 8192;
/// Set in a metadata block's header when the block is stored as it is (`SQUASHFS_COMPRESSED_BIT`).
const UNCOMPRESSED: u16 = 1 << 15;

/// The two bytes before a metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetaHeader {
    /// Bytes that follow on disk.
    pub stored: u16,
    /// Whether they are compressed.
    pub compressed: bool,
}

impl MetaHeader {
    /// Its size on disk.
    pub const SIZE: usize = 2;

    /// Reads a header. A size of zero or above 8192 is refused.
    ///
    /// The kernel reads a size field of 0 as 0x8000; no block may be that long since a compressed block that does
    /// not shrink is stored as it is.
    pub fn decode(bytes: [u8; 2]) -> Result<Self, FormatError> {
        let raw = u16::from_le_bytes(bytes);
        let stored = raw & !UNCOMPRESSED;
        if stored == 0 || usize::from(stored) > METADATA_SIZE {
            return Err(FormatError::Value { what: "metadata block size", value: stored.into() });
        }
        Ok(Self { stored, compressed: raw & UNCOMPRESSED == 0 })
    }

    /// The header's bytes.
    pub fn encode(self) -> [u8; 2] {
        (self.stored | if self.compressed { 0 } else { UNCOMPRESSED }).to_le_bytes()
    }
}

/// A place in a table of metadata blocks: 48 bits of block position relative to the table, 16 bits of offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetaRef(pub u64);

impl MetaRef {
    /// A reference from its parts; `block` must fit 48 bits.
    pub fn new(block: u64, offset: u16) -> Self {
        Self(block << 16 | u64::from(offset))
    }

    /// Position of the metadata block, from the start of its table.
    pub fn block(self) -> u64 {
        self.0 >> 16
    }

    /// Offset into the decoded block.
    pub fn offset(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}
