//! An image by way of a patch: fetched piece by piece, applied while it comes.
//!
//! The patch's bytes go into a `.part` file of the cache under the patch's digest, locked and kept like those of an image: who
//! was cut off goes on behind the pieces that are there. Nothing of it counts before the digest of its piece is right,
//! and nothing of what is rebuilt before the digest of the image is.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use mica_graph::{Blob, Digest, Layer, PackageName};
use mica_squashfs::codec::Compression;
use mica_squashfs::rebuild::Contents;
use mica_squashfs::{Image, OpenOptions};

use super::{PatchIndex, PatchNote, apply, make};
use crate::cache::{Cache, Held, Part, Reserved};
use crate::delta::{self, borrow::Plan};
use crate::file::{self, Named};
use crate::progress::Event;
use crate::pull::{Came, Job, PIECE, PROGRESS, PullError, TransferError};
use crate::registry::{Registry, RegistryError};

/// The best patch there is for a layer.
#[derive(Debug)]
pub(crate) struct Offer {
    note: PatchNote,
    old: Layer,
    /// Bytes of the patch that are here.
    pub(crate) held: u64,
}

impl Offer {
    /// Bytes to fetch.
    pub(crate) fn fetch(&self) -> u64 {
        self.note.patch.size.saturating_sub(self.held)
    }

    /// Whether it is better than `fetch` bytes of chunks, for an image of `size` bytes that would otherwise be borrowed by a plan.
    pub(crate) fn beats(&self, plan: Option<&Plan<'_>>, fetch: u64, size: u64) -> bool {
        let worth = if plan.is_some() { size / WORTH } else { 0 };
        self.fetch() + worth < fetch
    }
}

/// A patch makes all of an image anew. Where most of it could stay where it is, so large a part of it has to be saved: what a slow
/// network takes for that, applying the patch takes.
const WORTH: u64 = 64;

/// Asks the registry for patches of a layer, if an earlier version of it is here.
pub(crate) fn offer(
    registry: &dyn Registry,
    cache: &Cache,
    package: &PackageName,
    layer: &Layer,
) -> Option<Offer> {
    if layer.size < delta::SMALLEST {
        return None;
    }
    let mut earlier = delta::earlier(cache, package, layer);
    earlier.retain(|old| cache.holds(old));
    if earlier.is_empty() {
        return None;
    }
    let notes = registry.patches(&layer.digest);
    let notes = notes.inspect_err(|error| tracing::debug!(%error, "no patches")).ok()?;
    let offers = notes.into_iter().filter(|note| has_library(&note.library)).filter_map(|note| {
        let old = earlier.iter().find(|old| old.digest == note.old)?.clone();
        let held = cache.part_len(&note.patch).unwrap_or(0).min(note.patch.size);
        Some(Offer { note, old, held })
    });
    offers.min_by_key(Offer::fetch)
}

/// Whether this program compresses with that library.
fn has_library(name: &str) -> bool {
    use Compression::{Gzip, Lz4, None, Xz, Zstd};
    [Zstd, Gzip, Lz4, Xz, None].into_iter().any(|compression| compression.library() == name)
}

/// Why a patch was not applied.
enum Fault {
    /// The pull ends.
    Pull(PullError),
    /// It goes on without the patch.
    Patch(String),
}

impl<T: Into<PullError>> From<T> for Fault {
    fn from(error: T) -> Self {
        Self::Pull(error.into())
    }
}

