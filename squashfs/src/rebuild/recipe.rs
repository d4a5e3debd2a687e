//! How an image follows from its raw contents.
//!
//! ```text
//! offset  bytes
//! 0       8      "micarec2"
//! 8       4      length of the body, at most 16 MiB
//! 12      …      the body in a zstd frame, or as it is if that is no shorter
//!
//! body:   32     BLAKE3 of the image
//!         …      length of the image, length of the contents
//!         1      compressor id of the format, 0 if nothing is compressed
//!         …      level, logarithm of the block size, length of the library's name
//!         …      name and version of the library
//!         …      runs to the end: 8 * count + form, length of each piece's contents; form 3 also its stored length, form 4 where
//!                it is in the old image
//! ```
//!
//! Numbers without a length are LEB128. Forms: 0 verbatim (count 1), 1 data block, 2 metadata block, 3 metadata block
//! filled up with a skippable frame to a stored length, its header included, 4 bytes of the old image's file (count 1), which are not
//! in the contents.

use super::Form;
use crate::codec::{Compression, Compressor, with_decompressor};
use crate::format::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, METADATA_SIZE, MetaHeader};

const MAGIC: [u8; 8] = *b"micarec2";
/// Enough for an image of some 100 GB.
const BODY_MAX: usize = 16 << 20;
const HEADER: usize = MAGIC.len() + 4;
/// Recipes are made once and shipped often.
const LEVEL: u32 = 19;

/// How an image follows from its raw contents: see [the module](super).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub(super) digest: [u8; 32],
    pub(super) image_len: u64,
    pub(super) raw_len: u64,
    pub(super) compression: Compression,
    pub(super) level: u32,
    pub(super) block_size: u32,
    pub(super) library: String,
    /// Encoded, so that an image of any size costs little memory.
    pub(super) runs: Vec<u8>,
}

/// Bytes that are no recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// The magic is missing.
    #[error("not a recipe of an image, or one of another version")]
    Magic,
    /// Longer than a recipe may be.
    #[error("the recipe is {0} bytes long, more than {BODY_MAX}")]
    TooLong(u64),
    /// The body does not decode.
    #[error("the recipe is damaged")]
    Damaged,
    /// A number that cannot be.
    #[error("the recipe has {what} {value}")]
    Value {
        /// Of what.
        what: &'static str,
        /// The number.
        value: u64,
    },
}

/// So many pieces of one form and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) form: Form,
    pub(super) count: u64,
    pub(super) len: u64,
    /// Where copied bytes are in the file of the old image.
    pub(super) from: u64,
}

impl Recipe {
    /// BLAKE3 of the image.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Length of the image.
    pub fn image_len(&self) -> u64 {
        self.image_len
    }

    /// Length of the contents.
    pub fn raw_len(&self) -> u64 {
        self.raw_len
    }

    /// How the blocks are compressed; none if no block compresses to the same bytes again.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The level.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// Name and version of the library that compresses.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Bytes of the image that are in the contents as they are: blocks that do not compress to the same bytes again,
    /// blocks that are stored uncompressed, padding.
    pub fn verbatim(&self) -> u64 {
        self.bytes_of(Form::Verbatim)
    }

    /// Bytes of the image that are copied from the old one.
    pub fn copied(&self) -> u64 {
        self.bytes_of(Form::Copied)
    }

    fn bytes_of(&self, form: Form) -> u64 {
        self.runs().filter(|run| run.form == form).map(|run| run.len).sum()
    }

