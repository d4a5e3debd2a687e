//! A blob on its way into the cache: locked, resumable, verified before it gets its name.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mica_graph::{Blob, Digest, Layer};
use mica_squashfs::chunks::ChunkTable;

use super::compare::Comparison;
use super::{Cache, CacheError};
use crate::file::{self, Lock, Named};
use crate::pull::POLL;

/// What became of the wish to bring in a blob.
pub(crate) enum Reserved {
    /// It is there.
    Present,
    /// Another process, or thread, is bringing it in; so many bytes are there.
    Busy(u64),
    /// Ours to bring in.
    Ours(Box<Part>),
}

/// What became of a blob that was read from somewhere.
pub(crate) enum Stored {
    /// It is there.
    Whole,
    /// It was other bytes.
    Wrong,
    /// It could not be read to its end.
    Unread(io::Error),
}

/// The `.part` file of one blob, locked by us. Dropped, it stays for whoever resumes.
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    blob: Blob,
    hasher: blake3::Hasher,
    len: u64,
    /// Whether the chunk table fits, if that is to be known.
    comparison: Option<Comparison>,
    writeback: file::Writeback,
}

impl Cache {
    /// Takes the lock of a digest if it is free. A cached file with the wrong length is removed.
    pub(crate) fn reserve(&self, blob: &Blob) -> Result<Reserved, CacheError> {
        if self.has(blob)? {
            return Ok(Reserved::Present);
        }
        let path = self.part_path(blob);
        loop {
            let file = file::open_part(&path)?;
            if !Lock::try_exclusive_on(&file).named("lock", &path)? {
                let len = file.metadata().named("stat", &path)?.len();
                return Ok(Reserved::Busy(len + self.own_len(&blob.digest)));
            }
            // The holder before us may have renamed it into place, or removed it.
            if !file::is_at(&file, &path).named("stat", &path)? {
                continue;
            }
            match self.blob(blob) {
                Ok(Some(_)) => {
                    file::remove(&path)?;
                    return Ok(Reserved::Present);
                }
                Ok(None) => {}
                Err(CacheError::Damaged { path, found, .. }) => {
                    tracing::warn!(path = %path.display(), found, "removing a damaged blob");
                    file::remove(&path)?;
                }
                Err(error) => return Err(error),
            }
            return Ok(Reserved::Ours(Box::new(Part::resume(file, path, blob.clone())?)));
        }
    }

    pub(crate) fn part_path(&self, blob: &Blob) -> PathBuf {
        self.folder("incoming").join(format!("{}.part", blob.digest.hex()))
    }

    /// How much an interrupted fetch left of a blob.
    pub(crate) fn part_len(&self, blob: &Blob) -> Result<u64, CacheError> {
        Ok(file::stat(&self.part_path(blob))?.map_or(0, |meta| meta.len()))
    }

    /// A file for bytes on their way elsewhere; gone when it is dropped.
    pub(crate) fn scratch(&self) -> Result<file::Temporary, CacheError> {
        Ok(self.staging.create()?)
    }

    /// A file for bytes that nobody else is to find.
    pub(crate) fn nameless(&self) -> Result<File, CacheError> {
        let temporary = self.staging.create()?;
        // Its name goes with the end of this function.
        Ok(temporary.file.try_clone().named("clone", &temporary.path)?)
    }

    /// Bytes of an image that are here, also while it is fetched lazily: then by what the file system has allocated.
    pub fn local(&self, layer: &Layer) -> u64 {
        use std::os::unix::fs::MetadataExt;
        if self.holds(layer) {
            return layer.size;
        }
        let blob = layer.image();
        let part = std::fs::metadata(self.part_path(&blob));
        part.map_or(0, |meta| (meta.blocks() * 512).min(meta.len()).min(layer.size))
    }

