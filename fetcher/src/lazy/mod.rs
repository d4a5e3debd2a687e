//! An image that is used before all of it is here.
//!
//! A reader that touches a missing chunk asks for it and waits, until its deadline; a few threads fetch what readers ask
//! for first, then what an earlier run touched, in its order, and the rest from the beginning. The rest keeps out of the way: it comes
//! while no reader of the process waits or is likely to read on, and a request for it is given up when one does. Each chunk is checked
//! against the table, which the manifest names by digest, before anybody sees it. When the last one is here, the digest of
//! the whole is checked and the image gets its name in the cache; whoever reads it goes on with the same open file.
//!
//! Nothing here waits for ever: readers get an error at the deadline, whatever the network does, and later reads try
//! again. The chunks of a run that was cut off are found again by their digests. The digest's lock is held meanwhile: a
//! pull of the same image waits for it, and after a crash takes it over, from the beginning if chunks were missing. A second
//! lazy user of the image takes what the first has, fetches for itself what that lacks, and keeps it in a file without a name.
//!
//! What was touched is written down at the end, for the next one who needs the image.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mica_graph::{Blob, Digest, Layer};
use mica_squashfs::chunks::{Chunk, ChunkTable};

use crate::cache::{Cache, CacheError, Held, Reserved};
use crate::file::{self, FileError, Named};
use crate::registry::{Registry, longest_table};

mod error;
mod readers;
mod state;

pub use error::LazyError;

use readers::READERS;
use state::{Chunked, Next, RUN, State, numbers};

/// How to fetch lazily.
#[derive(Clone, Debug)]
pub struct LazyOptions {
    /// How long a reader waits for a chunk.
    pub deadline: Duration,
    /// Requests at a time.
    pub parallel: usize,
    /// Whether to fetch what nobody asked for yet.
    pub background: bool,
    /// What an earlier run touched, in its order: see [`LazyImage::touched`].
    pub first: Vec<Range<u64>>,
}

impl Default for LazyOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), parallel: 4, background: true, first: Vec::new() }
    }
}

/// What became of the wish to use an image.
pub enum Lazy {
    /// It is in the cache.
    Complete(Held),
    /// It will be.
    Partial(LazyImage),
}

/// An image some of whose chunks are here. Fetching ends when the last clone is dropped.
#[derive(Clone)]
pub struct LazyImage {
    handle: Arc<Handle>,
}

/// Tells the workers to end.
struct Handle(Arc<Inner>);

impl Drop for Handle {
    fn drop(&mut self) {
        let touched = {
            let mut state = self.0.state();
            state.stopped = true;
            std::mem::take(&mut state.touched)
        };
        self.0.changed.notify_all();
        let chunks = self.0.table.chunks();
        let ranges: Vec<Range<u64>> =
            touched.iter().map(|i| chunks[*i].offset..chunks[*i].end()).collect();
        if let Err(error) = self.0.cache.keep_trace(&self.0.blob.digest, &ranges) {
            tracing::debug!(%error, "cannot keep what was touched");
        }
    }
}

struct Inner {
    registry: Arc<dyn Registry>,
    cache: Cache,
    layer: String,
    blob: Blob,
    table: ChunkTable,
    /// The table's digest.
    named: Digest,
    options: LazyOptions,
    /// The `.part` file: holds the digest's lock, and the bytes at their final offsets.
    file: File,
    path: PathBuf,
    /// The `.part` file of another process that fetches the image: then ours has no name.
    peer: Option<File>,
    state: Mutex<State>,
    /// Told whenever `state` changes.
    changed: Condvar,
}

/// Waits after failed requests.
const PAUSES: Range<Duration> = Duration::from_millis(50)..Duration::from_secs(2);

/// For so long after a reader has waited in vain others fail at once. The kernel asks again for each page of what it could
/// not read as a whole, so that a program would wait several times for one answer.
const HOPELESS: Duration = Duration::from_secs(1);

