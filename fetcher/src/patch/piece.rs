//! One piece: a zstd frame whose prefix are bytes of the old contents.

use std::io;

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter};

use super::format::{PIECE_MAX, REFERENCE_MAX};

/// So large is the window of a frame at most.
const WINDOW_LOG: u32 = ((PIECE_MAX + REFERENCE_MAX) as u64).next_power_of_two().trailing_zeros();

/// Above it patches get little smaller, and take far longer to make.
const LEVEL: i32 = 9;
/// Logarithm of the positions a frame's encoder knows: those of a whole piece and its reference.
const HASH_LOG: u32 = 23;

/// Encodes a piece against some old contents.
pub(super) fn encode(reference: &[u8], piece: &[u8]) -> io::Result<Vec<u8>> {
    let window = (reference.len() + piece.len()).next_power_of_two().trailing_zeros();
    let mut context = CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(LEVEL),
        CParameter::WindowLog(window.clamp(10, WINDOW_LOG)),
        CParameter::HashLog(HASH_LOG),
    ] {
        context.set_parameter(parameter).map_err(failed)?;
    }
    context.ref_prefix(reference).map_err(failed)?;
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(piece.len()));
    context.compress2(&mut out, piece).map_err(failed)?;
    Ok(out)
}

/// The `len` bytes that a frame encodes.
pub(super) fn decode(reference: &[u8], frame: &[u8], len: usize) -> io::Result<Vec<u8>> {
    let mut context = DCtx::create();
    context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(failed)?;
    context.ref_prefix(reference).map_err(failed)?;
    let mut out = Vec::with_capacity(len);
    context.decompress(&mut out, frame).map_err(failed)?;
    if out.len() != len {
        let what = format!("a piece of {} bytes, not {len}", out.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(out)
}

fn failed(code: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, zstd_safe::get_error_name(code))
}
