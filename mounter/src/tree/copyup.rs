//! Copy-up: bringing what lives in a layer to the upper before it is changed.
//!
//! The copy is made in the work directory with content, attributes, owner, mode and times, and only then
//! renamed to its place: a crash leaves the file in the layer or the whole copy. Its directories are brought
//! up first, each empty (the layers still show through), and keep their times. All places of a file that
//! the layer has hard links of are brought up as hard links. The content of large files follows later: see
//! [`super::partial`].

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::attr::{set_times, times_of, to_timespec};
use super::lookup::is_gone;
use super::node::{InUpper, LowerPart, Node, Place, Rest};
use super::partial::{LARGE, Partial};
use super::{Res, Tree};
use crate::asker;
use crate::ids::Attr;
use crate::kind::Kind;
use crate::upper::{Incomplete, Owner, UpperDir, is_private, proc_path, statx_fd};

/// Says that a node is being copied up, until it is dropped.
struct Copying<'a> {
    tree: &'a Tree,
    ino: u64,
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        self.tree.copying().remove(&self.ino);
        self.tree.copied.notify_all();
    }
}

impl Tree {
    fn copying(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that a node is in the upper. With `empty` a file's content is not wanted; else what a large file has
    /// not in the upper is read from its layer.
    pub(super) fn bring_up(&self, node: &Arc<Node>, empty: bool) -> Res<()> {
        self.upper()?;
        if node.in_upper() {
            return Ok(());
        }
        if node.kind == Kind::Directory {
            let _changing = self.exclusive();
            return self.bring_up_dir(node).map(drop);
        }
        let mut copying = self.copying();
        while !copying.insert(node.ino) {
            let waited = self.copied.wait_timeout(copying, asker::OFTEN);
            copying = waited.unwrap_or_else(PoisonError::into_inner).0;
            asker::check()?;
        }
        drop(copying);
        let _copying = Copying { tree: self, ino: node.ino };
        if node.in_upper() {
            return Ok(());
        }
        self.copy_up(node, empty)
    }

    fn copy_up(&self, node: &Arc<Node>, empty: bool) -> Res<()> {
        let upper = self.upper()?;
        let part = node.state().lower.ok_or(Errno::STALE)?;
        let attr = self.attr(node)?;
        if attr.nlink > 1 {
            self.find_links(node, part)?;
        }
        let temporary = upper.temporary();
        let made = self.copy(node, part, &attr, &temporary, empty);
        let placed = made.and_then(|(fd, rest)| {
            let _changing = self.exclusive();
            match rest {
                Some(rest) => {
                    self.note_incomplete(node, Partial::new(Some(part), attr.blocks, rest))
                }
                None => node.state().rest = Rest::Nowhere,
            }
            self.place_copy(node, &temporary, fd)
        });
        if placed.is_err() {
            upper.discard(&temporary);
            self.drop_incomplete(node);
            node.state().rest = Rest::Unknown;
        }
        placed
    }

    /// Makes the copy under a temporary name; says what of its content is still in the layer.
    fn copy(
        &self,
        node: &Arc<Node>,
        part: LowerPart,
        attr: &Attr,
        temporary: &[u8],
        empty: bool,
    ) -> Res<(Arc<OwnedFd>, Option<Incomplete>)> {
        let upper = self.upper()?;
        let work = upper.work();
        let mut rest = None;
        match node.kind {
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(work, temporary, flags, Mode::RUSR | Mode::WUSR)?;
                if !empty {
                    rest = self.leave_content(node, part, attr, &file)?;
                }
                if !empty && rest.is_none() {
                    self.copy_content(node, part, attr.size, &file)?;
                }
            }
            Kind::Symlink => {
                let target = self.lower.read_link(part);
                let target = target.map_err(|error| self.damaged(node, &error))?;
                rustix::fs::symlinkat(target, work, temporary)?;
            }
            kind => {
                let rdev = rustix::fs::makedev(attr.rdev.0, attr.rdev.1);
                let mode = Mode::RUSR | Mode::WUSR;
                rustix::fs::mknodat(work, temporary, kind.file_type(), mode, rdev)?;
            }
        }
        let fd = upper.open_path(work, temporary)?;
        self.copy_metadata(node, part, attr, &fd)?;
        Ok((Arc::new(fd), rest))
    }