/// Opens the image of a layer, wherever its bytes are. Take a [`lease`](Cache::lease) first.
pub fn open_lazy(
    registry: Arc<dyn Registry>,
    cache: &Cache,
    layer: &Layer,
    mut options: LazyOptions,
) -> Result<Lazy, LazyError> {
    let name = layer.module.to_string();
    let blob = layer.image();
    if let Ok(Some(held)) = cache.source(layer) {
        return Ok(Lazy::Complete(held));
    }
    let (named, table) = table(&*registry, cache, layer, &name)?;
    let (file, path, peer) = match cache.reserve(&blob)? {
        Reserved::Present => {
            return Ok(Lazy::Complete(Held::Whole(cache.blob_path(&blob.digest))));
        }
        Reserved::Busy(_) => {
            let path = cache.part_path(&blob);
            let peer = file::open(&path).ok();
            if let (None, Ok(Some(held))) = (&peer, cache.source(layer)) {
                return Ok(Lazy::Complete(held)); // it has just been finished
            }
            options.background = false;
            (cache.nameless()?, path, peer)
        }
        Reserved::Ours(part) => {
            let (file, path) = part.into_file();
            (file, path, None)
        }
    };
    if options.first.is_empty() {
        options.first = cache.trace(&blob.digest);
    }
    file.set_len(blob.size).named("extend", &path).map_err(CacheError::from)?;
    let state = Mutex::new(State::new(&file, &table, &options));
    let (cache, changed) = (cache.clone(), Condvar::new());
    let inner = Inner {
        registry,
        cache,
        layer: name,
        blob,
        table,
        named,
        options,
        file,
        path,
        peer,
        state,
        changed,
    };
    let inner = Arc::new(inner);
    READERS.expect();
    if inner.state().missing == 0 {
        inner.complete();
    }
    for _ in 0..inner.options.parallel.max(1) {
        let worker = Arc::clone(&inner);
        let spawned = std::thread::Builder::new()
            .name("mica-lazy".to_owned())
            .spawn(move || worker.work())
            .named("start a thread for", &inner.path);
        spawned.map_err(CacheError::from)?;
    }
    Ok(Lazy::Partial(LazyImage { handle: Arc::new(Handle(inner)) }))
}

