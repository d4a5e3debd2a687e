//! The FUSE side: requests of the kernel in, replies out.
//!
//! What the kernel may keep, it is told to keep for ever: nobody changes the layers, and the upper is changed
//! through this mount only. Absent names are answered with inode 0, which the kernel remembers too. A mount
//! without an upper has no opens at all (ENOSYS is remembered).
//!
//! A panic in a request is a bug: it is logged, the caller gets EIO (a reply that is dropped sends it), and the
//! server goes on.

mod common;
mod convert;
pub(crate) mod open;
mod requests;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fuser::Request;
use rustix::io::Errno;

use self::open::Backings;
use crate::asker;
use crate::push::Pusher;
use crate::stats::{Counters, Op, Stats};
use crate::tree::{Listing, Node, Tree};

/// For ever: ten years.
const KEEP: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How many directories keep their listing between two requests.
const KEPT_LISTINGS: usize = 16;
/// And how many names they may have together; the two newest are kept in any case, so that two readers of large directories
/// don't take each other's away.
const KEPT_NAMES: usize = 1 << 19;

type Kept = VecDeque<(u64, Arc<Listing>)>;

/// What the mount's owner and the requests share.
pub(crate) struct Shared {
    pub(crate) tree: Tree,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pusher: Pusher,
    pub(crate) backings: Backings,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(tree: Tree) -> Shared {
        let (counters, pusher) = (Arc::new(Counters::new()), Pusher::default());
        Shared { tree, counters, pusher, backings: Backings::default() }
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats { requests: self.counters.requests(), nodes: self.tree.node_count() }
    }

    /// How long the kernel may keep a node's attributes.
    fn keep(&self, ino: u64) -> &'static Duration {
        if self.backings.is_passed(ino) { &Duration::ZERO } else { &KEEP }
    }
}

pub(crate) struct Server {
    shared: Arc<Shared>,
    /// Listings by inode, the oldest dropped.
    listings: Mutex<Kept>,
    /// Held while a listing is made, by inode.
    making: [Mutex<()>; 8],
    passthrough: bool,
}

impl Server {
    /// `passthrough`: let the kernel read and write the upper's files by itself, where it does.
    pub(crate) fn new(shared: Arc<Shared>, passthrough: bool) -> Server {
        Server { shared, listings: Mutex::default(), making: Default::default(), passthrough }
    }

    fn tree(&self) -> &Tree {
        &self.shared.tree
    }

    /// Runs a request; a panic costs this request and no other.
    fn run<R>(&self, request: &Request, op: Op, reply: R, body: impl FnOnce(R)) {
        self.shared.counters.count(op);
        asker::From::pid(request.pid()).run(|| caught(op, || body(reply)));
    }

    /// The rest of a request that opens or truncates a file: runs now, or when the file has been handed to the kernel.
    /// `changed`: from now on the file may be changed.
    fn pass<R: Send + 'static>(
        &self,
        op: Op,
        node: Arc<Node>,
        changed: bool,
        reply: R,
        body: impl FnOnce(&Shared, &Arc<Node>, R) + Send + 'static,
    ) {
        let shared = Arc::clone(&self.shared);
        let passing = Arc::clone(&node);
        let asker = asker::From::current();
        let answer = move || asker.run(|| caught(op, || body(&shared, &passing, reply)));
        self.shared.pusher.gate.pass(&node, changed, answer);
    }

    /// The listing a directory is read from: taken at its beginning, and kept for who goes on.
    fn listing(&self, dir: &Arc<Node>, from_start: bool) -> Result<Arc<Listing>, Errno> {
        let lock = || self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        let writable = self.tree().is_writable();
        let kept = || {
            let usable = |listing: &Arc<Listing>| {
                !from_start || !writable || self.tree().is_current(dir, listing)
            };
            let listings = lock();
            let found =
                listings.iter().find(|(ino, _)| *ino == dir.ino).map(|(_, listing)| listing);
            found.filter(|listing| usable(listing)).map(Arc::clone)
        };
        if let Some(listing) = kept() {
            return Ok(listing);
        }
        // Whoever asks for the same directory meanwhile waits for this one: large ones take much memory.
        let making = &self.making[dir.ino as usize % self.making.len()];
        let _one = making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listing) = kept() {
            return Ok(listing);
        }
        let listing = Arc::new(self.tree().list(dir)?);
        let mut listings = lock();
        listings.retain(|(ino, _)| *ino != dir.ino);
        listings.push_back((dir.ino, Arc::clone(&listing)));
        let names =
            |kept: &Kept| kept.iter().map(|(_, listing)| listing.entries.len()).sum::<usize>();
        while listings.len() > KEPT_LISTINGS
            || (listings.len() > 2 && names(&listings) > KEPT_NAMES)
        {
            listings.pop_front();
        }
        Ok(listing)
    }
}

fn caught(op: Op, body: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(body)).is_err() {
        tracing::error!(operation = op.name(), "bug: a request panicked");
    }
}
