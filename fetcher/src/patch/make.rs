//! Making a patch: see [the module](super).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write};
use std::num::NonZero;
use std::path::Path;

use mica_graph::{Blob, Digest};
use mica_squashfs::rebuild::{Contents, ContentsError, DescribeError, Stored, describe};
use mica_squashfs::{Image, OpenOptions, Source as _};

use super::format::{PatchIndex, Piece};
use super::piece;
use super::reference::{Files, Old};
use crate::parallel;

/// A patch that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// An image cannot be opened.
    #[error(transparent)]
    Open(#[from] mica_squashfs::OpenError),
    /// The new image cannot be described.
    #[error("cannot describe the new image")]
    Describe(#[from] DescribeError),
    /// The old image cannot be read.
    #[error("cannot read the old image")]
    Old(#[from] ContentsError),
    /// A piece cannot be read or encoded.
    #[error("cannot encode a piece of the patch")]
    Piece(#[source] io::Error),
    /// The patch cannot be written.
    #[error("cannot write the patch")]
    Write(#[source] io::Error),
}

/// A patch that was made.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// All of it.
    pub(super) patch: Blob,
    /// Its index, which comes first.
    pub(super) index: Blob,
    /// What a node needs to compress again.
    pub(super) library: String,
}

/// Opens an image whose contents are read about in order; so many bytes of them are kept.
pub(super) fn open(path: &Path, kept: usize) -> Result<Image, mica_squashfs::OpenError> {
    Image::open(path, &OpenOptions { data_cache_bytes: kept, ..OpenOptions::default() })
}

/// Writes what makes `new` of `old`, the image with the digest `old_digest`, into `out`. `scratch` is an empty file. `made` is told
/// how much of the contents is done.
pub(super) fn make(
    old: &Image,
    old_digest: Digest,
    new: &Image,
    scratch: &mut File,
    out: &mut dyn Write,
    made: &dyn Fn(u64, u64),
) -> Result<Made, MakeError> {
    make_pieces(STEP, old, old_digest, new, scratch, out, made)
}

/// The same with pieces of `step` bytes.
pub(super) fn make_pieces(
    step: u64,
    old: &Image,
    old_digest: Digest,
    new: &Image,
    scratch: &mut File,
    out: &mut dyn Write,
    done: &dyn Fn(u64, u64),
) -> Result<Made, MakeError> {
    let old = Contents::of(old)?;
    let known = Old::of(&old)?;
    let described = describe(new, Some(&Stored::of(&old)?), None)?;
    let files = known.pair(&described.contents)?;
    let maker = Maker { step, old: &old, known, new: &described.contents, files };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS);
    let starts: Vec<u64> = (0..described.contents.len().div_ceil(step)).map(|i| i * step).collect();
    let mut pieces = Vec::with_capacity(starts.len());
    // A few at a time: what is done need not stay in memory.
    for round in starts.chunks(threads) {
        for made in parallel::map(threads, round, |start| maker.piece(*start)) {
            let (piece, frame) = made.map_err(MakeError::Piece)?;
            scratch.write_all(&frame).map_err(MakeError::Write)?;
            pieces.push(piece);
        }
        let so_far = pieces.len() as u64 * step;
        done(so_far.min(described.contents.len()), described.contents.len());
    }
    let library = described.recipe.library().to_owned();
    let old_len = old.len();
    let index = PatchIndex { old: old_digest, old_len, recipe: described.recipe, pieces }.encode();
    let (patch, index) = join(&index, scratch, out).map_err(MakeError::Write)?;
    Ok(Made { patch, index, library })
}

/// Contents of a piece.
const STEP: u64 = 4 << 20;
/// At most so much of the old contents for each byte of the new.
const REFERENCE: u64 = 2;
/// More would take more memory.
const THREADS: usize = 2;

struct Maker<'a> {
    step: u64,
    old: &'a Contents<'a>,
    known: Old,
    new: &'a Contents<'a>,
    files: Files,
}

impl Maker<'_> {
    fn piece(&self, start: u64) -> io::Result<(Piece, Vec<u8>)> {
        let mut contents = vec![0; (self.new.len() - start).min(self.step) as usize];
        self.new.read_exact_at(&mut contents, start)?;
        let reference = self.known.reference(&self.files, start, &contents, REFERENCE * self.step);
        let mut prefix = Vec::new();
        read_runs(self.old, &reference, &mut prefix)?;
        let frame = piece::encode(&prefix, &contents)?;
        let (len, stored) = (contents.len() as u32, frame.len() as u32);
        Ok((Piece { len, stored, digest: Digest::of(&frame), reference }, frame))
    }
}

/// Puts runs of some contents into `joined`.
pub(super) fn read_runs(
    contents: &Contents<'_>,
    runs: &[(u64, u32)],
    joined: &mut Vec<u8>,
) -> io::Result<()> {
    joined.resize(runs.iter().map(|(_, len)| *len as usize).sum(), 0);
    let mut rest = joined.as_mut_slice();
    for (position, len) in runs {
        let (head, tail) = rest.split_at_mut(*len as usize);
        contents.read_exact_at(head, *position)?;
        rest = tail;
    }
    Ok(())
}

/// The index and then the pieces.
fn join(index: &[u8], pieces: &mut File, out: &mut dyn Write) -> io::Result<(Blob, Blob)> {
    out.write_all(index)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(index);
    let mut size = index.len() as u64;
    pieces.rewind()?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match pieces.read(&mut buffer)? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                out.write_all(&buffer[..n])?;
                size += n as u64;
            }
        }
    }
    let index = Blob { digest: Digest::of(index), size: index.len() as u64 };
    Ok((Blob { digest: hasher.finalize().into(), size }, index))
}