    /// Makes a sparse file whose content is still in the layer, where that is worth while and can be.
    fn leave_content(
        &self,
        node: &Arc<Node>,
        part: LowerPart,
        attr: &Attr,
        file: &OwnedFd,
    ) -> Res<Option<Incomplete>> {
        let upper = self.upper()?;
        if attr.size < LARGE || upper.grain.is_none() {
            return Ok(None);
        }
        self.lower.check_content(part).map_err(|error| self.damaged(node, &error))?;
        let rest = self.rest_of(node, attr);
        let marked = upper
            .note_incomplete()
            .and_then(|()| rustix::fs::ftruncate(file, attr.size))
            .and_then(|()| upper.set_incomplete(file, &rest));
        match marked {
            Ok(()) => Ok(Some(rest)),
            // A path too long for an attribute, for example: such a file is copied whole.
            Err(error) => {
                tracing::debug!(path = node.path(), %error, "a file cannot be copied in part");
                upper.set_complete(file)?;
                Ok(None)
            }
        }
    }

    fn copy_content(
        &self,
        node: &Arc<Node>,
        part: LowerPart,
        size: u64,
        file: &OwnedFd,
    ) -> Res<()> {
        rustix::fs::ftruncate(file, size)?;
        let written = self.lower.copy(part, |offset, bytes| {
            asker::check()?;
            write_all(file, bytes, offset)
        });
        written.map_err(|error| self.damaged(node, &error))??;
        if !self.upper()?.volatile {
            rustix::fs::fdatasync(file)?;
        }
        Ok(())
    }

    fn copy_metadata(&self, node: &Node, part: LowerPart, attr: &Attr, fd: &OwnedFd) -> Res<()> {
        let failed = |error| self.damaged(node, &error);
        let upper = self.upper()?;
        let is_link = node.kind == Kind::Symlink;
        let owner = Owner { uid: attr.uid, gid: attr.gid, mode: attr.mode };
        let keys = self.lower.xattr_keys(part).map_err(failed)?;
        if !keys.is_empty() {
            // Before: a change of owner takes capabilities. Behind: the mode may forbid to set attributes.
            upper.set_owner(fd, Owner { mode: libc::S_IRWXU, ..owner }, is_link)?;
        }
        for key in keys.iter().filter(|key| !is_private(&key.name)) {
            asker::check()?;
            let value = self.lower.xattr_value(part.layer, key).map_err(failed)?;
            copy_xattr(node, fd, &key.name, &value)?;
        }
        upper.set_owner(fd, owner, is_link)?;
        let (atime, mtime) = (to_timespec(attr.atime), to_timespec(attr.mtime));
        set_times(fd, &Timestamps { last_access: atime, last_modification: mtime })
    }

    /// Moves a finished copy to all places of the node. The namespace is held exclusively.
    fn place_copy(&self, node: &Arc<Node>, temporary: &[u8], fd: Arc<OwnedFd>) -> Res<()> {
        let upper = self.upper()?;
        let places = node.state().places.clone();
        let mut placed: Option<(Arc<OwnedFd>, Place)> = None;
        for place in places {
            let parent = self.bring_up_dir(&place.parent)?;
            let _times = KeepTimes::of(&parent)?;
            let done = match &placed {
                None => upper.place(temporary, (*parent).as_fd(), &place.name),
                Some((dir, first)) => {
                    upper.link(((**dir).as_fd(), &first.name), ((*parent).as_fd(), &place.name))
                }
            };
            match (done, &placed) {
                (Ok(()), None) => placed = Some((Arc::clone(&parent), place)),
                (Ok(()), Some(_)) => {}
                // A further link that can't be made loses the link, not the file.
                (Err(error), Some(_)) => {
                    tracing::warn!(path = node.path(), %error, "a hard link is lost by copy-up");
                }
                (Err(errno), None) => return Err(errno),
            }
        }
        let number = statx_fd(&fd)?.stx_ino;
        if placed.is_none() {
            // Removed in the meantime: the open files go on with the copy.
            upper.discard(temporary);
            self.drop_incomplete(node);
            node.state().upper = InUpper::Removed(fd);
            return Ok(());
        }
        self.table().uppers.keep(number, node.ino);
        let mut state = node.state();
        (state.upper, state.number) = (InUpper::Yes, Some(number));
        Ok(())
    }

