//! Removing names.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::lookup::drop_place;
use super::node::{InUpper, Node};
use super::{Res, Tree};
use crate::kind::Kind;
use crate::upper::{Under, statx_fd};

impl Tree {
    /// Removes the file `name`.
    pub(crate) fn unlink(&self, dir: &Arc<Node>, name: &[u8]) -> Res<()> {
        self.remove(dir, name, false)
    }

    /// Removes the empty directory `name`.
    pub(crate) fn rmdir(&self, dir: &Arc<Node>, name: &[u8]) -> Res<()> {
        self.remove(dir, name, true)
    }

    fn remove(&self, dir: &Arc<Node>, name: &[u8], is_dir: bool) -> Res<()> {
        self.upper()?;
        let _changing = self.exclusive();
        self.changes.note(dir.ino, false);
        self.with_room(|| self.remove_locked(dir, name, is_dir))
    }

    fn remove_locked(&self, dir: &Arc<Node>, name: &[u8], is_dir: bool) -> Res<()> {
        let upper = self.upper()?;
        let seen = self.child(dir, name)?.ok_or(Errno::NOENT)?;
        match (seen.node.kind == Kind::Directory, is_dir) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            (true, true) if !self.is_empty_dir(&seen.node)? => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        let fd = self.bring_up_dir(dir)?;
        let below = self.is_below(dir, name)?;
        match upper.look((*fd).as_fd(), name)? {
            Under::Entry(_) => {
                let kept = self.keep(&seen.node, dir, name)?;
                match (below, is_dir) {
                    (true, _) => upper.replace_by_whiteout((*fd).as_fd(), name, is_dir)?,
                    (false, true) => upper.remove_emptied_dir((*fd).as_fd(), name)?,
                    (false, false) => upper.remove_file((*fd).as_fd(), name)?,
                }
                kept.done(self);
            }
            Under::Nothing => {
                upper.make_whiteout((*fd).as_fd(), name)?;
                drop_place(&mut seen.node.state(), dir, name);
            }
            Under::Whiteout => return Err(Errno::NOENT),
        }
        if is_dir {
            self.drop_dir_fd(&seen.node);
        }
        Ok(())
    }

    /// Prepares for a place of a node in the upper to go away: if it is the last one known, whoever
    /// has the file open goes on using it through a descriptor.
    pub(super) fn keep(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &[u8]) -> Res<Kept> {
        let last = node.state().places.len() <= 1;
        let held = match last {
            true => match self.path_fd(node).and_then(|fd| match self.open_files.is_last(&fd) {
                true => Err(Errno::MFILE),
                false => Ok(fd),
            }) {
                // Nobody does more with a removed directory than to look at what it was.
                Err(Errno::MFILE | Errno::NFILE) if node.kind == Kind::Directory => None,
                Err(Errno::MFILE | Errno::NFILE) => {
                    let fd = self.dir_fd(dir)?;
                    Some(InUpper::Parked(Arc::new(self.upper()?.park((*fd).as_fd(), name)?)))
                }
                fd => Some(InUpper::Removed(fd?)),
            },
            false => None,
        };
        Ok(Kept { node: Arc::clone(node), dir: Arc::clone(dir), name: name.into(), held })
    }
}

/// A node one of whose places is about to go away.
pub(super) struct Kept {
    node: Arc<Node>,
    dir: Arc<Node>,
    name: Box<[u8]>,
    held: Option<InUpper>,
}

impl Kept {
    /// The place is gone.
    pub(super) fn done(self, tree: &Tree) {
        let mut state = self.node.state();
        drop_place(&mut state, &self.dir, &self.name);
        let Some(held) = self.held else { return };
        // The number may be given to another file once nobody holds this one.
        let gone = match &held {
            InUpper::Removed(fd) => statx_fd(fd).ok().filter(|s| s.stx_nlink == 0),
            _ => None,
        };
        let gone = gone.map(|stat| stat.stx_ino);
        state.upper = held;
        drop(state);
        if let Some(number) = gone {
            tree.drop_incomplete(&self.node);
            tree.table().uppers.forget(number);
        }
    }
}
