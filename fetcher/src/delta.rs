//! Which parts of a new image are in images that are here already.
//!
//! The chunk table of an image says what it is made of. Chunks that an earlier version of the same layer holds are
//! borrowed from it, where that is most of the image ([`borrow`]); else they are copied from its file, and the rest comes by
//! range requests, in the order of the new image: so a part cut off anywhere is still a beginning of it, and is resumed like any
//! other. Copied bytes are not hashed by themselves: the digest of the whole decides, and if it is wrong, all of the image is fetched.
//!
//! An earlier version's table says nothing before it was compared with that version's image. That is done once, mostly when the
//! image comes; else here.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mica_graph::{Blob, Layer, PackageName};
use mica_squashfs::chunks::{Chunk, ChunkTable};

use crate::cache::borrowed::format::{Base, BaseFile};
use crate::cache::{Cache, Held};
use crate::file;
use crate::registry::{Registry, longest_table};

pub(crate) mod borrow;

/// Images smaller than this are fetched whole: a table would cost a request, and save little.
pub const SMALLEST: u64 = 256 << 10;

/// Two ranges to be fetched become one request if no more lies between them.
const GAP: u64 = 64 << 10;

/// How many earlier versions are looked at.
const VERSIONS: usize = 8;

/// How to put an image together.
#[derive(Debug, Default)]
pub(crate) struct Recipe {
    segments: Vec<Segment>,
    table: Option<ChunkTable>,
}

/// A run of bytes of the new image.
#[derive(Debug)]
struct Segment {
    start: u64,
    end: u64,
    /// Where the bytes are here, if they are.
    local: Option<Local>,
}

#[derive(Clone, Debug)]
struct Local {
    file: Arc<LocalFile>,
    offset: u64,
}

/// A file that holds chunks. Open, it stays readable even if it is removed meanwhile.
#[derive(Debug)]
struct LocalFile {
    file: Arc<File>,
    base: BaseFile,
}

/// What comes next.
pub(crate) enum Step<'a> {
    /// So many bytes of this file, from this offset.
    Copy { file: &'a File, offset: u64, length: u64 },
    /// A request up to this offset.
    Fetch { until: u64 },
}

impl Recipe {
    /// All of the image by one request.
    pub(crate) fn whole() -> Self {
        Self::default()
    }

    /// How to go on when `len` bytes of an image of `size` bytes are there.
    pub(crate) fn step(&self, len: u64, size: u64) -> Step<'_> {
        let next = self.segments.partition_point(|segment| segment.end <= len);
        match self.segments.get(next) {
            Some(Segment { start, end, local: Some(local) }) => Step::Copy {
                file: &local.file.file,
                offset: local.offset + (len - start),
                length: end - len,
            },
            Some(segment) => Step::Fetch { until: segment.end },
            None => Step::Fetch { until: size },
        }
    }

    fn new(table: ChunkTable, held: &HashMap<[u8; 32], Local>) -> Self {
        let mut recipe = Self::default();
        for chunk in table.chunks() {
            recipe.push(chunk, held.get(&chunk.digest).cloned());
        }
        recipe.close_gaps();
        recipe.table = Some(table);
        recipe
    }

    fn push(&mut self, chunk: &Chunk, local: Option<Local>) {
        if let Some(last) = self.segments.last_mut() {
            let follows = match (&last.local, &local) {
                (None, None) => true,
                (Some(a), Some(b)) => {
                    Arc::ptr_eq(&a.file, &b.file) && a.offset + (last.end - last.start) == b.offset
                }
                _ => false,
            };
            if follows {
                last.end = chunk.end();
                return;
            }
        }
        self.segments.push(Segment { start: chunk.offset, end: chunk.end(), local });
    }

    /// A short copy between two fetches is fetched as well: one request less is worth more.
    fn close_gaps(&mut self) {
        let mut closed: Vec<Segment> = Vec::with_capacity(self.segments.len());
        let mut segments = std::mem::take(&mut self.segments).into_iter().peekable();
        while let Some(mut segment) = segments.next() {
            let short = segment.end - segment.start <= GAP;
            let before = closed.last().is_some_and(|last| last.local.is_none());
            let after = segments.peek().is_some_and(|next| next.local.is_none());
            if short && before && after {
                segment.local = None;
            }
            match closed.last_mut() {
                Some(last) if last.local.is_none() && segment.local.is_none() => {
                    last.end = segment.end
                }
                _ => closed.push(segment),
            }
        }
        self.segments = closed;
    }

    /// The table of the image, if it is known.
    pub(crate) fn table(&self) -> Option<&ChunkTable> {
        self.table.as_ref()
    }

    /// How many requests it takes, for an image of which nothing is there yet.
    pub(crate) fn requests(&self) -> usize {
        if self.segments.is_empty() {
            return 1;
        }
        self.segments.iter().filter(|segment| segment.local.is_none()).count()
    }

    /// Bytes to fetch when `len` bytes of an image of `size` bytes are there.
    pub(crate) fn fetch(&self, len: u64, size: u64) -> u64 {
        let local = self.segments.iter().filter(|segment| segment.local.is_some());
        let copied: u64 = local.map(|s| s.end.saturating_sub(s.start.max(len))).sum();
        size.saturating_sub(len).saturating_sub(copied)
    }

    /// Bytes that are here.
    pub(crate) fn local(&self) -> u64 {
        let local = self.segments.iter().filter(|segment| segment.local.is_some());
        local.map(|segment| segment.end - segment.start).sum()
    }
}

