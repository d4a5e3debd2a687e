//! Handing to the kernel what is decoded before it asks for it (`FUSE_NOTIFY_STORE`).
//!
//! Decoding a block costs much more than copying it, and a request more than a small file. So the rest of a block that is
//! decoded for a read goes into the page cache with it. And whoever reads the files of a directory one after the other finds
//! the next ones there: an image holds files in the order of their directories, and many small ones in one block. Whoever
//! reads directory after directory finds the first files of the next one as soon as it was listed.
//!
//! Only what the layers have is handed over, and nothing of files that somebody may change: see [`crate::gate`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use fuser::{INodeNo, Notifier};

use crate::gate::Gate;
use crate::kind::Kind;
use crate::lower::{Store, Wish};
use crate::tree::{Node, Tree};

/// A file this near to one that was read before continues a run.
const NEAR: u32 = 8;
/// Runs that are known, the oldest dropped: one for each directory that somebody may be reading.
const RUNS: usize = 16;
/// Bytes that are handed over with one request: a block of small files.
const MOST: u64 = 128 << 10;

#[derive(Default)]
pub(crate) struct Pusher {
    notifier: OnceLock<Notifier>,
    runs: Mutex<Runs>,
    /// Held while storing. The kernel has whoever stores wait for a page that is just being read, which another thread
    /// answers, and that one may not store.
    storing: Mutex<()>,
    pub(crate) gate: Gate,
}

impl Pusher {
    /// From now on files are handed over. More than one thread answers requests.
    pub(crate) fn start(&self, notifier: Notifier) {
        // A mount has one session.
        let _ = self.notifier.set(notifier);
    }

    /// A range of a file is about to be read. Hands over the rest of the blocks that are decoded for it, and at the beginning
    /// of a file what is decoded of those behind it, if one before it was read as well.
    pub(crate) fn before_read(&self, tree: &Tree, node: &Node, range: Range<u64>) {
        let first = range.start == 0;
        self.hand_over(tree, node, first, |store| tree.hand_over_rest(node, range, store));
    }

    /// A file is about to be opened for reading. The first time a small one is handed over as a whole, and those behind it
    /// as for a read.
    pub(crate) fn before_open(&self, tree: &Tree, node: &Node) {
        if node.kind == Kind::File && !node.state().handed_over {
            self.hand_over(tree, node, true, |store| {
                tree.hand_over(node, Wish::Now, MOST, store);
            });
        }
    }

    /// A directory was listed to its end, and this is its first file that only the layers have. Hands over its files if
    /// directories are being read after they were listed.
    pub(crate) fn after_listing(&self, tree: &Tree, (layer, number): (usize, u32)) {
        if self.notifier.get().is_none() || !self.runs().listings.note(layer, number) {
            return;
        }
        let Some(_storing) = self.storing() else { return };
        let next = self.hand_over_from(tree, layer, number, Wish::Now);
        self.runs().begin(Run { layer, last: number, next });
    }