fn table(
    registry: &dyn Registry,
    cache: &Cache,
    layer: &Layer,
    name: &str,
) -> Result<(Digest, ChunkTable), LazyError> {
    let blob = layer.chunks.as_ref().ok_or_else(|| LazyError::NoTable(name.to_owned()))?;
    let fetch = |source| LazyError::Fetch { layer: name.to_owned(), source: Box::new(source) };
    let bytes = match cache.document(blob) {
        Ok(Some(bytes)) => bytes,
        _ => registry.document(blob, longest_table(layer.size)).map_err(fetch)?,
    };
    cache.store(blob, &bytes)?;
    let bad = |source| LazyError::Table { layer: name.to_owned(), source };
    let table = ChunkTable::parse(&bytes).map_err(bad)?;
    let (expected, found) = (layer.size, table.image_len());
    if found != expected {
        return Err(LazyError::OtherImage { layer: name.to_owned(), expected, found });
    }
    Ok((blob.digest, table))
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made by one assignment at a time; none can be left half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches until everything is here, or nobody is interested any more.
    fn work(&self) {
        let mut pause = PAUSES.start;
        loop {
            let Some(Next { run, bulk }) = self.next() else { return };
            let result = self.fetch(run.clone(), bulk);
            let mut state = self.state();
            state.bulk -= usize::from(bulk);
            for chunk in run {
                if state.chunks[chunk] == Chunked::Coming {
                    state.chunks[chunk] = Chunked::Missing;
                }
            }
            state.error = result.as_ref().err().cloned();
            self.changed.notify_all();
            if result.is_ok() {
                pause = PAUSES.start;
                continue;
            }
            // Readers that ask again do not make the network come back sooner.
            let woken = self.changed.wait_timeout_while(state, pause, |state| !state.stopped);
            drop(woken.unwrap_or_else(PoisonError::into_inner));
            pause = (pause * 2).min(PAUSES.end);
        }
    }

    /// Waits for something to fetch; `None` when there is nothing left, or nobody is interested any more.
    fn next(&self) -> Option<Next> {
        let mut state = self.state();
        loop {
            if state.stopped || state.missing == 0 {
                return None;
            }
            let calm = READERS.need();
            let may_bulk = calm.is_none() && state.bulk < self.options.parallel.div_ceil(2);
            if let Some(next) = state.next(&self.table, self.options.background, may_bulk) {
                state.chunks[next.run.clone()].fill(Chunked::Coming);
                state.bulk += usize::from(next.bulk);
                return Some(next);
            }
            state = match calm.filter(|_| self.options.background) {
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// One request. Every chunk counts as soon as it has come and is right. What is fetched in `bulk` gives way to readers.
    fn fetch(&self, run: Range<usize>, bulk: bool) -> Result<(), String> {
        if self.take_from_peer(run.clone()) {
            return Ok(());
        }
        let chunks = &self.table.chunks()[run.clone()];
        let (Some(head), Some(tail)) = (chunks.first(), chunks.last()) else { return Ok(()) };
        let stream = self.registry.blob(&self.blob, head.offset..tail.end());
        let stream = stream.map_err(|error| describe(&error))?;
        let mut reader = stream.reader;
        let before = head.offset.saturating_sub(stream.start);
        let skipped = io::copy(&mut reader.by_ref().take(before), &mut io::sink());
        skipped.map_err(|error| describe(&error))?;
        let mut buffer = Vec::new();
        for (number, chunk) in run.zip(chunks) {
            buffer.resize(chunk.length as usize, 0);
            reader.read_exact(&mut buffer).map_err(|error| describe(&error))?;
            if !chunk.matches(&buffer) {
                self.registry.distrust(&self.blob);
                return Err(format!("{} sent wrong bytes", self.registry.address()));
            }
            self.keep(number, chunk, &buffer)?;
            if bulk && READERS.need().is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Takes a chunk from the other process that fetches the image, if that has it.
    fn take_from_peer(&self, run: Range<usize>) -> bool {
        let Some(peer) = &self.peer else { return false };
        let mut buffer = Vec::new();
        let mut all = true;
        for number in run {
            let chunk = &self.table.chunks()[number];
            buffer.resize(chunk.length as usize, 0);
            let right =
                peer.read_exact_at(&mut buffer, chunk.offset).is_ok() && chunk.matches(&buffer);
            all &= right && self.keep(number, chunk, &buffer).is_ok();
        }
        all
    }

    /// Stores a chunk that is right, and tells whoever waits for it.
    fn keep(&self, number: usize, chunk: &Chunk, bytes: &[u8]) -> Result<(), String> {
        if let Err(error) = self.file.write_all_at(bytes, chunk.offset) {
            if file::is_full(&error) {
                // For the next try.
                self.cache.make_room(RUN).map_err(|error| describe(&error))?;
            }
            return Err(describe(&error));
        }
        let mut state = self.state();
        if state.chunks[number] != Chunked::Here {
            state.chunks[number] = Chunked::Here;
            state.missing -= 1;
            state.gave_up = None;
        }
        let complete = state.missing == 0 && state.cached.is_none();
        self.changed.notify_all();
        drop(state);
        if complete {
            self.complete();
        }
        Ok(())
    }

    /// Gives the image its name in the cache.
    fn complete(&self) {
        let published = self.verify_whole().and_then(|right| {
            if !right {
                tracing::error!(
                    layer = self.layer,
                    "the chunk table does not fit the image's digest"
                );
                return Ok(false);
            }
            if self.peer.is_some() {
                return Ok(false);
            }
            let target = self.cache.blob_path(&self.blob.digest);
            file::publish(&self.file, &self.path, &target, 0o444)?;
            // Each chunk was compared when it came.
            self.cache.note_checked(&self.blob.digest, &self.named);
            Ok(true)
        });
        if let Err(error) = &published {
            tracing::warn!(%error, layer = self.layer, "a complete image did not get into the cache");
        }
        if let Err(error) = self.cache.keep_quota() {
            tracing::warn!(%error, "cannot keep the cache's quota");
        }
        self.state().cached = Some(published.unwrap_or(false));
        self.changed.notify_all();
    }

    fn verify_whole(&self) -> Result<bool, FileError> {
        let (mut hasher, mut buffer) = (blake3::Hasher::new(), Vec::new());
        for chunk in self.table.chunks() {
            buffer.resize(chunk.length as usize, 0);
            self.file.read_exact_at(&mut buffer, chunk.offset).named("read", &self.path)?;
            hasher.update(&buffer);
        }
        Ok(Digest::from(hasher.finalize()) == self.blob.digest)
    }

    /// Asks for chunks that a reader will wait for, all at once.
    fn want(&self, chunks: Range<usize>) {
        let mut state = self.state();
        for chunk in chunks {
            if state.chunks[chunk] == Chunked::Missing && !state.wanted.contains(&chunk) {
                state.wanted.push_back(chunk);
                self.changed.notify_all();
            }
        }
    }

    /// Waits until a chunk is here.
    fn need(&self, chunk: usize, until: Instant) -> io::Result<()> {
        let mut state = self.state();
        if !std::mem::replace(&mut state.seen[chunk], true) {
            state.touched.push(chunk);
        }
        let _waiting = (state.chunks[chunk] != Chunked::Here).then(|| READERS.wait());
        loop {
            match state.chunks[chunk] {
                Chunked::Here => return Ok(()),
                Chunked::Missing if !state.wanted.contains(&chunk) => {
                    state.wanted.push_back(chunk);
                    self.changed.notify_all();
                }
                Chunked::Missing | Chunked::Coming => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            let hopeless = state.gave_up.is_some_and(|at| at.elapsed() < HOPELESS);
            if left.is_zero() || hopeless {
                if !hopeless {
                    state.gave_up = Some(Instant::now());
                }
                let reason = state.error.as_deref().unwrap_or("it did not come in time");
                let reason =
                    format!("cannot fetch chunk {chunk} of layer {}: {reason}", self.layer);
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl LazyImage {
    /// Bytes that are here, and bytes in all.
    pub fn local(&self) -> (u64, u64) {
        let inner = &self.handle.0;
        let state = inner.state();
        let here = inner.table.chunks().iter().zip(&state.chunks);
        let here = here.filter(|(_, chunk)| **chunk == Chunked::Here);
        (here.map(|(chunk, _)| u64::from(chunk.length)).sum(), inner.blob.size)
    }

    /// What was read so far, in the order in which it was first touched: to be fetched first the next time.
    pub fn touched(&self) -> Vec<Range<u64>> {
        let inner = &self.handle.0;
        let chunks = inner.table.chunks();
        inner.state().touched.iter().map(|i| chunks[*i].offset..chunks[*i].end()).collect()
    }

    /// Waits until all of it is here and in the cache; whether it is.
    pub fn wait_complete(&self, limit: Duration) -> bool {
        let inner = &self.handle.0;
        let until = Instant::now() + limit;
        let mut state = inner.state();
        loop {
            if let Some(cached) = state.cached {
                return cached;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = inner.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl mica_squashfs::Source for LazyImage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.handle.0.blob.size)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let inner = &self.handle.0;
        let end = offset.saturating_add(buffer.len() as u64);
        if end > inner.blob.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let until = Instant::now() + inner.options.deadline;
        let chunks = numbers(&inner.table, &(offset..end));
        inner.want(chunks.clone());
        for chunk in chunks {
            inner.need(chunk, until)?;
        }
        FileExt::read_exact_at(&inner.file, buffer, offset)
    }
}