/// Reads exactly the bytes a [`Step::Copy`] names.
pub(crate) fn read(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

/// Fetches the chunk table of a layer, for now and for later versions, and looks for its chunks among earlier
/// versions of the layer. Whatever goes wrong here only means that more is fetched.
pub(crate) fn recipe(
    registry: &dyn Registry,
    cache: &Cache,
    package: &PackageName,
    layer: &Layer,
) -> Recipe {
    let Some(blob) = layer.chunks.as_ref().filter(|_| layer.size >= SMALLEST) else {
        return Recipe::whole();
    };
    let Some(table) = table(registry, cache, blob, layer.size) else { return Recipe::whole() };
    if table.image_len() != layer.size {
        tracing::warn!(layer = %layer.module, "the chunk table is that of another image");
        return Recipe::whole();
    }
    let held = held_chunks(cache, package, layer, &table);
    match held.is_empty() {
        true => Recipe { table: Some(table), ..Recipe::whole() },
        false => Recipe::new(table, &held),
    }
}

pub(crate) fn table(
    registry: &dyn Registry,
    cache: &Cache,
    blob: &Blob,
    size: u64,
) -> Option<ChunkTable> {
    if blob.size > longest_table(size) {
        tracing::debug!(table = %blob.digest, blob.size, "a chunk table is far too long");
        return None;
    }
    if let Some(table) = cached_table(cache, blob) {
        return Some(table);
    }
    let fetched = registry.document(blob, longest_table(size));
    let bytes = fetched.inspect_err(|error| tracing::debug!(%error, "no chunk table")).ok()?;
    let stored = cache.store(blob, &bytes);
    stored.inspect_err(|error| tracing::debug!(%error, "cannot keep a chunk table")).ok()?;
    ChunkTable::parse(&bytes).ok()
}

fn cached_table(cache: &Cache, blob: &Blob) -> Option<ChunkTable> {
    ChunkTable::parse(&cache.document(blob).ok()??).ok()
}

/// The chunks of an image that earlier versions of the layer hold, the newest ones first.
fn held_chunks(
    cache: &Cache,
    package: &PackageName,
    layer: &Layer,
    table: &ChunkTable,
) -> HashMap<[u8; 32], Local> {
    let mut lacking: HashSet<[u8; 32]> = table.chunks().iter().map(|chunk| chunk.digest).collect();
    let (mut held, mut files) = (HashMap::new(), Vec::new());
    for old in earlier(cache, package, layer) {
        if !lacking.is_empty() {
            add_chunks(cache, &old, &mut lacking, &mut held, &mut files);
        }
    }
    held
}

/// Earlier versions of a layer that are known here, newest first, each image once.
pub(crate) fn earlier(cache: &Cache, package: &PackageName, layer: &Layer) -> Vec<Layer> {
    let mut earlier: Vec<Layer> = Vec::new();
    let Ok(Some(index)) = cache.index(package) else { return earlier };
    for entry in index.versions.iter().take(VERSIONS) {
        let Ok(Some(manifest)) = cache.manifest(&entry.manifest.digest) else { continue };
        for old in manifest.layers.into_iter().filter(|old| old.module == layer.module) {
            if old.digest != layer.digest && earlier.iter().all(|held| held.digest != old.digest) {
                earlier.push(old);
            }
        }
    }
    earlier
}

/// Bytes of an image that are in no chunk of an older one.
pub(crate) fn missing(old: &ChunkTable, new: &ChunkTable) -> u64 {
    let held: HashSet<_> = old.chunks().iter().map(|chunk| chunk.digest).collect();
    let missing = new.chunks().iter().filter(|chunk| !held.contains(&chunk.digest));
    missing.map(|chunk| chunk.end() - chunk.offset).sum()
}

/// Adds those chunks of an old image that are lacking. Files that several images lie in are one.
fn add_chunks(
    cache: &Cache,
    old: &Layer,
    lacking: &mut HashSet<[u8; 32]>,
    held: &mut HashMap<[u8; 32], Local>,
    files: &mut Vec<Arc<LocalFile>>,
) {
    let Some(table) = old.chunks.as_ref().and_then(|blob| cached_table(cache, blob)) else {
        return;
    };
    let Some(image) = OldImage::open(cache, old, files) else { return };
    let fits = table.image_len() == old.size;
    if !fits || !table.chunks().iter().any(|chunk| lacking.contains(&chunk.digest)) {
        return;
    }
    if !image.is_checked(cache, old, &table) {
        tracing::warn!(layer = %old.module, image = %old.digest, "an image is not that of its chunk table");
        return;
    }
    for chunk in table.chunks() {
        if lacking.contains(&chunk.digest)
            && let Some(local) = image.place(chunk)
        {
            lacking.remove(&chunk.digest);
            held.insert(chunk.digest, local);
        }
    }
}

/// An image that is here, and the files it lies in.
struct OldImage {
    held: Held,
    files: Vec<Arc<LocalFile>>,
}

impl OldImage {
    fn open(cache: &Cache, old: &Layer, known: &mut Vec<Arc<LocalFile>>) -> Option<Self> {
        let held = cache.source(old).ok()??;
        let files = match &held {
            Held::Whole(path) => {
                let base = BaseFile { base: Base::Blob(old.digest), length: old.size };
                vec![(base, Arc::new(file::open(path).ok()?))]
            }
            Held::Borrowed(image) => {
                image.files().map(|(base, file)| (base, Arc::clone(file))).collect()
            }
        };
        let mut one = |(base, file): (BaseFile, Arc<File>)| {
            if let Some(same) = known.iter().find(|known| known.base == base) {
                return Arc::clone(same);
            }
            let new = Arc::new(LocalFile { file, base });
            known.push(Arc::clone(&new));
            new
        };
        let files = files.into_iter().map(&mut one).collect();
        Some(Self { held, files })
    }

    /// Whether each chunk is what the table says: of a borrowed image that was seen to when it came.
    fn is_checked(&self, cache: &Cache, old: &Layer, table: &ChunkTable) -> bool {
        let (Held::Whole(path), Some(blob)) = (&self.held, &old.chunks) else { return true };
        if cache.is_own(path) && cache.is_checked(old) {
            return true;
        }
        let mut buffer = Vec::new();
        let fits = table.chunks().iter().all(|chunk| {
            buffer.resize(chunk.length as usize, 0);
            self.files[0].file.read_exact_at(&mut buffer, chunk.offset).is_ok()
                && chunk.matches(&buffer)
        });
        // What another account can change is compared each time.
        if fits && cache.is_own(path) {
            cache.note_checked(&old.digest, &blob.digest);
        }
        fits
    }

    /// Where a chunk lies, if it is in one piece.
    fn place(&self, chunk: &Chunk) -> Option<Local> {
        let (file, offset) = match &self.held {
            Held::Whole(_) => (0, chunk.offset),
            Held::Borrowed(image) => image.place(chunk.offset, chunk.length.into())?,
        };
        Some(Local { file: Arc::clone(self.files.get(file)?), offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(chunks: &[(u8, u32)]) -> ChunkTable {
        let mut table = ChunkTable::default();
        for (digest, length) in chunks {
            table.push(*length, [*digest; 32]);
        }
        table
    }

    fn held(old: &ChunkTable) -> HashMap<[u8; 32], Local> {
        let base = BaseFile { base: Base::Blob(mica_graph::Digest::of(b"old")), length: 0 };
        let file = Arc::new(LocalFile { file: Arc::new(File::open("/dev/null").unwrap()), base });
        let local = |chunk: &Chunk| Local { file: Arc::clone(&file), offset: chunk.offset };
        old.chunks().iter().map(|chunk| (chunk.digest, local(chunk))).collect()
    }

    /// The steps as `(copy from, or fetch)` and the offset reached.
    fn steps(recipe: &Recipe, size: u64) -> Vec<(Option<u64>, u64)> {
        let (mut at, mut steps) = (0, Vec::new());
        while at < size {
            match recipe.step(at, size) {
                Step::Copy { offset, length, .. } => {
                    at += length;
                    steps.push((Some(offset), at));
                }
                Step::Fetch { until } => {
                    at = until;
                    steps.push((None, at));
                }
            }
        }
        steps
    }

    const K: u32 = 1 << 10;

    #[test]
    fn runs_are_copied_and_fetched_as_one() {
        let old = table(&[(1, 100 * K), (2, 100 * K), (3, 100 * K), (4, 100 * K)]);
        let new = table(&[(1, 100 * K), (2, 100 * K), (8, K), (9, K), (4, 100 * K)]);
        let recipe = Recipe::new(new, &held(&old));
        let k = u64::from(K);
        let expected = [(Some(0), 200 * k), (None, 202 * k), (Some(300 * k), 302 * k)];
        assert_eq!(steps(&recipe, 302 * k), expected);
        assert_eq!((recipe.local(), recipe.requests()), (300 * k, 1));
        let Step::Copy { offset, length, .. } = recipe.step(150 * k, 302 * k) else { panic!() };
        assert_eq!((offset, length), (150 * k, 50 * k), "resumed in the middle of a run");
    }

    #[test]
    fn short_gaps_are_fetched() {
        let old = table(&[(1, 10 * K), (2, 100 * K)]);
        let new = table(&[(7, K), (1, 10 * K), (8, K), (2, 100 * K), (9, K)]);
        let recipe = Recipe::new(new, &held(&old));
        let k = u64::from(K);
        let expected = [(None, 12 * k), (Some(10 * k), 112 * k), (None, 113 * k)];
        assert_eq!(steps(&recipe, 113 * k), expected);
        assert_eq!(steps(&Recipe::whole(), 5), [(None, 5)]);
    }
}