    /// `own` hands over of the file itself; `first` says that its beginning is wanted.
    fn hand_over(&self, tree: &Tree, node: &Node, first: bool, own: impl FnOnce(Store<'_>)) {
        let Some((layer, number)) = tree.lower.numbers.place(node.ino) else { return };
        if self.notifier.get().is_none() {
            return;
        }
        let from = if first { self.runs().note(layer, number) } else { None };
        let Some(_storing) = self.storing() else { return };
        if let Some(_handing) = self.gate.begin(node) {
            own(&mut |offset, bytes| self.store(node.ino, offset, bytes));
        }
        if let Some(from) = from {
            let next = self.hand_over_from(tree, layer, from, Wish::Decoded);
            self.runs().handed_over(layer, number, next);
        }
    }

    fn storing(&self) -> Option<MutexGuard<'_, ()>> {
        match self.storing.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn store(&self, ino: u64, offset: u64, bytes: &[u8]) {
        let stored = self.notifier.get().map(|n| n.store(INodeNo(ino), offset, bytes));
        if let Some(Err(error)) = stored {
            tracing::debug!(%error, "cannot hand a file to the kernel");
        }
    }

    /// Hands over the files from inode `number` on as far as they are decoded, the first as `wish` says, and has the next one
    /// decoded; says which that is.
    fn hand_over_from(&self, tree: &Tree, layer: usize, mut number: u32, mut wish: Wish) -> u32 {
        let (mut left, mut unknown) = (MOST, 0);
        while left > 0 && unknown < NEAR {
            let ino = tree.lower.numbers.lower(layer, number);
            match tree.node(ino) {
                // The kernel doesn't know of it yet, or another layer hides it.
                Err(_) => unknown += 1,
                Ok(node) if node.kind == Kind::File => {
                    if let Some(_handing) = self.gate.begin(&node) {
                        let mut store = |offset, bytes: &[u8]| self.store(ino, offset, bytes);
                        let stored = tree.hand_over(&node, wish, left, &mut store);
                        let Some(bytes) = stored else { break };
                        wish = Wish::Decoded;
                        left = left.saturating_sub(bytes);
                    }
                }
                // The files in it came before it.
                Ok(node) if node.kind == Kind::Directory => break,
                Ok(_) => {}
            }
            number = number.saturating_add(1);
        }
        number
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Files of a layer that are read one after the other.
struct Run {
    layer: usize,
    /// The one read last.
    last: u32,
    /// The first that was not handed over.
    next: u32,
}

/// Directories whose first files nobody may be about to read, the oldest dropped.
const AWAITED: usize = 16;
/// So many directories in a row that are listed and not read end handing over.
const PATIENCE: u32 = 8;
/// One of so many listed directories is left to its reader, to see whether there is one.
const PROBE: u32 = 8;

/// Whether directories are read after they were listed.
#[derive(Default)]
struct Listings {
    /// First files of directories that were left to their readers.
    awaited: VecDeque<(usize, u32)>,
    /// How many more directories may go unread.
    patience: u32,
    listed: u32,
}

impl Listings {
    /// A directory was listed whose first file this is; says whether to hand it over.
    fn note(&mut self, layer: usize, first: u32) -> bool {
        self.listed = self.listed.wrapping_add(1);
        if self.patience > 0 && !self.listed.is_multiple_of(PROBE) {
            return true;
        }
        if self.awaited.len() == AWAITED {
            self.awaited.pop_back();
            self.patience = self.patience.saturating_sub(1);
        }
        self.awaited.push_front((layer, first));
        false
    }

    fn read(&mut self, layer: usize, number: u32) {
        if let Some(at) = self.awaited.iter().position(|&place| place == (layer, number)) {
            self.awaited.remove(at);
            self.patience = PATIENCE;
        }
    }
}

#[derive(Default)]
struct Runs {
    runs: VecDeque<Run>,
    listings: Listings,
}

impl Runs {
    /// Notes that a file is read. If that continues a run, says which is the first to hand over.
    fn note(&mut self, layer: usize, number: u32) -> Option<u32> {
        self.listings.read(layer, number);
        let near = |run: &&mut Run| {
            let (from, to) = (run.last.saturating_sub(NEAR), run.next.saturating_add(NEAR));
            run.layer == layer && (from..=to).contains(&number)
        };
        let after = number.saturating_add(1);
        let Some(run) = self.runs.iter_mut().find(near) else {
            self.begin(Run { layer, last: number, next: after });
            return None;
        };
        run.last = number;
        // What was handed over and is asked for all the same the kernel had no room for.
        (after >= run.next).then_some(after)
    }

    fn begin(&mut self, run: Run) {
        self.runs.truncate(RUNS - 1);
        self.runs.push_front(run);
    }

    fn handed_over(&mut self, layer: usize, last: u32, next: u32) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.layer == layer && run.last == last) {
            run.next = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_directories_are_handed_over_while_they_are_read() {
        let mut listings = Listings::default();
        assert!((0..100).all(|first| !listings.note(0, first * 50)), "nobody reads");
        listings.read(0, 99 * 50 + 1);
        assert!(!listings.note(1, 7), "that was not the first file of any");
        listings.read(1, 7);
        let handed = (0..1000).filter(|first| listings.note(2, first * 50)).count();
        let most = ((AWAITED as u32 + PATIENCE) * PROBE) as usize;
        assert!(
            (PATIENCE as usize..most).contains(&handed),
            "{handed}: it ends when nobody reads any more"
        );
        listings.read(2, 999 * 50);
        let mut handed = 0;
        for first in 0..1000 {
            match listings.note(3, first) {
                true => handed += 1,
                false => listings.read(3, first),
            }
        }
        assert_eq!(handed, 875, "it goes on while those that are left to their readers are read");
    }

    #[test]
    fn files_are_handed_over_once_to_those_who_go_on() {
        let mut runs = Runs::default();
        assert_eq!(runs.note(0, 100), None, "one file is no run");
        assert_eq!(runs.note(1, 101), None, "another layer");
        assert_eq!(runs.note(0, 101), Some(102));
        runs.handed_over(0, 101, 150);
        assert_eq!(runs.note(0, 120), None, "it was handed over");
        assert_eq!(runs.note(0, 150), Some(151));
        assert_eq!(runs.note(0, 153), Some(154), "some may be skipped");
        assert_eq!(runs.note(0, 900), None);
        assert_eq!(runs.note(0, 898), None, "backwards there is nothing to hand over");
        for far in 0..RUNS as u32 {
            runs.note(2, far * 1000);
        }
        assert_eq!(runs.note(0, 155), None, "the oldest run is forgotten");
        assert_eq!(runs.note(2, u32::MAX), None);
        assert_eq!(runs.note(2, u32::MAX), Some(u32::MAX));
    }
}
