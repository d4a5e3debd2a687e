//! Asking the disk for an image's bytes before they are needed.
//!
//! An image is read by several threads, data here and tables there, by which the kernel does not see that anybody reads in
//! sequence. But who reads a tree goes through its image about in order: when a window of the image is touched after the
//! one before it, the next ones are fetched. Whoever jumps about causes nothing.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mica_squashfs::Source;

const WINDOW: u64 = 512 << 10;
/// How far is fetched ahead, in windows.
const AHEAD: u64 = 4;
/// Windows that count as touched: one for each place where somebody may be reading, and some more.
const RECENT: usize = 16;

/// An image's bytes, on a disk.
pub(crate) struct ReadAhead<S> {
    source: S,
    /// Windows touched last, by number.
    recent: [AtomicU64; RECENT],
    next: AtomicUsize,
}

impl<S> ReadAhead<S> {
    pub(crate) fn new(source: S) -> ReadAhead<S> {
        let recent = std::array::from_fn(|_| AtomicU64::new(u64::MAX));
        ReadAhead { source, recent, next: AtomicUsize::new(0) }
    }

    fn was_touched(&self, window: u64) -> bool {
        self.recent.iter().any(|recent| recent.load(Ordering::Relaxed) == window)
    }

    /// Notes a read that ends in a window; says whether it is new and goes on from the one before.
    fn goes_on(&self, window: u64) -> bool {
        if self.was_touched(window) {
            return false;
        }
        // Two threads may both think so: then it is fetched twice, which the kernel sees.
        let slot = self.next.fetch_add(1, Ordering::Relaxed) % RECENT;
        self.recent[slot].store(window, Ordering::Relaxed);
        window > 0 && self.was_touched(window - 1)
    }
}

impl<S: Source> Source for ReadAhead<S> {
    fn len(&self) -> io::Result<u64> {
        self.source.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let window = offset.saturating_add(buf.len() as u64) / WINDOW;
        if self.goes_on(window) {
            let from = (window + 1).saturating_mul(WINDOW);
            if let Err(error) = self.source.will_need(from, AHEAD * WINDOW) {
                tracing::debug!(%error, "an image cannot be read ahead");
            }
        }
        self.source.read_exact_at(buf, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_goes_on_is_read_ahead() {
        let image = ReadAhead::new(tempfile::tempfile().unwrap());
        let seen: Vec<bool> =
            [7, 7, 8, 100, 9, 9, 101, 3, 102].map(|window| image.goes_on(window)).into();
        assert_eq!(seen, [false, false, true, false, true, false, true, false, true]);
    }
}
