//! Which blocks of an image compress to the same bytes again.

use std::num::NonZero;

use super::contents::{Builder, Span};
use super::recipe::Run;
use super::{Contents, ContentsError, Encoder, Form, Recipe, Stored};
use crate::codec::{CodecError, Compression, Compressor, CompressorOptions};
use crate::format::METADATA_SIZE;
use crate::jobs;
use crate::read::Image;

/// Blocks that are tried to find out the level.
const SAMPLES: usize = 8;

/// An image in two parts.
pub struct Described<'a> {
    /// How the image follows from its contents.
    pub recipe: Recipe,
    /// What [`rebuild`](super::rebuild()) needs besides: of blocks that do not compress to the same bytes again, the
    /// compressed bytes.
    pub contents: Contents<'a>,
}

/// An image that cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// It cannot be read.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// A block cannot be compressed.
    #[error("cannot compress a block again")]
    Codec(#[from] CodecError),
}

/// How an image is to be compressed.
#[derive(Clone, Copy)]
struct Way {
    compression: Compression,
    level: u32,
    block_size: u32,
}

impl Way {
    fn encoder(self) -> Result<Encoder, CodecError> {
        let compressor = |block_size| {
            let level = self.compression.levels().map(|_| self.level);
            Compressor::new(self.compression, level, block_size)
        };
        Ok(Encoder {
            data: compressor(self.block_size)?,
            meta: compressor(METADATA_SIZE as u32)?,
            body: Vec::new(),
        })
    }
}

impl Recipe {
    pub(super) fn encoders(&self, count: usize) -> Result<Vec<Encoder>, CodecError> {
        let Self { compression, level, block_size, .. } = *self;
        let way = Way { compression, level, block_size };
        (0..count).map(|_| way.encoder()).collect()
    }
}

/// What one thread needs.
struct Tester {
    encoder: Encoder,
    stored: Vec<u8>,
    raw: Vec<u8>,
    again: Vec<u8>,
}

impl Tester {
    fn new(encoder: Encoder) -> Self {
        Self { encoder, stored: Vec::new(), raw: Vec::new(), again: Vec::new() }
    }

    /// What becomes of a span, its bytes left in `stored`.
    fn piece(
        &mut self,
        contents: &Contents<'_>,
        span: &Span,
        old: Option<&Stored>,
    ) -> Result<Run, DescribeError> {
        contents.stored(span, &mut self.stored)?;
        let old = old.filter(|_| span.form == Form::Data);
        if let Some(from) = old.and_then(|old| old.find(&self.stored)) {
            return Ok(Run { form: Form::Copied, count: 1, len: span.stored, from });
        }
        let form = self.form(contents, span)?;
        let len = if form == Form::Verbatim { span.stored } else { span.len };
        Ok(Run { form, count: 1, len, from: 0 })
    }

    /// The form in which a span, whose bytes are in `stored`, gives the same bytes again.
    fn form(&mut self, contents: &Contents<'_>, span: &Span) -> Result<Form, DescribeError> {
        match contents.decode(span, &self.stored, &mut self.raw) {
            Ok(()) => {}
            // A damaged block is kept as it is.
            Err(ContentsError::Read(error)) if !error.is_io() => return Ok(Form::Verbatim),
            Err(error) => return Err(error.into()),
        }
        let filled = [Form::Meta, Form::Filled(self.stored.len() as u16)];
        let forms = match span.form {
            Form::Meta if self.encoder.meta.compression() == Compression::Zstd => &filled[..],
            _ => &[span.form],
        };
        for &form in forms {
            let made = self.encoder.encode(form, &self.raw, &mut self.again)?;
            if made && self.again == self.stored {
                return Ok(form);
            }
        }
        Ok(Form::Verbatim)
    }
}