impl Job<'_> {
    /// Makes the image in `part` of an older one and a patch; whether that worked. If not, `part` is empty.
    pub(crate) fn patched(
        &self,
        part: &mut Part,
        offer: &Offer,
        came: &mut Came,
    ) -> Result<bool, PullError> {
        let _lease = self.cache.lease(&[offer.old.digest, self.blob.digest])?;
        if part.len() > 0 {
            part.restart()?;
            self.progress.event(Event::Restarted { layer: self.layer });
        }
        let fault = match self.apply(part, offer, came) {
            Ok(()) => return Ok(true),
            Err(fault) => fault,
        };
        match fault {
            // What was rebuilt is rebuilt again; the pieces stay for that.
            Fault::Pull(error) => {
                part.restart()?;
                Err(error)
            }
            Fault::Patch(reason) => {
                tracing::warn!(image = %self.blob.digest, reason, "cannot use the patch");
                part.restart()?;
                self.progress.event(Event::Restarted { layer: self.layer });
                Ok(false)
            }
        }
    }

    fn apply(&self, part: &mut Part, offer: &Offer, came: &mut Came) -> Result<(), Fault> {
        let Reserved::Ours(held) = self.cache.reserve(&offer.note.patch)? else {
            return Err(Fault::Patch("another process has it".to_owned()));
        };
        let mut pieces = Pieces::new(self, &offer.note.patch, *held, came)?;
        let applied = self.apply_pieces(part, offer, &mut pieces);
        // Kept only where it will be asked for again.
        if !matches!(&applied, Err(Fault::Pull(error)) if !matches!(error, PullError::Full { .. }))
        {
            file::remove(&pieces.path).map_err(crate::cache::CacheError::from)?;
        }
        applied
    }

    fn apply_pieces(
        &self,
        part: &mut Part,
        offer: &Offer,
        pieces: &mut Pieces<'_>,
    ) -> Result<(), Fault> {
        let unusable = |what: &str| Fault::Patch(what.to_owned());
        let shown = |error: &dyn std::error::Error| {
            let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
            Fault::Patch(format!("{error}{cause}"))
        };
        let Offer { note, old, .. } = offer;
        if note.index.size > MAX_INDEX || note.index.size > note.patch.size {
            return Err(unusable("its index is too long"));
        }
        let bytes = pieces.get(0, &note.index).map_err(usable_or)?;
        let index = PatchIndex::parse(&bytes).map_err(|error| shown(&error))?;
        drop(bytes);
        let stored: u64 = index.pieces.iter().map(|piece| u64::from(piece.stored)).sum();
        if index.old != old.digest
            || *index.recipe.digest() != *self.blob.digest.as_bytes()
            || index.recipe.image_len() != self.blob.size
            || note.index.size + stored != note.patch.size
        {
            return Err(unusable("it is another one than its note says"));
        }
        let image = match self.cache.source(old)? {
            Some(Held::Whole(path)) => make::open(&path, KEPT),
            Some(Held::Borrowed(image)) => {
                let options = OpenOptions { data_cache_bytes: KEPT, ..OpenOptions::default() };
                Image::from_source(Box::new(image), &options)
            }
            None => return Err(unusable("the old image is gone")),
        };
        let image = image.map_err(|error| shown(&error))?;
        let contents = Contents::of(&image).map_err(|error| shown(&error))?;
        if contents.len() != index.old_len {
            return Err(unusable("the old image has other contents"));
        }
        // Reader and writer stop the work by any error; what it was about is kept here.
        let failure = Mutex::new(None);
        let stop = |error: PullError| {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            io::Error::other("the pull failed")
        };
        let mut at = note.index.size;
        let frame = |piece: usize| {
            let piece = &index.pieces[piece];
            let frame = Blob { digest: piece.digest, size: piece.stored.into() };
            let bytes = pieces.get(at, &frame).map_err(stop)?;
            at += frame.size;
            Ok(bytes)
        };
        let mut writer = Writer { job: self, part, stop: &stop };
        let rebuilt = apply(&index, &contents, frame, &mut writer);
        match (rebuilt, failure.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(error)) => Err(usable_or(error)),
            (Err(error), None) => Err(shown(&error)),
        }
    }
}

/// What is kept of the old contents: pieces next to each other refer to the same.
const KEPT: usize = 32 << 20;

/// An index longer than this is none: it would do for an image of some 20 GB.
const MAX_INDEX: u64 = 16 << 20;

/// A registry whose patch is missing or wrong may have the image all the same.
fn usable_or(error: PullError) -> Fault {
    match error {
        PullError::Registry(error) if !error.is_transient() => Fault::Patch(error.to_string()),
        error => Fault::Pull(error),
    }
}

/// Writes the image into its part, on a full disk after making room.
struct Writer<'a, F> {
    job: &'a Job<'a>,
    part: &'a mut Part,
    stop: &'a F,
}

impl<F: Fn(PullError) -> io::Error> Write for Writer<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while let Err(error) = self.job.append(self.part, bytes) {
            let needed = self.job.blob.size.saturating_sub(self.part.len());
            self.job.recover(error, needed, self.part.path()).map_err(self.stop)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Job<'_> {
    /// Makes room, if that is what is wanting.
    fn recover(
        &self,
        error: TransferError,
        needed: u64,
        path: &std::path::Path,
    ) -> Result<(), PullError> {
        match error {
            TransferError::Full(source) if self.cache.make_room(needed)? == 0 => {
                Err(PullError::Full { path: path.to_owned(), needed, source })
            }
            TransferError::Full(_) => Ok(()),
            TransferError::Pull(error) => Err(error),
            TransferError::Registry(error) | TransferError::Wrong(error) => Err(error.into()),
        }
    }
}

