//! Compressing.

use std::io::Write as _;

use flate2::{Compress, FlushCompress, Status};
use lz4_flex::block::CompressTable;
use lzma_rust2::{CheckType, XzOptions, XzWriter};

use super::options::level_or_default;
use super::{CodecError, Compression, CompressorOptions};

/// Compresses blocks; one per thread.
pub struct Compressor {
    compression: Compression,
    level: u32,
    context: Context,
}

enum Context {
    None,
    Gzip(Compress),
    Lz4(CompressTable),
    Xz(Box<XzOptions>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// A compressor for blocks of up to `block_size` bytes; `level: None` takes the default of
    /// [`Compression::levels`].
    pub fn new(
        compression: Compression,
        level: Option<u32>,
        block_size: u32,
    ) -> Result<Self, CodecError> {
        let level = level_or_default(compression, level)?;
        let context = match compression {
            Compression::None => Context::None,
            Compression::Gzip => {
                Context::Gzip(Compress::new(flate2::Compression::new(level), true))
            }
            // Always the large table: which one is used must not depend on earlier blocks.
            Compression::Lz4 => Context::Lz4(CompressTable::large()),
            Compression::Xz => {
                let mut options = XzOptions::with_preset(level);
                // The kernel's decoder has a dictionary of one block and knows no check but CRC32.
                options.lzma_options.dict_size = block_size;
                options.set_check_sum_type(CheckType::Crc32);
                Context::Xz(Box::new(options))
            }
            Compression::Zstd => Context::Zstd(
                zstd::bulk::Compressor::new(level as i32)
                    .map_err(|source| CodecError::compress(compression, source))?,
            ),
            Compression::Lzma | Compression::Lzo => {
                return Err(CodecError::Unsupported { compression, direction: "compression" });
            }
        };
        Ok(Self { compression, level, context })
    }

    /// The compression.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The level, given or default; 0 where there is nothing to choose.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// The options that an image made with this compressor has to record, if any.
    pub fn options(&self) -> Option<CompressorOptions> {
        CompressorOptions::to_record(self.compression, self.level)
    }

    /// Compresses `input` into `out`, whose old content is lost. `false` says that the block does not shrink and
    /// has to be stored as it is; `out` is then empty.
    pub fn compress(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<bool, CodecError> {
        let compression = self.compression;
        match &mut self.context {
            Context::None => out.clear(),
            Context::Gzip(context) => {
                out.clear();
                out.reserve(input.len());
                context.reset();
                let status = context
                    .compress_vec(input, out, FlushCompress::Finish)
                    .map_err(|source| CodecError::compress(compression, source))?;
                if status != Status::StreamEnd {
                    out.clear();
                }
            }
            Context::Lz4(table) => {
                out.resize(lz4_flex::block::get_maximum_output_size(input.len()), 0);
                let size = lz4_flex::block::compress_into_with_table(input, out, table)
                    .map_err(|source| CodecError::compress(compression, source))?;
                out.truncate(size);
            }
            Context::Xz(options) => {
                out.clear();
                let wrap = |source| CodecError::compress(compression, source);
                let mut writer =
                    XzWriter::new(&mut *out, options.as_ref().clone()).map_err(wrap)?;
                writer.write_all(input).map_err(wrap)?;
                writer.finish().map_err(wrap)?;
            }
            Context::Zstd(context) => {
                out.clear();
                out.reserve(zstd::zstd_safe::compress_bound(input.len()));
                context
                    .compress_to_buffer(input, out)
                    .map_err(|source| CodecError::compress(compression, source))?;
            }
        }
        let shrunk = !out.is_empty() && out.len() < input.len();
        if !shrunk {
            out.clear();
        }
        Ok(shrunk)
    }
}
