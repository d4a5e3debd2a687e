//! Decompressing.

use std::cell::RefCell;
use std::io::Read as _;

use flate2::{Decompress, FlushDecompress, Status};
use lzma_rust2::{LzmaReader, XzReader};

use super::lzo::{self, LzoError};
use super::{CodecError, Compression};

/// What an xz or lzma block's dictionary may take. Blocks have at most 1 MiB and a dictionary larger than a block
/// has no use; the decoder's own tables come on top.
const LZMA_LIMIT_KIB: u32 = 4096;

/// Decompresses blocks; one per thread.
pub struct Decompressor {
    compression: Compression,
    context: Context,
}

enum Context {
    Gzip(Decompress),
    Lzma,
    Lzo,
    Lz4,
    Xz,
    Zstd(zstd::bulk::Decompressor<'static>),
}

impl Decompressor {
    /// A decompressor; [`Compression::None`] gives gzip's, which is what such an image names.
    pub fn new(compression: Compression) -> Result<Self, CodecError> {
        let context = match compression {
            Compression::None | Compression::Gzip => Context::Gzip(Decompress::new(true)),
            Compression::Lzma => Context::Lzma,
            Compression::Lz4 => Context::Lz4,
            Compression::Xz => Context::Xz,
            Compression::Zstd => Context::Zstd(
                zstd::bulk::Decompressor::new()
                    .map_err(|source| CodecError::damaged(compression, source))?,
            ),
            Compression::Lzo => Context::Lzo,
        };
        Ok(Self { compression, context })
    }

    /// The compression.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Decodes the block `input` into `out`, whose old content is lost; more than `max` bytes are an error.
    /// Memory is bounded by `max` and a constant.
    pub fn decompress(
        &mut self,
        input: &[u8],
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let result = self.decode(input, max, out);
        if result.is_err() {
            out.clear();
        }
        result
    }

    fn decode(&mut self, input: &[u8], max: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let compression = self.compression;
        match &mut self.context {
            Context::Gzip(context) => {
                // One byte more than allowed, so that a block that is too long is told from one that is cut short.
                out.clear();
                out.reserve_exact(max + 1);
                context.reset(true);
                let status = context
                    .decompress_vec(input, out, FlushDecompress::Finish)
                    .map_err(|source| CodecError::damaged(compression, source))?;
                if status != Status::StreamEnd && out.len() <= max {
                    return Err(CodecError::truncated(compression));
                }
            }
            Context::Lzo => lzo::decompress(input, max, out).map_err(|source| match source {
                LzoError::TooLong => CodecError::TooLong { max },
                source => CodecError::damaged(compression, source),
            })?,
            Context::Lz4 => {
                // No clear: only what was never filled before has to be zeroed.
                out.resize(max, 0);
                let size = lz4_flex::block::decompress_into(input, out)
                    .map_err(|source| CodecError::damaged(compression, source))?;
                out.truncate(size);
            }
            Context::Zstd(context) => {
                out.clear();
                out.reserve_exact(max);
                context
                    .decompress_to_buffer(input, out)
                    .map_err(|source| CodecError::damaged(compression, source))?;
            }
            Context::Xz => {
                let reader = XzReader::new_mem_limit(input, false, LZMA_LIMIT_KIB);
                drain(compression, reader, max, out)?;
            }
            Context::Lzma => {
                let reader = LzmaReader::new_mem_limit(input, LZMA_LIMIT_KIB, None)
                    .map_err(|source| CodecError::damaged(compression, source))?;
                drain(compression, reader, max, out)?;
            }
        }
        if out.len() > max { Err(CodecError::TooLong { max }) } else { Ok(()) }
    }
}

/// Reads a decoder to its end, which makes it check its checksums, and one byte further than allowed at most.
fn drain(
    compression: Compression,
    reader: impl std::io::Read,
    max: usize,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    out.clear();
    out.reserve_exact(max + 1);
    reader
        .take(max as u64 + 1)
        .read_to_end(out)
        .map(drop)
        .map_err(|source| CodecError::damaged(compression, source))
}

thread_local! {
    /// One context per compression and thread: at most seven, made when first used.
    static CONTEXTS: RefCell<Vec<Decompressor>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with this thread's decompressor for `compression`.
pub fn with_decompressor<T>(
    compression: Compression,
    f: impl FnOnce(&mut Decompressor) -> Result<T, CodecError>,
) -> Result<T, CodecError> {
    // Taken out while in use, so that `f` may call this function again.
    let found = CONTEXTS.with_borrow_mut(|all| {
        all.iter().position(|d| d.compression == compression).map(|i| all.swap_remove(i))
    });
    let mut context = match found {
        Some(context) => context,
        None => Decompressor::new(compression)?,
    };
    let result = f(&mut context);
    CONTEXTS.with_borrow_mut(|all| all.push(context));
    result
}