/// The bytes of a patch as they come, kept for whoever resumes.
struct Pieces<'a> {
    job: &'a Job<'a>,
    patch: &'a Blob,
    came: &'a mut Came,
    /// Locked.
    file: File,
    path: PathBuf,
    len: u64,
    stream: Option<Stream>,
    wrong: usize,
}

struct Stream {
    reader: Box<dyn Read + Send>,
    /// What comes again from a source that ignores ranges.
    skip: u64,
}

impl<'a> Pieces<'a> {
    fn new(
        job: &'a Job<'a>,
        patch: &'a Blob,
        part: Part,
        came: &'a mut Came,
    ) -> Result<Self, PullError> {
        let len = part.len();
        let (file, path) = part.into_file();
        came.resumed = len;
        Ok(Self { job, patch, came, file, path, len, stream: None, wrong: 0 })
    }

    /// The bytes of the patch from `start`, verified. Wrong ones are fetched again, from another source if there is one.
    fn get(&mut self, start: u64, expected: &Blob) -> Result<Vec<u8>, PullError> {
        loop {
            self.bring(start + expected.size)?;
            let mut bytes = vec![0; expected.size as usize];
            let read = self.file.read_exact_at(&mut bytes, start).named("read", &self.path);
            read.map_err(crate::cache::CacheError::from)?;
            let found = Digest::of(&bytes);
            if found == expected.digest {
                return Ok(bytes);
            }
            self.wrong += 1;
            if self.wrong > self.job.registry.sources() {
                let registry = self.job.registry.address().to_owned();
                let expected = expected.digest;
                return Err(RegistryError::WrongBytes { registry, expected, found }.into());
            }
            self.job.registry.distrust(self.patch);
            (self.len, self.stream) = (start, None);
        }
    }

    /// Fetches until so much of the patch is here, taking broken connections up again.
    fn bring(&mut self, until: u64) -> Result<(), PullError> {
        let (mut failed, mut before) = (0, self.len);
        while self.len < until {
            self.job.check_stop()?;
            let error = match self.more() {
                Ok(()) => continue,
                Err(TransferError::Registry(error)) => error,
                Err(error) => {
                    self.job.recover(error, self.patch.size - self.len, &self.path)?;
                    continue;
                }
            };
            self.stream = None;
            failed = if self.len - before >= PROGRESS { 1 } else { failed + 1 };
            before = self.len;
            let Some(wait) = self.job.options.retry.after(failed, &error) else {
                return Err(error.into());
            };
            let layer = self.job.layer;
            self.job.progress.event(Event::Retrying { layer, error: &error, wait });
            std::thread::sleep(wait);
        }
        Ok(())
    }

    /// One read from the connection.
    fn more(&mut self) -> Result<(), TransferError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = self.job.registry.blob(self.patch, self.len..self.patch.size)?;
                let skip = self.len.saturating_sub(stream.start);
                none.insert(Stream { reader: stream.reader, skip })
            }
        };
        let mut buffer = vec![0; PIECE];
        let n = match stream.reader.read(&mut buffer) {
            Ok(0) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(self.broken(error)),
        };
        self.came.received += n as u64;
        let skipped = usize::try_from(stream.skip).unwrap_or(n).min(n);
        stream.skip -= skipped as u64;
        let left = usize::try_from(self.patch.size - self.len).unwrap_or(usize::MAX);
        let fresh = &buffer[skipped..n];
        let fresh = &fresh[..fresh.len().min(left)];
        if let Err(source) = self.file.write_all_at(fresh, self.len) {
            self.stream = None;
            if file::is_full(&source) {
                return Err(TransferError::Full(source));
            }
            let error = file::FileError { verb: "write", path: self.path.clone(), source };
            return Err(TransferError::Pull(crate::cache::CacheError::from(error).into()));
        }
        self.len += fresh.len() as u64;
        Ok(())
    }

    fn broken(&self, source: io::Error) -> TransferError {
        let registry = self.job.registry.address().to_owned();
        let digest = self.patch.digest;
        TransferError::Registry(RegistryError::Broken { registry, digest, source })
    }
}
