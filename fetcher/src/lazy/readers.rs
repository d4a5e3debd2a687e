//! Who goes first: what a reader waits for, before what nobody asked for yet.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// All readers of this process: its images share one network, so what is fetched ahead of one must not delay another.
pub(super) static READERS: Readers = Readers(Mutex::new(Seen { waiting: 0, last: None }));

pub(super) struct Readers(Mutex<Seen>);

struct Seen {
    waiting: usize,
    /// When the last one had what it waited for.
    last: Option<Instant>,
}

/// A program reads on soon after it got something: only then is the network free for the rest.
const CALM: Duration = Duration::from_millis(500);

impl Readers {
    /// Somebody is about to read.
    pub(super) fn expect(&self) {
        self.change(|seen| seen.last = Some(Instant::now()));
    }

    /// Somebody waits, as long as the guard lives.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.change(|seen| seen.waiting += 1);
        Waiting(self)
    }

    /// How long to leave the network to readers; `None` if nobody needs it.
    pub(super) fn need(&self) -> Option<Duration> {
        self.change(|seen| {
            if seen.waiting > 0 {
                return Some(CALM);
            }
            CALM.checked_sub(seen.last?.elapsed()).filter(|left| !left.is_zero())
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A reader that waits.
pub(super) struct Waiting<'a>(&'a Readers);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.change(|seen| {
            seen.waiting -= 1;
            seen.last = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_left_to_readers_while_they_wait_and_a_moment_longer() {
        let readers = Readers(Mutex::new(Seen { waiting: 0, last: None }));
        assert_eq!(readers.need(), None);
        let (one, two) = (readers.wait(), readers.wait());
        drop(one);
        assert_eq!(readers.need(), Some(CALM));
        drop(two);
        assert!(readers.need().is_some_and(|left| left <= CALM));
        readers.change(|seen| seen.last = Instant::now().checked_sub(CALM));
        assert_eq!(readers.need(), None);
    }
}
