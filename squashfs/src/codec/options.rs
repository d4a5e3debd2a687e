//! The compressor options behind the superblock (`squashfs-tools`' `*_wrapper.h`).

use std::fmt;

use super::{CodecError, Compression};
use crate::format::FormatError;

/// How an image's blocks were compressed, as far as the image records it. A reader does not need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompressorOptions {
    /// gzip, where not level 9, window 15 and the default strategy.
    Gzip {
        /// Level, 1 to 9.
        level: u32,
        /// Base-two logarithm of the window, 8 to 15.
        window: u16,
        /// Bit set of the strategies tried.
        strategies: u16,
    },
    /// lzo.
    Lzo {
        /// Algorithm, 0 to 4.
        algorithm: u32,
        /// Level of algorithm 4.
        level: u32,
    },
    /// lz4; always present.
    Lz4 {
        /// Format version: 1, the legacy block format.
        version: u32,
        /// Bit 0: made in high compression mode.
        flags: u32,
    },
    /// xz, where not the block size as dictionary and no filter.
    Xz {
        /// Dictionary size.
        dictionary: u32,
        /// Bit set of the branch filters tried.
        filters: u32,
    },
    /// zstd, where not level 15.
    Zstd {
        /// Level, 1 to 22.
        level: u32,
    },
}

impl CompressorOptions {
    /// Size of the options of this compression; `None` if it has none.
    pub fn size(compression: Compression) -> Option<usize> {
        match compression {
            Compression::Gzip | Compression::Lzo | Compression::Lz4 | Compression::Xz => Some(8),
            Compression::Zstd => Some(4),
            Compression::None | Compression::Lzma => None,
        }
    }

    /// Reads options from the content of their metadata block.
    pub fn decode(compression: Compression, bytes: &[u8]) -> Result<Self, FormatError> {
        let word = |at: usize| -> Result<u32, FormatError> {
            bytes
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map(u32::from_le_bytes)
                .ok_or(FormatError::Short { what: "compressor options" })
        };
        Ok(match compression {
            Compression::Gzip => {
                let packed = word(4)?;
                let (window, strategies) = (packed as u16, (packed >> 16) as u16);
                Self::Gzip { level: word(0)?, window, strategies }
            }
            Compression::Lzo => Self::Lzo { algorithm: word(0)?, level: word(4)? },
            Compression::Lz4 => Self::Lz4 { version: word(0)?, flags: word(4)? },
            Compression::Xz => Self::Xz { dictionary: word(0)?, filters: word(4)? },
            Compression::Zstd => Self::Zstd { level: word(0)? },
            Compression::None | Compression::Lzma => {
                return Err(FormatError::Value {
                    what: "compressor with options",
                    value: compression.id().into(),
                });
            }
        })
    }

    /// The content of their metadata block, which is stored uncompressed.
    pub fn encode(&self) -> Vec<u8> {
        let words: &[u32] = match *self {
            Self::Gzip { level, window, strategies } => {
                &[level, u32::from(window) | u32::from(strategies) << 16]
            }
            Self::Lzo { algorithm, level } => &[algorithm, level],
            Self::Lz4 { version, flags } => &[version, flags],
            Self::Xz { dictionary, filters } => &[dictionary, filters],
            Self::Zstd { level } => &[level],
        };
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// What an image made with this compression and level has to record; `None` for the defaults of
    /// squashfs-tools, which are not recorded.
    pub(crate) fn to_record(compression: Compression, level: u32) -> Option<Self> {
        match compression {
            Compression::Gzip if level != 9 => {
                Some(Self::Gzip { level, window: 15, strategies: 0 })
            }
            Compression::Lz4 => Some(Self::Lz4 { version: 1, flags: 0 }),
            Compression::Zstd if level != 15 => Some(Self::Zstd { level }),
            _ => None,
        }
    }
}

/// In words, as far as it matters to people: empty for plain lz4.
impl fmt::Display for CompressorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Gzip { level, window, strategies } => {
                write!(f, "level {level}, window {window}")?;
                if strategies != 0 {
                    write!(f, ", strategies {strategies:#x}")?;
                }
                Ok(())
            }
            // Only algorithm 4, lzo1x_999, has levels.
            Self::Lzo { algorithm: 4, level } => write!(f, "level {level}"),
            Self::Lzo { algorithm, .. } => write!(f, "algorithm {algorithm}"),
            Self::Lz4 { flags, .. } if flags & 1 != 0 => f.write_str("high compression"),
            Self::Lz4 { .. } => Ok(()),
            Self::Xz { dictionary, filters } => {
                write!(f, "dictionary {dictionary}, branch filters {filters:#x}")
            }
            Self::Zstd { level } => write!(f, "level {level}"),
        }
    }
}

/// Checks a level, or gives the default one.
pub(crate) fn level_or_default(
    compression: Compression,
    level: Option<u32>,
) -> Result<u32, CodecError> {
    match (compression.levels(), level) {
        (Some((_, default, _)), None) => Ok(default),
        (None, None) => Ok(0),
        (Some((low, _, high)), Some(level)) if (low..=high).contains(&level) => Ok(level),
        (_, Some(level)) => Err(CodecError::Level { compression, level }),
    }
}
