//! Compression of blocks: one compressor or decompressor context, used again for block after block.
//!
//! A block is compressed on its own. What does not shrink is stored as it is, which the block's size field says, so
//! "no compression" is not a compressor of its own: such an image names gzip and compresses nothing.
//!
//! | id | name | read | written | options stored behind the superblock |
//! |---|---|---|---|---|
//! | 1 | gzip (a zlib stream) | yes | levels 1-9 | level, window, strategies |
//! | 2 | lzma (an lzma-alone stream) | yes | no | none |
//! | 3 | lzo | yes | no | algorithm, level |
//! | 4 | xz | yes, with branch filters | levels 0-9 | dictionary size, filters |
//! | 5 | lz4 (a block) | yes | one level | version, flags: always there, the kernel demands them |
//! | 6 | zstd | yes | levels 1-22 | level |
//!
//! Output depends on input, compression, level and block size alone, never on what a context did before: packing
//! is reproducible. Memory of a decoder is bounded whatever the input says.

mod compress;
mod decompress;
mod lzo;
mod options;

use std::fmt;
use std::str::FromStr;

pub use compress::Compressor;
pub use decompress::{Decompressor, with_decompressor};
pub use options::CompressorOptions;

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// Blocks are stored as they are.
    None,
    /// Deflate in a zlib stream.
    Gzip,
    /// LZMA 1; deprecated, no kernel reads it.
    Lzma,
    /// LZO 1X.
    Lzo,
    /// LZMA 2 in an xz container.
    Xz,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// All, in the order of their ids.
    pub const ALL: [Self; 7] =
        [Self::None, Self::Gzip, Self::Lzma, Self::Lzo, Self::Xz, Self::Lz4, Self::Zstd];

    /// The superblock's compressor id. [`Compression::None`] is written as gzip.
    pub fn id(self) -> u16 {
        match self {
            Self::None | Self::Gzip => 1,
            Self::Lzma => 2,
            Self::Lzo => 3,
            Self::Xz => 4,
            Self::Lz4 => 5,
            Self::Zstd => 6,
        }
    }

    /// The compressor of a superblock's id.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().skip(1).find(|c| c.id() == id)
    }

    /// The name people use.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// Name and version of the library behind it: another version may compress to other bytes.
    pub fn library(self) -> String {
        match self {
            Self::Zstd => format!("zstd-{}", zstd::zstd_safe::version_string()),
            Self::Gzip => "zlib-rs-0.6.8".to_owned(),
            Self::Lz4 => "lz4_flex-0.14.0".to_owned(),
            Self::Xz => "lzma-rust2-0.25.0".to_owned(),
            Self::None | Self::Lzma | Self::Lzo => "none".to_owned(),
        }
    }

    /// The levels [`Compressor`] takes, lowest, default and highest; `None` where there is nothing to choose.
    pub fn levels(self) -> Option<(u32, u32, u32)> {
        match self {
            Self::Gzip => Some((1, 9, 9)),
            Self::Xz => Some((0, 6, 9)),
            Self::Zstd => Some((1, 3, 22)),
            Self::None | Self::Lzma | Self::Lzo | Self::Lz4 => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Compression {
    type Err = CodecError;

    fn from_str(name: &str) -> Result<Self, CodecError> {
        Self::ALL
            .into_iter()
            .find(|c| c.name() == name)
            .ok_or_else(|| CodecError::Name { name: name.to_owned() })
    }
}

/// Why a block cannot be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A name of no compression.
    #[error("there is no compression called {name:?}")]
    Name {
        /// The name.
        name: String,
    },
    /// The compression is known, but not supported in this direction.
    #[error("{compression} {direction} is not supported")]
    Unsupported {
        /// The compression.
        compression: Compression,
        /// `compression` or `decompression`.
        direction: &'static str,
    },
    /// A level outside of what the compression has.
    #[error("{compression} has no level {level}")]
    Level {
        /// The compression.
        compression: Compression,
        /// The level asked for.
        level: u32,
    },
    /// The compressed bytes are not valid, or not complete.
    #[error("damaged {compression} data")]
    Damaged {
        /// The compression.
        compression: Compression,
        /// What the decoder says.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The block decodes to more bytes than it may.
    #[error("the block decodes to more than {max} bytes")]
    TooLong {
        /// Bytes allowed.
        max: usize,
    },
    /// The compressor failed, for want of memory for example.
    #[error("cannot compress with {compression}")]
    Compress {
        /// The compression.
        compression: Compression,
        /// What the compressor says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CodecError {
    fn damaged(
        compression: Compression,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Damaged { compression, source: Some(source.into()) }
    }

    fn truncated(compression: Compression) -> Self {
        Self::Damaged { compression, source: None }
    }

    fn compress(
        compression: Compression,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Compress { compression, source: source.into() }
    }
}

#[cfg(test)]
mod tests;