    /// Makes sure that a directory is in the upper, and opens it. The namespace is held exclusively.
    pub(super) fn bring_up_dir(&self, node: &Arc<Node>) -> Res<Arc<OwnedFd>> {
        // From the outside in, however deep it is.
        let (mut missing, mut at) = (Vec::new(), Arc::clone(node));
        loop {
            if is_gone(&at) {
                return Err(Errno::NOENT);
            }
            if at.in_upper() {
                break;
            }
            let place = at.place().ok_or(Errno::NOENT)?;
            missing.push((at, place.clone()));
            at = place.parent;
        }
        let mut fd = self.dir_fd(&at)?;
        for (node, place) in missing.iter().rev() {
            asker::check()?;
            fd = self.bring_up_one_dir(node, place, &fd)?;
        }
        Ok(fd)
    }

    fn bring_up_one_dir(
        &self,
        node: &Arc<Node>,
        place: &Place,
        parent: &Arc<OwnedFd>,
    ) -> Res<Arc<OwnedFd>> {
        let upper = self.upper()?;
        let _times = KeepTimes::of(parent)?;
        let part = *node.lowers().parts.first().ok_or(Errno::IO)?;
        let attr = self.attr_locked(node)?;
        let (temporary, fd) = upper.temporary_dir()?;
        let placed = self
            .copy_metadata(node, part, &attr, &fd)
            .and_then(|()| upper.place(&temporary, (**parent).as_fd(), &place.name));
        if let Err(errno) = placed {
            upper.discard(&temporary);
            return Err(errno);
        }
        node.state().upper = InUpper::Yes;
        self.dir_fd(node)
    }

    /// Gives a fresh upper the owner and mode of the layers' root.
    pub(crate) fn copy_root(&self) -> Res<()> {
        let Some(part) = self.root.lowers().parts.first().copied() else { return Ok(()) };
        let attr = self.lower.attr(part).map_err(|error| self.damaged(&self.root, &error))?;
        let upper: &UpperDir = self.upper()?;
        self.copy_metadata(&self.root, part, &attr, &upper.root)
    }
}

fn copy_xattr(node: &Node, fd: &OwnedFd, name: &[u8], value: &[u8]) -> Res<()> {
    match rustix::fs::setxattr(proc_path(fd), name, value, XattrFlags::empty()) {
        // As overlayfs: what this file system or this user can't have is left behind.
        Err(error @ (Errno::PERM | Errno::OPNOTSUPP)) => {
            let name = String::from_utf8_lossy(name);
            tracing::debug!(path = node.path(), %name, %error, "an attribute is lost by copy-up");
            Ok(())
        }
        result => result,
    }
}

pub(super) fn write_all(file: impl AsFd, mut bytes: &[u8], mut offset: u64) -> Res<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&file, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Puts a directory's times back: bringing something up is no change that anybody made.
struct KeepTimes {
    dir: Arc<OwnedFd>,
    times: Timestamps,
}

impl KeepTimes {
    fn of(dir: &Arc<OwnedFd>) -> Res<KeepTimes> {
        let times = times_of(&statx_fd(dir)?);
        Ok(KeepTimes { dir: Arc::clone(dir), times })
    }
}

impl Drop for KeepTimes {
    fn drop(&mut self) {
        if let Err(error) = set_times(&*self.dir, &self.times) {
            tracing::debug!(%error, "cannot keep a directory's times during copy-up");
        }
    }
}
