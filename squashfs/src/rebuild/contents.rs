//! The raw contents of an image.

use std::io::{self, Write};
use std::num::NonZero;
use std::sync::Arc;

use super::pieces::{self, Found};
use super::{Form, STEP};
use crate::jobs;
use crate::read::{BlockRef, Image, ReadError};
use crate::source::Source;

/// An image whose raw contents cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// The image cannot be read.
    #[error("cannot read the image")]
    Read(#[from] ReadError),
    /// Its file cannot be read.
    #[error("cannot read the image")]
    Image(#[source] io::Error),
    /// The contents cannot be written.
    #[error("cannot write the contents of the image")]
    Write(#[source] io::Error),
}

/// Where a piece of the image starts in the file and in the contents; it ends where the next starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) position: u64,
    pub(super) raw: u64,
    pub(super) form: Form,
}

/// The raw contents of an image, to be read at any position from many threads: see [the module](super).
pub struct Contents<'a> {
    image: &'a Image,
    /// At least two; the last is the end.
    pieces: Vec<Piece>,
}

/// One piece with its ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// In the file.
    pub(super) position: u64,
    pub(super) stored: u64,
    /// In the contents.
    pub(super) raw: u64,
    pub(super) len: u64,
    pub(super) form: Form,
}

/// Collects pieces in order.
pub(super) struct Builder {
    pieces: Vec<Piece>,
    end: Piece,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self { pieces: Vec::new(), end: Piece { position: 0, raw: 0, form: Form::Verbatim } }
    }

    /// Appends a piece; those that are not blocks are joined.
    pub(super) fn push(&mut self, form: Form, stored: u64, len: u64) {
        let joins = matches!(form, Form::Verbatim | Form::Copied)
            && self.pieces.last().is_some_and(|last| last.form == form);
        if stored > 0 && !joins {
            self.pieces.push(Piece { form, ..self.end });
        }
        self.end.position += stored;
        self.end.raw += len;
    }

    pub(super) fn position(&self) -> u64 {
        self.end.position
    }

    pub(super) fn finish(mut self, image: &Image) -> Contents<'_> {
        self.pieces.push(self.end);
        Contents { image, pieces: self.pieces }
    }
}

impl<'a> Contents<'a> {
    /// The contents of an image, all its compressed blocks decoded: what a patch refers to. Reads metadata only, and
    /// keeps 24 bytes per block.
    pub fn of(image: &'a Image) -> Result<Self, ContentsError> {
        let len = image.core().source.len().map_err(ContentsError::Image)?;
        let mut builder = Builder::new();
        let verbatim = |builder: &mut Builder, to: u64| {
            let gap = to.saturating_sub(builder.position());
            builder.push(Form::Verbatim, gap, gap);
        };
        for Found { position, stored, len, form } in pieces::find(image)? {
            verbatim(&mut builder, position);
            builder.push(form, stored.into(), len.into());
        }
        verbatim(&mut builder, len);
        Ok(builder.finish(image))
    }

