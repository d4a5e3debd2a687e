//! Comparing an image's bytes with its chunk table when they are read.
//!
//! A chunk is read whole, hashed, and only then a part of it handed out: what a reader gets is what was verified. By default
//! that is done when a chunk is first touched; what the page cache holds afterwards is trusted.

use std::cell::RefCell;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use mica_squashfs::Source;
use mica_squashfs::chunks::{Chunk, ChunkTable};
use serde::{Deserialize, Serialize};

/// When an image's bytes are compared with its chunk table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Never: damage is seen only where it doesn't decode.
    Never,
    /// When a chunk is first read.
    #[default]
    FirstRead,
    /// Whenever a chunk is read.
    Always,
}

/// A text that names none of the choices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of never, first-read, always")]
pub struct ParseVerifyError(String);

impl FromStr for Verify {
    type Err = ParseVerifyError;

    fn from_str(text: &str) -> Result<Verify, ParseVerifyError> {
        match text {
            "never" => Ok(Verify::Never),
            "first-read" => Ok(Verify::FirstRead),
            "always" => Ok(Verify::Always),
            _ => Err(ParseVerifyError(text.to_owned())),
        }
    }
}

/// A chunk whose bytes are not those of its digest.
#[derive(Debug, thiserror::Error)]
#[error("the chunk of {length} bytes at {offset} is damaged: its BLAKE3 is not the chunk table's")]
struct Damaged {
    offset: u64,
    length: u32,
}

/// A source that hands out verified bytes only.
pub(crate) struct Verified<S> {
    source: S,
    table: ChunkTable,
    always: bool,
    /// One bit for each chunk that was found good.
    good: Vec<AtomicU64>,
}

thread_local! {
    static CHUNK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
/// Buffers beyond this are not kept; our chunks are shorter.
const KEPT: usize = 256 << 10;

impl<S: Source> Verified<S> {
    pub(crate) fn new(source: S, table: ChunkTable, always: bool) -> Verified<S> {
        let words = table.chunks().len().div_ceil(64);
        let good = std::iter::repeat_with(AtomicU64::default).take(words).collect();
        Verified { source, table, always, good }
    }

    fn is_good(&self, index: usize) -> bool {
        !self.always && self.good[index / 64].load(Ordering::Relaxed) & (1 << (index % 64)) != 0
    }

    /// Copies to `out` what the chunk has from `from` on.
    fn verified(&self, index: usize, chunk: &Chunk, from: u64, out: &mut [u8]) -> io::Result<()> {
        CHUNK.with_borrow_mut(|buffer| {
            buffer.resize(chunk.length as usize, 0);
            self.source.read_exact_at(buffer, chunk.offset)?;
            if !chunk.matches(buffer) {
                let Chunk { offset, length, .. } = *chunk;
                return Err(io::Error::new(io::ErrorKind::InvalidData, Damaged { offset, length }));
            }
            let start = (from - chunk.offset) as usize;
            out.copy_from_slice(&buffer[start..start + out.len()]);
            self.good[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
            if buffer.capacity() > KEPT {
                *buffer = Vec::new();
            }
            Ok(())
        })
    }
}

impl<S: Source> Source for Verified<S> {
    fn len(&self) -> io::Result<u64> {
        self.source.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.table.image_len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let chunks = self.table.chunks();
        let (mut at, mut rest) = (offset, buf);
        let mut index = chunks.partition_point(|chunk| chunk.end() <= offset);
        while !rest.is_empty() {
            let chunk = &chunks[index];
            let here = (chunk.end() - at).min(rest.len() as u64) as usize;
            let (out, more) = rest.split_at_mut(here);
            match self.is_good(index) {
                true => self.source.read_exact_at(out, at)?,
                false => self.verified(index, chunk, at, out)?,
            }
            (at, rest, index) = (at + here as u64, more, index + 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Source for Shared {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.lock().unwrap().len() as u64)
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.lock().unwrap().read_exact_at(buf, offset)
        }
    }

    fn source(when: Verify) -> (Arc<Mutex<Vec<u8>>>, Verified<Shared>) {
        let bytes: Vec<u8> = (0..100).collect();
        let mut table = ChunkTable::default();
        for chunk in [&bytes[..30], &bytes[30..37], &bytes[37..]] {
            table.push(chunk.len() as u32, *blake3::hash(chunk).as_bytes());
        }
        let bytes = Arc::new(Mutex::new(bytes));
        (Arc::clone(&bytes), Verified::new(Shared(bytes), table, when == Verify::Always))
    }

    fn read(source: &impl Source, from: usize, to: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; to - from];
        source.read_exact_at(&mut out, from as u64).ok().map(|()| out)
    }

    #[test]
    fn any_range_reads_as_it_is() {
        let (bytes, source) = source(Verify::FirstRead);
        let bytes = bytes.lock().unwrap().clone();
        for from in 0..=100 {
            for to in from..=100 {
                assert_eq!(read(&source, from, to).unwrap(), bytes[from..to]);
            }
        }
        assert_eq!(read(&source, 90, 101), None);
    }

    #[test]
    fn damage_is_seen_where_it_is_and_when_it_is_looked_for() {
        let (bytes, source) = source(Verify::FirstRead);
        assert!(read(&source, 0, 5).is_some());
        bytes.lock().unwrap()[8] = 0;
        bytes.lock().unwrap()[33] = 0;
        assert!(read(&source, 0, 30).is_some(), "it was verified once");
        assert_eq!(read(&source, 36, 37), None);
        assert!(read(&source, 37, 100).is_some());
    }

    #[test]
    fn always_means_every_time() {
        let (bytes, source) = source(Verify::Always);
        assert!(read(&source, 0, 5).is_some());
        bytes.lock().unwrap()[8] = 0;
        assert_eq!(read(&source, 0, 5), None);
    }
}
