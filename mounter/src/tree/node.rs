//! Inodes the kernel knows of, and where they are.
//!
//! A node is found by its number. It remembers where it is in the tree (for its path in the upper and in
//! messages), which inode of a layer it is, and whether it lives in the upper. Nodes hold their parents,
//! never their children, so there are no cycles; the table drops a node when the kernel has forgotten it
//! and no other node or request holds it.
//!
//! Locking: `Tree::namespace` is held shared by whoever looks, or opens by a name, and exclusively by whoever changes
//! places: so a name leads to the node whose place it is. A node's own lock is held for field access only, never two at once, never over a system call.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::partial::Partial;
use crate::kind::Kind;
use crate::lower::LowerNode;
use crate::numbers::UpperNumbers;
use crate::overlay::{Merged, Part};
use crate::upper::Parked;

pub(crate) type LowerPart = Part<LowerNode>;

/// A name in a directory.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: Box<[u8]>,
}

pub(crate) struct Node {
    pub(crate) ino: u64,
    pub(crate) kind: Kind,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Where it is; several places for hard links, none once it was removed.
    pub(crate) places: Vec<Place>,
    /// The inode in a layer, for anything but directories.
    pub(crate) lower: Option<LowerPart>,
    pub(crate) upper: InUpper,
    /// Number in the upper's file system, once it is known: what is opened by name must have it.
    pub(crate) number: Option<u64>,
    pub(crate) rest: Rest,
    pub(crate) dir: Option<Box<Dir>>,
    /// The upper's file, while it is open.
    pub(crate) file: Option<OpenFile>,
    pub(crate) opens: u32,
    /// Somebody opened it for writing, or truncated it.
    pub(crate) may_change: bool,
    /// The kernel was given all of it before it asked.
    pub(crate) handed_over: bool,
}

#[derive(Clone)]
pub(crate) struct OpenFile {
    pub(crate) file: Arc<File>,
    pub(crate) writable: bool,
}

/// Whether a node is in the upper.
#[derive(Default, Clone)]
pub(crate) enum InUpper {
    #[default]
    No,
    /// Under its places.
    Yes,
    /// Removed from all places the server knows, but still in use.
    Removed(Arc<OwnedFd>),
    /// The same, where there was no descriptor left.
    Parked(Arc<Parked>),
}

/// Where the content of a file of the upper is that the upper doesn't hold.
#[derive(Default)]
pub(crate) enum Rest {
    /// Nobody looked yet.
    #[default]
    Unknown,
    Nowhere,
    InLayer(Arc<Partial>),
}

/// What a directory has besides.
#[derive(Clone)]
pub(crate) struct Dir {
    /// The directories of the layers it is merged from, topmost first.
    pub(crate) lowers: Arc<Lowers>,
}

/// The part of a directory that never changes.
#[derive(Default)]
pub(crate) struct Lowers {
    pub(crate) parts: Vec<LowerPart>,
    /// Where the layers have it: what a redirect must say.
    pub(crate) path: Box<[u8]>,
    pub(crate) merged: OnceLock<Merged<LowerNode>>,
}

impl Node {
    pub(crate) fn new(ino: u64, kind: Kind, state: State) -> Node {
        Node { ino, kind, state: Mutex::new(state) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Only field access happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn in_upper(&self) -> bool {
        !matches!(self.state().upper, InUpper::No)
    }

    /// Whether the content is a layer's, and nobody can have changed it.
    pub(crate) fn is_as_in_layer(&self) -> bool {
        let state = self.state();
        matches!(state.upper, InUpper::No) && !state.may_change
    }

    /// Whether a part of the content is in a layer, though the node is in the upper.
    pub(crate) fn is_partial(&self) -> bool {
        matches!(self.state().rest, Rest::InLayer(_))
    }

    /// The part of the content that is still in a layer, though the node is in the upper.
    pub(crate) fn partial(&self) -> Option<Arc<Partial>> {
        match &self.state().rest {
            Rest::InLayer(partial) => Some(Arc::clone(partial)),
            _ => None,
        }
    }

    pub(crate) fn place(&self) -> Option<Place> {
        self.state().places.first().cloned()
    }

    /// The directories of the layers; empty for what is only in the upper, and for other kinds.
    pub(crate) fn lowers(&self) -> Arc<Lowers> {
        self.state().dir.as_ref().map(|dir| Arc::clone(&dir.lowers)).unwrap_or_default()
    }

    /// The path in the tree, for messages.
    pub(crate) fn path(&self) -> String {
        let mut names = Vec::new();
        let mut place = self.place();
        while let Some(here) = place {
            place = here.parent.place();
            names.push(here.name);
        }
        if names.is_empty() {
            return if self.ino == crate::numbers::ROOT { "/".into() } else { "(removed)".into() };
        }
        let mut path = String::new();
        for name in names.iter().rev() {
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(&String::from_utf8_lossy(name));
        }
        path
    }
}

/// Nodes by number.
#[derive(Default)]
pub(crate) struct Table {
    slots: HashMap<u64, Slot>,
    pub(crate) uppers: UpperNumbers,
}

struct Slot {
    node: Arc<Node>,
    /// How often the kernel was told of it.
    lookups: u64,
}

impl Drop for Table {
    fn drop(&mut self) {
        // Link by link: a deep tree, dropped node by node, would take as deep a stack.
        let places = |slot: &Slot| std::mem::take(&mut slot.node.state().places);
        let links: Vec<_> = self.slots.values().map(places).collect();
        drop(links);
    }
}

impl Table {
    pub(crate) fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.slots.get(&ino).map(|slot| Arc::clone(&slot.node))
    }

    /// The node with this number, made by `make` if it isn't known.
    pub(crate) fn intern(&mut self, ino: u64, make: impl FnOnce() -> Node) -> Arc<Node> {
        let slot =
            self.slots.entry(ino).or_insert_with(|| Slot { node: Arc::new(make()), lookups: 0 });
        Arc::clone(&slot.node)
    }

    /// Counts that the kernel is told of the node.
    pub(crate) fn remember(&mut self, node: &Arc<Node>) {
        let slot = self
            .slots
            .entry(node.ino)
            .or_insert_with(|| Slot { node: Arc::clone(node), lookups: 0 });
        slot.lookups += 1;
    }

    /// The kernel forgets `count` of its references.
    pub(crate) fn forget(&mut self, ino: u64, count: u64) {
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.lookups = slot.lookups.saturating_sub(count);
        }
        self.sweep(ino);
    }

    /// Drops the node if nobody needs it, then its parents likewise.
    pub(crate) fn sweep(&mut self, ino: u64) {
        let mut next = vec![ino];
        while let Some(ino) = next.pop() {
            let unused = self
                .slots
                .get(&ino)
                .is_some_and(|s| s.lookups == 0 && Arc::strong_count(&s.node) == 1);
            if ino == crate::numbers::ROOT || !unused {
                continue;
            }
            if let Some(slot) = self.slots.remove(&ino) {
                next.extend(slot.node.state().places.iter().map(|place| place.parent.ino));
            }
        }
    }

    /// Takes all files of the upper that are kept open; the caller closes them.
    pub(crate) fn close_files(&mut self) -> Vec<OpenFile> {
        self.slots.values().filter_map(|slot| slot.node.state().file.take()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }
}
