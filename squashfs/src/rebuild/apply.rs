//! Making an image from its contents.

use std::io::{self, Read, Write};
use std::num::NonZero;

use super::recipe::Run;
use super::{Contents, Encoder, Form, Recipe, STEP};
use crate::codec::CodecError;
use crate::jobs;

/// An image that cannot be made from what is there.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The library that compressed the image is not the one this program has.
    #[error("the image was compressed by {want}, this program has {have}")]
    Library {
        /// What the recipe names.
        want: String,
        /// What there is.
        have: String,
    },
    /// The compressor failed, or does not have what the recipe asks for.
    #[error("cannot compress a block")]
    Codec(#[from] CodecError),
    /// The contents cannot be read, or are too short.
    #[error("cannot read the contents of the image")]
    Contents(#[source] io::Error),
    /// The old image cannot be read, is too short, or was not given.
    #[error("cannot copy from the old image")]
    Old(#[source] io::Error),
    /// The image cannot be written.
    #[error("cannot write the image")]
    Output(#[source] io::Error),
    /// The contents give another image.
    #[error("the contents and the recipe give another image")]
    Mismatch,
}

/// Makes an image from its contents and what it has of the `old` one, compressing on `threads` threads (`None`: all processors).
/// Reads exactly [`Recipe::raw_len`] bytes of the contents and writes at most [`Recipe::image_len`].
///
/// What was written before an error, [`RebuildError::Mismatch`] above all, is not the image: throw it away.
pub fn rebuild(
    recipe: &Recipe,
    old: Option<&Contents<'_>>,
    contents: &mut dyn Read,
    out: &mut dyn Write,
    threads: Option<NonZero<usize>>,
) -> Result<(), RebuildError> {
    let have = recipe.compression.library();
    if have != recipe.library {
        return Err(RebuildError::Library { want: recipe.library.clone(), have });
    }
    let mut jobs = pieces(recipe);
    let mut hasher = blake3::Hasher::new();
    let mut written = 0;
    jobs::ordered(
        recipe.encoders(jobs::count(threads))?,
        jobs::window(recipe.block_size),
        encode,
        || {
            let Some((form, len, from)) = jobs.next() else { return Ok(None) };
            let mut raw = vec![0; len];
            if form == Form::Copied {
                let none = || RebuildError::Old(io::ErrorKind::NotFound.into());
                old.ok_or_else(none)?.read_file(&mut raw, from).map_err(RebuildError::Old)?;
            } else {
                contents.read_exact(&mut raw).map_err(RebuildError::Contents)?;
            }
            Ok(Some((form, raw)))
        },
        |block| {
            let block = block?;
            written += block.len() as u64;
            if written > recipe.image_len {
                return Err(RebuildError::Mismatch);
            }
            hasher.update(&block);
            out.write_all(&block).map_err(RebuildError::Output)
        },
    )?;
    if written != recipe.image_len || *hasher.finalize().as_bytes() != recipe.digest {
        return Err(RebuildError::Mismatch);
    }
    out.flush().map_err(RebuildError::Output)
}

/// Form, length, and place in the old image of one piece after the other, those that are not blocks in parts.
fn pieces(recipe: &Recipe) -> impl Iterator<Item = (Form, usize, u64)> + use<'_> {
    recipe.runs().flat_map(|Run { form, count, len, from }| {
        let step = if matches!(form, Form::Verbatim | Form::Copied) { STEP } else { len };
        (0..count).flat_map(move |_| {
            (0..len.div_ceil(step)).map(move |part| {
                let skip = part * step;
                (form, (len - skip).min(step) as usize, from + skip)
            })
        })
    })
}

fn encode(encoder: &mut Encoder, (form, raw): (Form, Vec<u8>)) -> Result<Vec<u8>, RebuildError> {
    if matches!(form, Form::Verbatim | Form::Copied) {
        return Ok(raw);
    }
    let mut block = Vec::new();
    let made = encoder.encode(form, &raw, &mut block)?;
    if !made {
        // A block that does not shrink is verbatim in the recipe of the image that has it.
        return Err(RebuildError::Mismatch);
    }
    // What waits for its turn does not hold the room that compressing took.
    block.shrink_to_fit();
    Ok(block)
}