    /// Their length.
    #[allow(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> u64 {
        self.end().raw
    }

    /// The image.
    pub fn image(&self) -> &'a Image {
        self.image
    }

    /// Writes all of the contents, decoding on `threads` threads (`None`: all processors).
    pub fn copy_to(
        &self,
        out: &mut dyn Write,
        threads: Option<NonZero<usize>>,
    ) -> Result<(), ContentsError> {
        let states = vec![Vec::new(); jobs::count(threads)];
        let mut spans = self.spans();
        jobs::ordered(
            states,
            jobs::window(self.image.superblock().block_size),
            |stored, span: Span| {
                let mut raw = Vec::new();
                self.stored(&span, stored)?;
                self.decode(&span, stored, &mut raw).map(|()| raw)
            },
            || Ok(spans.next()),
            |raw: Result<Vec<u8>, ContentsError>| {
                out.write_all(&raw?).map_err(ContentsError::Write)
            },
        )
    }

    /// The pieces in order, long verbatim ones in parts.
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> + use<'_> {
        (0..self.pieces.len() - 1).flat_map(|index| {
            let span = self.span(index);
            let step = if span.form == Form::Verbatim { STEP } else { u64::MAX };
            (0..span.len.div_ceil(step)).map(move |part| {
                let skip = part * step;
                let len = (span.len - skip).min(step);
                let stored = if span.form == Form::Verbatim { len } else { span.stored };
                let (position, raw) = (span.position + skip, span.raw + skip);
                Span { position, stored, raw, len, form: span.form }
            })
        })
    }

    /// The bytes of a span in the file.
    pub(super) fn stored(&self, span: &Span, stored: &mut Vec<u8>) -> Result<(), ContentsError> {
        stored.resize(span.stored as usize, 0);
        self.read_file(stored, span.position).map_err(ContentsError::Image)
    }

    /// Bytes of the image's file.
    pub(super) fn read_file(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        self.image.core().source.read_exact_at(buf, position)
    }

    /// The raw bytes of a span, of those in the file.
    pub(super) fn decode(
        &self,
        span: &Span,
        stored: &[u8],
        raw: &mut Vec<u8>,
    ) -> Result<(), ContentsError> {
        let (skip, max) = match span.form {
            Form::Verbatim | Form::Copied => {
                raw.clear();
                raw.extend_from_slice(stored);
                return Ok(());
            }
            Form::Data => (0, self.image.superblock().block_size as usize),
            Form::Meta | Form::Filled(_) => {
                (crate::format::MetaHeader::SIZE, crate::format::METADATA_SIZE)
            }
        };
        let position = span.position - self.image.start();
        self.image.core().decompress(position, &stored[skip..], max, raw)?;
        check_len(position, raw.len(), span.len)?;
        Ok(())
    }

    /// Where the `len` raw bytes of a block are; `None` if they are not in the contents in this form.
    pub(super) fn range_of(&self, block: &BlockRef, skip: u32, len: u32) -> Option<(u64, u64)> {
        let position = self.image.start().checked_add(block.offset)?;
        let after = self.pieces.partition_point(|piece| piece.position <= position);
        let index = after.checked_sub(1).filter(|index| index + 1 < self.pieces.len())?;
        let span = self.span(index);
        let within = match span.form {
            Form::Verbatim if !block.compressed => position - span.position,
            Form::Data if block.compressed && span.position == position => 0,
            _ => return None,
        };
        let start = within + u64::from(skip);
        let end = start + u64::from(len);
        (end <= span.len).then_some((span.raw + start, span.raw + end))
    }

    fn span(&self, index: usize) -> Span {
        let (this, next) = (self.pieces[index], self.pieces[index + 1]);
        Span {
            position: this.position,
            stored: next.position - this.position,
            raw: this.raw,
            len: next.raw - this.raw,
            form: this.form,
        }
    }

    pub(super) fn end(&self) -> Piece {
        self.pieces[self.pieces.len() - 1]
    }

    /// The decoded block of a span that is not verbatim, through the image's caches.
    fn cached(&self, span: &Span) -> Result<Arc<Vec<u8>>, ReadError> {
        let core = self.image.core();
        let block = BlockRef {
            offset: span.position - core.start,
            stored: span.stored as u32,
            compressed: true,
        };
        let bytes = core.cached_fragment(&block)?;
        check_len(block.offset, bytes.as_slice().len(), span.len)?;
        Ok(bytes)
    }

    fn read_span(&self, span: &Span, skip: u64, buf: &mut [u8]) -> io::Result<()> {
        let core = self.image.core();
        let from = skip as usize..skip as usize + buf.len();
        match span.form {
            Form::Verbatim => return self.read_file(buf, span.position + skip),
            // Of no length here.
            Form::Copied => {}
            Form::Data => {
                let bytes = self.cached(span).map_err(io::Error::other)?;
                buf.copy_from_slice(&bytes[from]);
            }
            Form::Meta | Form::Filled(_) => {
                let position = span.position - core.start;
                let limit = core.superblock.bytes_used;
                let block = core.meta_block(position, limit).map_err(io::Error::other)?;
                check_len(position, block.bytes.len(), span.len).map_err(io::Error::other)?;
                buf.copy_from_slice(&block.bytes[from]);
            }
        }
        Ok(())
    }
}

fn check_len(position: u64, have: usize, want: u64) -> Result<(), ReadError> {
    if have as u64 == want {
        return Ok(());
    }
    Err(ReadError::BlockLength { position, have, want: want as usize })
}

/// The contents at any position. Decoded blocks go through the image's caches, so reading forward is cheap.
impl Source for Contents<'_> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.end().raw)
    }

    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.end().raw) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut index = self.pieces.partition_point(|piece| piece.raw <= offset).saturating_sub(1);
        while !buf.is_empty() {
            let span = self.span(index);
            let skip = offset - span.raw;
            let n = (span.len - skip).min(buf.len() as u64) as usize;
            let (head, rest) = buf.split_at_mut(n);
            self.read_span(&span, skip, head)?;
            (buf, offset, index) = (rest, offset + n as u64, index + 1);
        }
        Ok(())
    }
}
