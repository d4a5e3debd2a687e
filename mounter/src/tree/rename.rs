//! Renaming and exchanging.
//!
//! Files that live in a layer are copied up first. A directory that is merged from layers is not copied:
//! its shell in the upper is renamed, and a redirect on it says where the layers have the rest.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::lookup::{Seen, add_place, drop_place};
use super::make::check_name;
use super::node::Node;
use super::{Res, Tree};
use crate::kind::Kind;
use crate::upper::Under;

/// One end of a rename.
#[derive(Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) dir: &'a Arc<Node>,
    pub(crate) name: &'a [u8],
}

impl Tree {
    /// Renames `from` to `to`. Only `NOREPLACE` and `EXCHANGE` are known.
    pub(crate) fn rename(&self, from: End<'_>, to: End<'_>, flags: RenameFlags) -> Res<()> {
        self.upper()?;
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let unknown = !(RenameFlags::EXCHANGE | RenameFlags::NOREPLACE);
        if flags.intersects(unknown) || (exchange && flags.contains(RenameFlags::NOREPLACE)) {
            return Err(Errno::INVAL);
        }
        check_name(to.name)?;
        loop {
            // Content is copied without holding up everybody else, so what was found must be found again.
            let seen = self.lookup(from.dir, from.name)?.ok_or(Errno::NOENT)?;
            self.bring_up(&seen.node, false)?;
            if exchange {
                let seen = self.lookup(to.dir, to.name)?.ok_or(Errno::NOENT)?;
                self.bring_up(&seen.node, false)?;
            }
            let _changing = self.exclusive();
            let source = self.child(from.dir, from.name)?.ok_or(Errno::NOENT)?;
            let target = self.child(to.dir, to.name)?;
            let ready = |seen: &Seen| seen.stat.is_some();
            if !ready(&source) || (exchange && !target.as_ref().is_none_or(ready)) {
                continue;
            }
            self.changes.note(from.dir.ino, exchange);
            self.changes.note(to.dir.ino, true);
            return match target {
                Some(_) if flags.contains(RenameFlags::NOREPLACE) => Err(Errno::EXIST),
                Some(target) if exchange => self.exchange(from, &source, to, &target),
                None if exchange => Err(Errno::NOENT),
                target => self.rename_locked(from, &source, to, target),
            };
        }
    }

    /// Lets a directory that is about to move keep what it shows, and nothing else show through.
    fn mark_moving(&self, node: &Arc<Node>, below_target: bool) -> Res<()> {
        if node.kind != Kind::Directory {
            return Ok(());
        }
        let (upper, fd) = (self.upper()?, self.bring_up_dir(node)?);
        let lowers = node.lowers();
        if !lowers.parts.is_empty() {
            upper.set_redirect(&fd, &lowers.path)
        } else if below_target {
            upper.set_opaque(&fd)
        } else {
            Ok(())
        }
    }

    fn exchange(&self, from: End<'_>, source: &Seen, to: End<'_>, target: &Seen) -> Res<()> {
        if Arc::ptr_eq(&source.node, &target.node) {
            return Ok(());
        }
        let (from_fd, to_fd) = (self.bring_up_dir(from.dir)?, self.bring_up_dir(to.dir)?);
        self.mark_moving(&source.node, self.is_below(to.dir, to.name)?)?;
        self.mark_moving(&target.node, self.is_below(from.dir, from.name)?)?;
        let (old, new) = (((*from_fd).as_fd(), from.name), ((*to_fd).as_fd(), to.name));
        self.upper()?.rename(old, new, RenameFlags::EXCHANGE)?;
        self.moved(&source.node, from, to);
        self.moved(&target.node, to, from);
        Ok(())
    }

    fn rename_locked(
        &self,
        from: End<'_>,
        source: &Seen,
        to: End<'_>,
        target: Option<Seen>,
    ) -> Res<()> {
        let is_dir = source.node.kind == Kind::Directory;
        if let Some(target) = &target {
            if Arc::ptr_eq(&source.node, &target.node) {
                return Ok(()); // two names of one file: nothing happens
            }
            let target_is_dir = target.node.kind == Kind::Directory;
            if is_dir && !target_is_dir {
                return Err(Errno::NOTDIR);
            }
            if target_is_dir && !is_dir {
                return Err(Errno::ISDIR);
            }
            if target_is_dir && !self.is_empty_dir(&target.node)? {
                return Err(Errno::NOTEMPTY);
            }
        }
        let (from_fd, to_fd) = (self.bring_up_dir(from.dir)?, self.bring_up_dir(to.dir)?);
        self.mark_moving(&source.node, self.is_below(to.dir, to.name)?)?;
        let in_upper = target.as_ref().filter(|target| target.stat.is_some());
        let kept = match in_upper {
            Some(target) => Some(self.keep(&target.node, to.dir, to.name)?),
            None => None,
        };
        self.rename_upper(&from_fd, from, &to_fd, to, is_dir)?;
        if let Some(target) = &target {
            drop_place(&mut target.node.state(), to.dir, to.name);
            self.drop_dir_fd(&target.node);
        }
        if let Some(kept) = kept {
            kept.done(self);
        }
        self.moved(&source.node, from, to);
        Ok(())
    }

    /// The rename in the upper; leaves a whiteout where the layers would show through.
    fn rename_upper(
        &self,
        from_fd: &OwnedFd,
        from: End<'_>,
        to_fd: &OwnedFd,
        to: End<'_>,
        is_dir: bool,
    ) -> Res<()> {
        let upper = self.upper()?;
        let below = self.is_below(from.dir, from.name)?;
        let under = upper.look(to_fd.as_fd(), to.name)?;
        let (old, new) = ((from_fd.as_fd(), from.name), (to_fd.as_fd(), to.name));
        if is_dir && !matches!(under, Under::Nothing) {
            // What is there is a whiteout, or an empty directory that may hold whiteouts: swap, then clean up.
            upper.rename(old, new, RenameFlags::EXCHANGE)?;
            let left_is_dir = matches!(under, Under::Entry(_));
            return match (below, left_is_dir) {
                (true, false) => Ok(()),
                (true, true) => upper.replace_by_whiteout(from_fd.as_fd(), from.name, true),
                (false, false) => upper.remove_file(from_fd.as_fd(), from.name),
                (false, true) => upper.remove_emptied_dir(from_fd.as_fd(), from.name),
            };
        }
        if !below {
            return upper.rename(old, new, RenameFlags::empty());
        }
        match upper.rename(old, new, RenameFlags::WHITEOUT) {
            // Not on every file system, not for every user: then in two steps, the new name first.
            Err(Errno::INVAL | Errno::PERM | Errno::NOSYS) => {
                upper.rename(old, new, RenameFlags::empty())?;
                upper.make_whiteout(from_fd.as_fd(), from.name)
            }
            result => result,
        }
    }

    fn moved(&self, node: &Arc<Node>, from: End<'_>, to: End<'_>) {
        let mut state = node.state();
        drop_place(&mut state, from.dir, from.name);
        add_place(&mut state, to.dir, to.name);
        drop(state);
        self.note_moved(node);
    }
}