    fn has(&self, blob: &Blob) -> Result<bool, CacheError> {
        match self.blob(blob) {
            Ok(found) => Ok(found.is_some()),
            Err(CacheError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes in a file that is already here, such as an image just packed. Whether it was not there before.
    pub fn insert(&self, blob: &Blob, source: &Path) -> Result<bool, CacheError> {
        let Some(mut part) = self.reserve_now(blob)? else { return Ok(false) };
        part.restart()?;
        let mut from = File::open(source).named("open", source)?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            match from.read(&mut buffer).named("read", source)? {
                0 => break,
                n => part.append(&buffer[..n]).map_err(|e| part_error(&part.path, e))?,
            }
        }
        finish(part, self, source)
    }

    /// Takes in bytes.
    pub(crate) fn store(&self, blob: &Blob, bytes: &[u8]) -> Result<bool, CacheError> {
        let Some(mut part) = self.reserve_now(blob)? else { return Ok(false) };
        part.restart()?;
        part.append(bytes).map_err(|e| part_error(&part.path, e))?;
        finish(part, self, &self.blob_path(&blob.digest))
    }

    /// Takes in what a reader gives, making room on a full disk; a blob that is here already stays as it is.
    pub(crate) fn store_from(
        &self,
        blob: &Blob,
        from: &mut dyn Read,
    ) -> Result<Stored, CacheError> {
        let Some(mut part) = self.reserve_now(blob)? else { return Ok(Stored::Whole) };
        part.restart()?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Stored::Unread(error)),
            };
            while let Err(error) = part.append(&buffer[..n]) {
                let needed = blob.size.saturating_sub(part.len());
                if !file::is_full(&error) || self.make_room(needed)? == 0 {
                    let path = part.path().to_owned();
                    part.discard()?;
                    return Err(part_error(&path, error));
                }
            }
        }
        let stored = if part.finish(self)?.is_ok() { Stored::Whole } else { Stored::Wrong };
        self.keep_quota()?;
        Ok(stored)
    }

    /// Takes the lock of a digest, waiting for whoever is bringing it in, as long as that gets on; `None` if it is there.
    fn reserve_now(&self, blob: &Blob) -> Result<Option<Box<Part>>, CacheError> {
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            match self.reserve(blob)? {
                Reserved::Present => return Ok(None),
                Reserved::Ours(part) => return Ok(Some(part)),
                Reserved::Busy(len) if seen.replace(len) != Some(len) => since = Instant::now(),
                Reserved::Busy(_) if since.elapsed() < self.patience => {}
                Reserved::Busy(_) => {
                    // Says who it is.
                    let path = self.part_path(blob);
                    let file = file::open_part(&path)?;
                    Lock::exclusive_on(&file, Duration::ZERO).named("lock", &path)?;
                }
            }
            std::thread::sleep(POLL);
        }
    }
}

fn finish(part: Box<Part>, cache: &Cache, source: &Path) -> Result<bool, CacheError> {
    let expected = part.blob.digest;
    let wrong = |found| CacheError::NotThisBlob { path: source.to_owned(), expected, found };
    part.finish(cache)?.map(|()| true).map_err(|mismatch| wrong(mismatch.found))
}

fn part_error(path: &Path, source: io::Error) -> CacheError {
    CacheError::File(file::FileError { verb: "write", path: path.to_owned(), source })
}

/// A complete part with another digest than wanted; it was thrown away.
#[derive(Debug)]
pub(crate) struct Mismatch {
    pub(crate) found: Digest,
    pub(crate) len: u64,
}

impl Part {
    /// Hashes what an earlier, interrupted fetch left, so that it counts for nothing more than bytes that come now.
    fn resume(file: File, path: PathBuf, blob: Blob) -> Result<Self, CacheError> {
        let held = file.metadata().named("stat", &path)?.len();
        let (hasher, writeback) = (blake3::Hasher::new(), file::Writeback::new(held));
        let mut part = Self { file, path, blob, hasher, len: 0, comparison: None, writeback };
        if held > part.blob.size {
            part.restart()?;
            return Ok(part);
        }
        let mut buffer = vec![0; 1 << 18];
        loop {
            match part.file.read(&mut buffer).named("read", &part.path)? {
                0 => break,
                n => {
                    part.hasher.update(&buffer[..n]);
                    part.len += n as u64;
                }
            }
        }
        Ok(part)
    }

    /// Bytes that are there.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the next bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // Part of them may have been written: go back to where the hash is.
            self.file.set_len(self.len)?;
            io::Seek::seek(&mut self.file, io::SeekFrom::Start(self.len))?;
            return Err(error);
        }
        self.hasher.update(bytes);
        if let Some(comparison) = &mut self.comparison {
            comparison.update(bytes);
        }
        self.len += bytes.len() as u64;
        self.writeback.wrote(&self.file, self.len);
        Ok(())
    }

    /// Compares what comes with a chunk table, so that later images can borrow from this one. What is there already is not.
    pub(crate) fn compare(&mut self, name: Digest, table: ChunkTable) {
        if self.len == 0 {
            self.comparison = Some(Comparison::new(name, table));
        }
    }

    /// The locked file itself, to be filled in another order, and its path.
    pub(crate) fn into_file(self) -> (File, PathBuf) {
        (self.file, self.path)
    }

    /// Throws away what is there.
    pub(crate) fn restart(&mut self) -> Result<(), CacheError> {
        self.file.set_len(0).named("truncate", &self.path)?;
        io::Seek::rewind(&mut self.file).named("rewind", &self.path)?;
        self.hasher.reset();
        self.comparison = self.comparison.take().map(|comparison| comparison.again());
        self.len = 0;
        Ok(())
    }

    /// Removes the file as well.
    pub(crate) fn discard(self) -> Result<(), CacheError> {
        file::remove(&self.path)?;
        Ok(())
    }

    /// Verifies, syncs and renames; a part with the wrong content is removed.
    pub(crate) fn finish(self, cache: &Cache) -> Result<Result<(), Mismatch>, CacheError> {
        let found: Digest = self.hasher.finalize().into();
        if found != self.blob.digest || self.len != self.blob.size {
            let len = self.len;
            self.discard()?;
            return Ok(Err(Mismatch { found, len }));
        }
        file::publish(&self.file, &self.path, &cache.blob_path(&self.blob.digest), 0o444)?;
        if let Some(table) = self.comparison.as_ref().and_then(Comparison::fits) {
            cache.note_checked(&self.blob.digest, &table);
        }
        Ok(Ok(()))
    }
}
