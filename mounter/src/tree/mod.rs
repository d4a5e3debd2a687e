//! The tree that the mount shows: layers merged by the overlay rules, the upper above them.
//!
//! Nothing here knows of FUSE: operations take nodes and names, and answer with attributes or an errno.
//! [`node`] says how nodes live and what is locked when.

mod attr;
mod changes;
mod complete;
mod copyup;
mod file;
mod links;
mod list;
mod lookup;
mod make;
pub(crate) mod node;
mod partial;
mod remove;
mod rename;
mod xattr;

use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::os::fd::OwnedFd;
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use rustix::io::Errno;

pub(crate) use attr::{Change, SetTime};
pub(crate) use file::Open;
pub(crate) use list::{Entry, Listing};
pub(crate) use lookup::Seen;
pub(crate) use make::{Caller, New};
pub(crate) use node::Node;
pub(crate) use rename::End;

use crate::descriptors::OpenFiles;
use crate::kind::Kind;
use crate::lower::{Lower, LowerError};
use crate::numbers::ROOT;
use crate::overlay;
use crate::upper::{Res, UpperDir};
use complete::Incompletes;
use node::{Dir, InUpper, Lowers, State, Table};

/// Directories of the upper that are kept open.
const MAX_DIR_FDS: usize = 256;

pub(crate) struct Tree {
    pub(crate) lower: Lower,
    upper: Option<UpperDir>,
    root: Arc<Node>,
    table: Mutex<Table>,
    namespace: RwLock<()>,
    /// Open directories of the upper by node; only a cache.
    dir_fds: Mutex<HashMap<u64, Arc<OwnedFd>>>,
    open_files: OpenFiles,
    changes: changes::Changes,
    /// Nodes that are being copied up, so that each is copied once.
    copying: Mutex<HashSet<u64>>,
    copied: Condvar,
    /// Directories that were renamed, once that was needed.
    moved: Mutex<Option<links::Moved>>,
    incompletes: Mutex<Incompletes>,
    /// A file was added to them, or they are not to be completed in the background any more.
    incomplete: Condvar,
}

/// The namespace, held exclusively.
struct Changing<'a> {
    upper: Option<&'a UpperDir>,
    _guard: RwLockWriteGuard<'a, ()>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if let Some(upper) = self.upper {
            upper.set_forced(false);
        }
    }
}

impl Tree {
    pub(crate) fn new(lower: Lower, upper: Option<UpperDir>) -> Result<Tree, LowerError> {
        let parts = overlay::root(&lower)?;
        let lowers = Lowers { parts, path: b"/".as_slice().into(), ..Lowers::default() };
        let in_upper = if upper.is_some() { InUpper::Yes } else { InUpper::No };
        let state = State {
            upper: in_upper,
            dir: Some(Box::new(Dir { lowers: Arc::new(lowers) })),
            ..State::default()
        };
        let mut table = Table::default();
        let root = table.intern(ROOT, || Node::new(ROOT, Kind::Directory, state));
        Ok(Tree {
            lower,
            upper,
            root,
            table: Mutex::new(table),
            namespace: RwLock::new(()),
            dir_fds: Mutex::default(),
            open_files: OpenFiles::new(),
            changes: changes::Changes::default(),
            copying: Mutex::default(),
            copied: Condvar::new(),
            moved: Mutex::default(),
            incompletes: Mutex::default(),
            incomplete: Condvar::new(),
        })
    }

