//! Making a borrowed image: its own bytes come into a file in the order of the image, chunk by chunk, each compared with the
//! table; then the list is written behind them and the file gets its name.
//!
//! The file is `incoming/<image>.own.part`, written by whoever holds the lock of the image's digest. One that an interrupted
//! fetch left is gone on with: what is in it is compared with the table again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mica_graph::{Blob, Digest, Layer};
use mica_squashfs::chunks::{Chunk, ChunkTable};

use super::format::{BaseFile, List, Segment, read};
use crate::cache::{Cache, CacheError};
use crate::file::{self, Lock, Named};

/// The own bytes of an image on their way.
pub(crate) struct Own<'a> {
    file: File,
    path: PathBuf,
    table: &'a ChunkTable,
    is_own: &'a dyn Fn(&Chunk) -> bool,
    /// The chunk in the making starts here in the image, and in the file here.
    at: u64,
    written: u64,
    /// What came of it; of one that lies elsewhere, only how much.
    chunk: Vec<u8>,
    passed: u64,
}

/// Why bytes were not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    Io(io::Error),
    /// They are not those of the table; what came of their chunk is thrown away.
    Wrong {
        expected: Digest,
        found: Digest,
    },
}

impl<'a> Own<'a> {
    /// Begins, or goes on with what is there. What is not `is_own` lies elsewhere.
    pub(crate) fn resume(
        cache: &Cache,
        image: &Blob,
        table: &'a ChunkTable,
        is_own: &'a dyn Fn(&Chunk) -> bool,
    ) -> Result<Self, CacheError> {
        let path = cache.own_path(&image.digest);
        let file = locked(&path, cache.patience)?;
        let chunk = Vec::new();
        let mut own = Self { file, path, table, is_own, at: 0, written: 0, chunk, passed: 0 };
        let held = own.file.metadata().named("stat", &own.path)?.len();
        for chunk in table.chunks() {
            if is_own(chunk) {
                if own.written + u64::from(chunk.length) > held {
                    break;
                }
                own.chunk.resize(chunk.length as usize, 0);
                let read = own.file.read_exact_at(&mut own.chunk, own.written);
                read.named("read", &own.path)?;
                if !chunk.matches(&own.chunk) {
                    break;
                }
                own.written += u64::from(chunk.length);
            }
            own.at = chunk.end();
        }
        own.chunk.clear();
        own.file.set_len(own.written).named("truncate", &own.path)?;
        Ok(own)
    }

    /// How far in the image we are.
    pub(crate) fn at(&self) -> u64 {
        self.at + self.chunk.len() as u64 + self.passed
    }

    /// Own bytes that are complete.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Passes over bytes that lie elsewhere, up to the start of a chunk.
    pub(crate) fn skip(&mut self, until: u64) {
        (self.at, self.passed) = (until, 0);
    }

    /// Takes the next bytes. What lies elsewhere may come, too, from a source that ignores ranges.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> Result<(), NotTaken> {
        while !bytes.is_empty() {
            let index = self.table.chunks().partition_point(|chunk| chunk.end() <= self.at);
            let Some(chunk) = self.table.chunks().get(index) else { return Ok(()) };
            let lacking = (chunk.end() - self.at()) as usize;
            let (here, more) = bytes.split_at(lacking.min(bytes.len()));
            bytes = more;
            if !(self.is_own)(chunk) {
                self.passed += here.len() as u64;
                if here.len() == lacking {
                    self.skip(chunk.end());
                }
                continue;
            }
            self.chunk.extend_from_slice(here);
            if here.len() < lacking {
                return Ok(());
            }
            let came = std::mem::take(&mut self.chunk);
            if !chunk.matches(&came) {
                let expected = Digest::from_bytes(chunk.digest);
                return Err(NotTaken::Wrong { expected, found: Digest::of(&came) });
            }
            self.file.write_all_at(&came, self.written).map_err(NotTaken::Io)?;
            (self.at, self.written) = (chunk.end(), self.written + came.len() as u64);
            self.chunk = came;
            self.chunk.clear();
        }
        Ok(())
    }

    /// Removes what is there.
    pub(crate) fn discard(&self) -> Result<(), CacheError> {
        file::remove(&self.path)?;
        Ok(())
    }

    /// Gives the image its name, if what it borrows is still there; whether it has it.
    pub(crate) fn finish(
        &self,
        cache: &Cache,
        layer: &Layer,
        bases: &[BaseFile],
        segments: &[Segment],
    ) -> Result<bool, CacheError> {
        let (Some(table), Some(target)) = (&layer.chunks, cache.borrowed_path(layer)) else {
            return Ok(false);
        };
        let (bases, segments) = (bases.to_vec(), segments.to_vec());
        let list = List { image: layer.digest, table: table.digest, bases, segments };
        let written = self.file.write_all_at(&list.encode(), self.written);
        written.named("write", &self.path)?;
        // Not under the lock, where it would keep others waiting.
        self.file.sync_all().named("sync", &self.path)?;
        let _gc = cache.shared("gc")?;
        let fits = read(&self.file).named("read", &self.path)?.is_some();
        if !fits
            || cache.is_taken(&target)?
            || !list.bases.iter().all(|b| cache.open_base(b).is_some())
        {
            file::remove(&self.path)?;
            return Ok(false);
        }
        file::publish(&self.file, &self.path, &target, 0o444)?;
        Ok(true)
    }
}

/// Opens a file and locks it, so that it isn't taken for what a dead process left; the lock of the digest is what keeps others from it.
fn locked(path: &Path, patience: Duration) -> Result<File, CacheError> {
    loop {
        let file = file::open_part(path)?;
        Lock::exclusive_on(&file, patience).named("lock", path)?;
        // Just then it may have been removed as what a dead process left.
        if file::is_at(&file, path).named("stat", path)? {
            return Ok(file);
        }
    }
}

impl Cache {
    pub(super) fn own_path(&self, image: &Digest) -> PathBuf {
        self.folder("incoming").join(format!("{}.own.part", image.hex()))
    }

    /// How much of its own an image on its way has.
    pub(crate) fn own_len(&self, image: &Digest) -> u64 {
        std::fs::metadata(self.own_path(image)).map_or(0, |meta| meta.len())
    }

    /// Whether a name is that of a list others may refer to: one that can't be used any more, because its own bases are gone.
    fn is_taken(&self, target: &Path) -> Result<bool, CacheError> {
        let Some(held) = file::open_regular(target)? else {
            return Ok(false);
        };
        let intact = read(&held).is_ok_and(|listed| listed.is_some());
        let entries = if intact { self.entries()? } else { Vec::new() };
        let ours = entries.iter().find(|entry| entry.path == target);
        Ok(ours.is_some_and(|ours| entries.iter().any(|entry| entry.borrows_from(ours))))
    }
}