/// Describes an image, on `threads` threads (`None`: all processors). It costs what compressing its contents costs,
/// unless a few samples show that they are not worth it. What the `old` image has as it is need not be in the contents.
pub fn describe<'a>(
    image: &'a Image,
    old: Option<&Stored>,
    threads: Option<NonZero<usize>>,
) -> Result<Described<'a>, DescribeError> {
    let whole = Contents::of(image)?;
    let way = find_way(&whole)?;
    let testers = (0..jobs::count(threads))
        .map(|_| way.encoder().map(Tester::new))
        .collect::<Result<Vec<_>, _>>()?;
    let plain = way.compression == Compression::None;
    let mut made = Making { builder: Builder::new(), runs: Vec::new(), last: None };
    let mut hasher = blake3::Hasher::new();
    let mut spans = whole.spans();
    jobs::ordered(
        testers,
        jobs::window(way.block_size),
        |tester, mut span: Span| {
            if plain {
                (span.form, span.len) = (Form::Verbatim, span.stored);
            }
            let piece = tester.piece(&whole, &span, old)?;
            Ok((piece, std::mem::take(&mut tester.stored)))
        },
        || Ok(spans.next()),
        |piece: Result<(Run, Vec<u8>), DescribeError>| {
            let (piece, stored) = piece?;
            hasher.update(&stored);
            made.piece(piece, stored.len() as u64);
            Ok::<(), DescribeError>(())
        },
    )?;
    let (runs, builder) = made.finish();
    let contents = builder.finish(image);
    let recipe = Recipe {
        digest: *hasher.finalize().as_bytes(),
        image_len: contents.end().position,
        raw_len: contents.len(),
        compression: way.compression,
        level: way.level,
        block_size: way.block_size,
        library: way.compression.library(),
        runs,
    };
    Ok(Described { recipe, contents })
}

/// The recipe's runs and the contents' pieces, as they are found.
struct Making {
    builder: Builder,
    runs: Vec<u8>,
    last: Option<Run>,
}

impl Making {
    fn piece(&mut self, piece: Run, stored: u64) {
        let Run { form, len, from, .. } = piece;
        self.builder.push(form, stored, if form == Form::Copied { 0 } else { len });
        if let Some(last) = self.last.as_mut().filter(|last| last.form == form) {
            let joins = match form {
                Form::Verbatim => true,
                Form::Copied => last.from + last.len == from,
                _ => false,
            };
            if joins {
                last.len += len;
                return;
            }
            if form != Form::Copied && last.len == len {
                last.count += 1;
                return;
            }
        }
        if let Some(run) = self.last.replace(piece) {
            run.put(&mut self.runs);
        }
    }

    fn finish(mut self) -> (Vec<u8>, Builder) {
        if let Some(run) = self.last {
            run.put(&mut self.runs);
        }
        (self.runs, self.builder)
    }
}

/// Finds the level at which samples compress to the same bytes again; no compression if there is none.
fn find_way(contents: &Contents<'_>) -> Result<Way, DescribeError> {
    let image = contents.image();
    let block_size = image.superblock().block_size;
    let nothing = Way { compression: Compression::None, level: 0, block_size };
    let samples = samples(contents);
    let mut best = (0, nothing);
    for level in levels(image) {
        let way = Way { compression: image.compression(), level, block_size };
        let encoder = match way.encoder() {
            Ok(encoder) => encoder,
            // Not a level that this library has, or not a compression it writes.
            Err(CodecError::Level { .. } | CodecError::Unsupported { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut tester = Tester::new(encoder);
        let mut good = 0;
        for span in &samples {
            good += usize::from(tester.piece(contents, span, None)?.form != Form::Verbatim);
        }
        if good > best.0 {
            best = (good, way);
        }
        if good == samples.len() {
            break;
        }
    }
    Ok(best.1)
}

/// Some blocks from all over the image, of data if there is any.
fn samples(contents: &Contents<'_>) -> Vec<Span> {
    let of = |form| contents.spans().filter(move |span| span.form == form);
    let data = of(Form::Data).count();
    let form = if data > 0 { Form::Data } else { Form::Meta };
    let count = if data > 0 { data } else { of(form).count() };
    of(form).step_by((count / SAMPLES).max(1)).take(SAMPLES).collect()
}

/// The levels that an image may be made with, the likely ones first.
fn levels(image: &Image) -> Vec<u32> {
    let recorded = image.compressor_options();
    if let Ok(Some(CompressorOptions::Gzip { level, .. } | CompressorOptions::Zstd { level })) =
        recorded
    {
        return vec![level];
    }
    match image.compression() {
        // What is not recorded is the default of squashfs-tools.
        Compression::Zstd => vec![15],
        Compression::Gzip => vec![9],
        Compression::Xz => std::iter::once(6).chain(0..=9).collect(),
        _ => vec![0],
    }
}
