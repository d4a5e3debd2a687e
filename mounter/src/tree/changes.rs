//! Which directories are being changed.
//!
//! A listing stays good while names go, since each entry is looked at once more before it is told; only names that come
//! make a new one necessary. And who lists a directory that others change is told less at once: the kernel lets nobody
//! change a directory while it waits for a listing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Directories that are remembered; more are forgotten all at once.
const DIRS: usize = 4096;
/// How long a directory counts as being changed.
const LATELY: Duration = Duration::from_millis(20);

/// Changes of directories by number.
#[derive(Default)]
pub(super) struct Changes {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    dirs: HashMap<u64, Dir>,
    /// Goes up with each name that comes anywhere, so that no number comes twice.
    added: u64,
    /// What counts for directories that are not known.
    forgotten: u64,
}

struct Dir {
    added: u64,
    last: Instant,
}

impl Changes {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name came into a directory (or may have), or went.
    pub(super) fn note(&self, dir: u64, came: bool) {
        let mut inner = self.inner();
        if inner.dirs.len() >= DIRS {
            inner.dirs.clear();
            inner.added += 1;
            inner.forgotten = inner.added;
        }
        inner.added += u64::from(came);
        let (added, before) = (inner.added, inner.forgotten);
        let known = inner.dirs.entry(dir).or_insert(Dir { added: before, last: Instant::now() });
        known.last = Instant::now();
        if came {
            known.added = added;
        }
    }

    /// Changes when a name came into the directory.
    pub(super) fn generation(&self, dir: u64) -> u64 {
        let inner = self.inner();
        inner.dirs.get(&dir).map_or(inner.forgotten, |dir| dir.added)
    }

    /// Whether somebody changes the directory just now.
    pub(super) fn is_changing(&self, dir: u64) -> bool {
        self.inner().dirs.get(&dir).is_some_and(|dir| dir.last.elapsed() < LATELY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_come_change_a_generation() {
        let changes = Changes::default();
        let first = changes.generation(7);
        assert!(!changes.is_changing(7));
        changes.note(7, false);
        assert!(changes.is_changing(7) && !changes.is_changing(8));
        assert_eq!(changes.generation(7), first);
        changes.note(7, true);
        let second = changes.generation(7);
        assert_ne!(second, first);
        (100..100 + 2 * DIRS as u64).for_each(|dir| changes.note(dir, false));
        assert_ne!(changes.generation(7), second, "forgotten: listed again");
        assert_ne!(changes.generation(7), first);
    }
}