    /// The recipe as it is shipped.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = self.digest.to_vec();
        put(&mut body, self.image_len);
        put(&mut body, self.raw_len);
        body.push(match self.compression {
            Compression::None => 0,
            some => some.id() as u8,
        });
        put(&mut body, self.level.into());
        put(&mut body, self.block_size.trailing_zeros().into());
        put(&mut body, self.library.len() as u64);
        body.extend_from_slice(self.library.as_bytes());
        body.extend_from_slice(&self.runs);
        let mut packed = Vec::new();
        let shrunk = Compressor::new(Compression::Zstd, Some(LEVEL), BLOCK_SIZE_MAX)
            .and_then(|mut zstd| zstd.compress(&body, &mut packed));
        let packed = if matches!(shrunk, Ok(true)) { &packed } else { &body };
        [&MAGIC[..], &(body.len() as u32).to_le_bytes(), packed.as_slice()].concat()
    }

    /// Reads a shipped recipe. Memory is bounded whatever the bytes say.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecipeError> {
        let (header, packed) = bytes.split_at_checked(HEADER).ok_or(RecipeError::Magic)?;
        let (magic, len) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(RecipeError::Magic);
        }
        let len = len.iter().rev().fold(0, |len, &byte| len << 8 | usize::from(byte));
        if len > BODY_MAX || packed.len() > BODY_MAX {
            return Err(RecipeError::TooLong(len.max(packed.len()) as u64));
        }
        if packed.len() == len {
            return Self::parse_body(packed);
        }
        let mut body = Vec::new();
        with_decompressor(Compression::Zstd, |zstd| zstd.decompress(packed, len, &mut body))
            .map_err(|_| RecipeError::Damaged)?;
        if body.len() != len {
            return Err(RecipeError::Damaged);
        }
        Self::parse_body(&body)
    }

    fn parse_body(body: &[u8]) -> Result<Self, RecipeError> {
        let (digest, mut rest) = body.split_first_chunk().ok_or(RecipeError::Damaged)?;
        let mut number = || take(&mut rest).ok_or(RecipeError::Damaged);
        let (image_len, raw_len) = (number()?, number()?);
        let id = number()?;
        let (level, log, name_len) = (number()?, number()?, number()?);
        let bad = |what, value| RecipeError::Value { what, value };
        let compression = match id {
            0 => Compression::None,
            _ => u16::try_from(id)
                .ok()
                .and_then(Compression::from_id)
                .ok_or(bad("compressor", id))?,
        };
        let block_size = 1_u32.checked_shl(log as u32).filter(|_| log < 32);
        let block_size = block_size
            .filter(|size| (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(size))
            .ok_or(bad("block size", log))?;
        let level = u32::try_from(level).map_err(|_| bad("level", level))?;
        let (name, runs) = usize::try_from(name_len)
            .ok()
            .and_then(|len| rest.split_at_checked(len))
            .ok_or(RecipeError::Damaged)?;
        let library = String::from_utf8(name.to_vec()).map_err(|_| RecipeError::Damaged)?;
        let runs = runs.to_vec();
        let recipe = Self {
            digest: *digest,
            image_len,
            raw_len,
            compression,
            level,
            block_size,
            library,
            runs,
        };
        recipe.check_runs()?;
        Ok(recipe)
    }

    fn check_runs(&self) -> Result<(), RecipeError> {
        let mut rest = self.runs.as_slice();
        let mut total = 0_u64;
        while !rest.is_empty() {
            let run = Run::take(&mut rest).ok_or(RecipeError::Damaged)?;
            let longest = match run.form {
                // What is written is bounded by the length of the image.
                Form::Verbatim | Form::Copied => u64::MAX,
                Form::Data => self.block_size.into(),
                Form::Meta | Form::Filled(_) => METADATA_SIZE as u64,
            };
            if run.len == 0 || run.len > longest {
                return Err(RecipeError::Value { what: "a piece of length", value: run.len });
            }
            if run.count == 0 || (longest == u64::MAX && run.count != 1) {
                return Err(RecipeError::Value { what: "a number of pieces", value: run.count });
            }
            if run.form == Form::Copied {
                let end = run.from.checked_add(run.len);
                end.ok_or(RecipeError::Value { what: "bytes copied from", value: run.from })?;
                continue;
            }
            total = run
                .count
                .checked_mul(run.len)
                .and_then(|len| total.checked_add(len))
                .ok_or(RecipeError::Value { what: "a piece of length", value: run.len })?;
        }
        if total != self.raw_len {
            return Err(RecipeError::Value { what: "contents of length", value: total });
        }
        Ok(())
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = Run> + use<'_> {
        let mut rest = self.runs.as_slice();
        // All of them were parsed before, so the end is the end.
        std::iter::from_fn(move || Run::take(&mut rest))
    }
}

impl Run {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let form = match self.form {
            Form::Verbatim => 0,
            Form::Data => 1,
            Form::Meta => 2,
            Form::Filled(_) => 3,
            Form::Copied => 4,
        };
        put(out, self.count << 3 | form);
        put(out, self.len);
        match self.form {
            Form::Filled(stored) => put(out, stored.into()),
            Form::Copied => put(out, self.from),
            _ => {}
        }
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        let head = take(rest)?;
        let (count, len, mut from) = (head >> 3, take(rest)?, 0);
        let form = match head & 7 {
            0 => Form::Verbatim,
            1 => Form::Data,
            2 => Form::Meta,
            3 => {
                let stored = u16::try_from(take(rest)?).ok();
                Form::Filled(
                    stored.filter(|&s| usize::from(s) <= METADATA_SIZE + MetaHeader::SIZE)?,
                )
            }
            4 => {
                from = take(rest)?;
                Form::Copied
            }
            _ => return None,
        };
        Some(Self { form, count, len, from })
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            return None;
        }
        value |= part << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let mut runs = Vec::new();
        for (form, count, len, from) in [
            (Form::Verbatim, 1, 4096, 0),
            (Form::Data, 1000, 131_072, 0),
            (Form::Copied, 1, 1 << 30, 1 << 35),
            (Form::Meta, 3, 8192, 0),
            (Form::Filled(766), 2, 8192, 0),
            (Form::Verbatim, 1, 1 << 40, 0),
        ] {
            Run { form, count, len, from }.put(&mut runs);
        }
        Recipe {
            digest: [7; 32],
            image_len: 1 << 40,
            raw_len: 4096 + 1000 * 131_072 + 5 * 8192 + (1 << 40),
            compression: Compression::Zstd,
            level: 19,
            block_size: 131_072,
            library: "zstd-1.2.3".to_owned(),
            runs,
        }
    }

    #[test]
    fn comes_back_from_its_bytes() {
        let recipe = recipe();
        let bytes = recipe.encode();
        assert!(bytes.len() < 100, "{}", bytes.len());
        assert_eq!(Recipe::parse(&bytes), Ok(recipe.clone()));
        assert_eq!((recipe.verbatim(), recipe.copied()), (4096 + (1 << 40), 1 << 30));
        assert_eq!(recipe.runs().count(), 6);
    }

    #[test]
    fn damage_is_refused() {
        let good = recipe().encode();
        for len in 0..good.len() {
            assert!(Recipe::parse(&good[..len]).is_err(), "{len}");
        }
        // Any number may be another; the sum of the lengths has to be right all the same.
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                if let Ok(recipe) = Recipe::parse(&bad) {
                    let contents = recipe.runs().filter(|run| run.form != Form::Copied);
                    let total: u64 = contents.map(|run| run.count * run.len).sum();
                    assert_eq!(total, recipe.raw_len);
                }
            }
        }
        let mut long = good.clone();
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Recipe::parse(&long), Err(RecipeError::TooLong(u32::MAX.into())));
    }
}