    pub(crate) fn root(&self) -> &Arc<Node> {
        &self.root
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    fn upper(&self) -> Res<&UpperDir> {
        self.upper.as_ref().ok_or(Errno::ROFS)
    }

    /// The node of a number that the kernel was told of.
    pub(crate) fn node(&self, ino: u64) -> Res<Arc<Node>> {
        self.table().get(ino).ok_or(Errno::STALE)
    }

    pub(crate) fn remember(&self, node: &Arc<Node>) {
        self.table().remember(node);
    }

    pub(crate) fn forget(&self, ino: u64, count: u64) {
        self.table().forget(ino, count);
    }

    /// Whether a listing still has all names of its directory.
    pub(crate) fn is_current(&self, dir: &Node, listing: &Listing) -> bool {
        listing.generation == self.changes.generation(dir.ino)
    }

    /// Whether somebody changes the directory just now.
    pub(crate) fn is_changing(&self, dir: &Node) -> bool {
        self.upper.is_some() && self.changes.is_changing(dir.ino)
    }

    /// Nodes held at the moment.
    pub(crate) fn node_count(&self) -> usize {
        self.table().len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For those who only look.
    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.namespace.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For those who change what is where.
    fn exclusive(&self) -> Changing<'_> {
        let guard = self.namespace.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(upper) = &self.upper {
            upper.set_forced(true);
        }
        Changing { upper: self.upper.as_ref(), _guard: guard }
    }

    /// Looks at the upper; what modes forbid, for which nobody else may look, once more.
    fn look<T>(&self, mut work: impl FnMut() -> Res<T>) -> Res<T> {
        let looking = self.shared();
        let result = self.with_room(&mut work);
        drop(looking);
        let can_force = self.upper.as_ref().is_some_and(UpperDir::can_force);
        if !can_force || !matches!(result, Err(Errno::ACCESS)) {
            return result;
        }
        let _changing = self.exclusive();
        work()
    }

    /// Names what is wrong with a layer in the log; the caller gets EIO for this file and no other.
    fn damaged(&self, node: &Node, error: &LowerError) -> Errno {
        self.damaged_at(&node.path(), error)
    }

    fn damaged_at(&self, path: &str, error: &LowerError) -> Errno {
        if matches!(error.source, mica_squashfs::ReadError::Interrupted) {
            return Errno::INTR;
        }
        let mut cause = error.source.to_string();
        let mut next = error.source.source();
        while let Some(source) = next {
            cause.push_str(": ");
            cause.push_str(&source.to_string());
            next = source.source();
        }
        let block = error.block.map(tracing::field::display);
        tracing::error!(layer = error.layer, path, block, cause, "cannot read from an image");
        Errno::IO
    }

    /// Does what may need a descriptor: if there is none left, once more without those that are only kept at hand.
    fn with_room<T>(&self, mut work: impl FnMut() -> Res<T>) -> Res<T> {
        match work() {
            Err(Errno::MFILE | Errno::NFILE) => {
                let dirs = std::mem::take(
                    &mut *self.dir_fds.lock().unwrap_or_else(PoisonError::into_inner),
                );
                let files = self.table().close_files();
                drop((dirs, files));
                work()
            }
            result => result,
        }
    }

    /// The upper directory of a node that has one.
    fn dir_fd(&self, node: &Arc<Node>) -> Res<Arc<OwnedFd>> {
        let fds = || self.dir_fds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = fds().get(&node.ino) {
            return Ok(Arc::clone(fd));
        }
        let upper = self.upper()?;
        // Up to the first ancestor that is open, then down in one step.
        let mut names = Vec::new();
        let mut at = Arc::clone(node);
        let base = loop {
            if let Some(fd) = fds().get(&at.ino) {
                break Some(Arc::clone(fd));
            }
            if at.ino == ROOT {
                break None;
            }
            let place = at.place().ok_or(Errno::NOENT)?;
            names.push(place.name);
            at = place.parent;
        };
        names.reverse();
        let fd = Arc::new(match base {
            Some(base) => upper.open_below(&base, &names)?,
            None => upper.open_below(&upper.root, &names)?,
        });
        let mut fds = fds();
        if fds.len() >= MAX_DIR_FDS {
            fds.clear();
        }
        fds.insert(node.ino, Arc::clone(&fd));
        Ok(fd)
    }

    fn drop_dir_fd(&self, node: &Node) {
        self.dir_fds.lock().unwrap_or_else(PoisonError::into_inner).remove(&node.ino);
    }
}
