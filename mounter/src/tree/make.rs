//! Making files, directories, links and devices.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::attr::At;
use super::lookup::{NAME_MAX, Seen};
use super::node::{Node, OpenFile, Rest};
use super::{Res, Tree};
use crate::kind::Kind;
use crate::overlay::is_reserved;
use crate::upper::{Owner, Under, proc_path, statx_fd};

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What is to be made; modes have the umask applied.
#[derive(Debug, Clone, Copy)]
pub(crate) enum New<'a> {
    File { mode: u32 },
    Directory { mode: u32 },
    Symlink { target: &'a [u8] },
    Node { kind: Kind, mode: u32, rdev: u64 },
}

impl New<'_> {
    fn mode(&self) -> u32 {
        match *self {
            New::File { mode } | New::Directory { mode } | New::Node { mode, .. } => mode & 0o7777,
            New::Symlink { .. } => 0o777,
        }
    }
}

/// A name in the upper that is free to be used.
pub(super) struct Free {
    pub(super) dir: Arc<OwnedFd>,
    /// A whiteout is there.
    pub(super) whiteout: bool,
    /// The layers have something under the name.
    pub(super) below: bool,
}

impl Tree {
    /// Makes `name` in `dir`; a regular file is also opened.
    pub(crate) fn make(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        caller: Caller,
        new: New<'_>,
    ) -> Res<Seen> {
        if let New::Node { kind: Kind::Char, rdev: 0, .. } = new {
            return Err(Errno::PERM); // it would be a whiteout
        }
        let _changing = self.exclusive();
        self.changes.note(dir.ino, true);
        self.with_room(|| self.make_locked(dir, name, caller, new))
    }

    fn make_locked(&self, dir: &Arc<Node>, name: &[u8], caller: Caller, new: New<'_>) -> Res<Seen> {
        let free = self.free_name(dir, name)?;
        let parent = statx_fd(&free.dir)?;
        let mut owner = Owner { uid: caller.uid, gid: caller.gid, mode: new.mode() };
        if u32::from(parent.stx_mode) & libc::S_ISGID != 0 {
            owner.gid = parent.stx_gid;
            if matches!(new, New::Directory { .. }) {
                owner.mode |= libc::S_ISGID;
            }
        }
        let file = if free.whiteout {
            self.make_over_whiteout(&free, name, new, owner)?
        } else {
            let made = self.make_in((*free.dir).as_fd(), name, new, owner);
            if made.is_ok() && free.below && matches!(new, New::Directory { .. }) {
                // Cannot be: a name that the layers have is free only under a whiteout.
                return Err(Errno::EXIST);
            }
            made?
        };
        let stat = Box::new(self.upper()?.stat_at(&free.dir, name)?);
        let seen = if matches!(new, New::Directory { .. }) {
            self.child(dir, name)?.ok_or(Errno::IO)?
        } else {
            Seen { node: self.intern_upper(dir, name, &stat), stat: Some(stat) }
        };
        if let Some(file) = file {
            let file = Arc::new(File::from(file));
            let mut state = seen.node.state();
            state.file = Some(OpenFile { file, writable: true });
            state.rest = Rest::Nowhere;
            drop(state);
            drop(self.open_files.opened(Arc::downgrade(&seen.node)));
        }
        Ok(seen)
    }

    /// Makes a hard link to `node`.
    pub(crate) fn link(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &[u8]) -> Res<Seen> {
        self.bring_up(node, false)?;
        let _changing = self.exclusive();
        self.changes.note(dir.ino, true);
        self.with_room(|| self.link_locked(node, dir, name))
    }

    fn link_locked(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &[u8]) -> Res<Seen> {
        let free = self.free_name(dir, name)?;
        let upper = self.upper()?;
        if free.whiteout {
            let temporary = upper.temporary();
            self.link_to(node, upper.work(), &temporary)?;
            let placed = upper.place_over(&temporary, false, (*free.dir).as_fd(), name);
            if placed.is_err() {
                upper.discard(&temporary);
            }
            placed?;
        } else {
            self.link_to(node, (*free.dir).as_fd(), name)?;
        }
        let stat = Box::new(upper.stat_at(&free.dir, name)?);
        Ok(Seen { node: self.intern_upper(dir, name, &stat), stat: Some(stat) })
    }

    fn link_to(&self, node: &Arc<Node>, dir: BorrowedFd<'_>, name: &[u8]) -> Res<()> {
        match self.at(node)? {
            At::Name(from, old) => self.upper()?.link(((*from).as_fd(), &old), (dir, name)),
            At::Fd(fd) => self.upper()?.allowed(dir, || {
                let (at, path) = (rustix::fs::CWD, proc_path(&fd));
                rustix::fs::linkat(at, path, dir, name, AtFlags::SYMLINK_FOLLOW)
            }),
        }
    }

    /// Checks that `name` isn't seen in `dir`, and brings `dir` up. The namespace is held exclusively.
    pub(super) fn free_name(&self, dir: &Arc<Node>, name: &[u8]) -> Res<Free> {
        let upper = self.upper()?;
        check_name(name)?;
        let fd = self.bring_up_dir(dir)?;
        let whiteout = match upper.look((*fd).as_fd(), name)? {
            Under::Entry(_) => return Err(Errno::EXIST),
            Under::Whiteout => true,
            Under::Nothing => false,
        };
        let below = self.is_below(dir, name)?;
        if below && !whiteout {
            return Err(Errno::EXIST);
        }
        Ok(Free { dir: fd, whiteout, below })
    }

    fn make_over_whiteout(
        &self,
        free: &Free,
        name: &[u8],
        new: New<'_>,
        owner: Owner,
    ) -> Res<Option<OwnedFd>> {
        let upper = self.upper()?;
        let temporary = upper.temporary();
        let is_dir = matches!(new, New::Directory { .. });
        let made = self.make_in(upper.work(), &temporary, new, owner).and_then(|file| {
            if is_dir && free.below {
                upper.set_opaque(upper.open_dir(upper.work(), &temporary)?)?;
            }
            upper.place_over(&temporary, is_dir, (*free.dir).as_fd(), name)?;
            Ok(file)
        });
        if made.is_err() {
            upper.discard(&temporary);
        }
        made
    }

    fn make_in(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        new: New<'_>,
        owner: Owner,
    ) -> Res<Option<OwnedFd>> {
        let upper = self.upper()?;
        let mode = Mode::from_raw_mode(owner.mode);
        let file = upper.allowed(dir, || {
            Ok(match new {
                New::File { .. } => {
                    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    Some(rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW, mode)?)
                }
                New::Directory { .. } => {
                    rustix::fs::mkdirat(dir, name, mode)?;
                    None
                }
                New::Symlink { target } => {
                    rustix::fs::symlinkat(target, dir, name)?;
                    None
                }
                New::Node { kind, rdev, .. } => {
                    rustix::fs::mknodat(dir, name, kind.file_type(), mode, rdev)?;
                    None
                }
            })
        })?;
        let is_link = matches!(new, New::Symlink { .. });
        let owned = match &file {
            Some(file) => upper.set_owner(file, owner, is_link),
            None => upper.open_path(dir, name).and_then(|fd| upper.set_owner(fd, owner, is_link)),
        };
        if let Err(errno) = owned {
            upper.remove_made(dir, name, matches!(new, New::Directory { .. }));
            return Err(errno);
        }
        Ok(file)
    }
}

/// Refuses names that can't be made.
pub(super) fn check_name(name: &[u8]) -> Res<()> {
    if name.len() > NAME_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    if is_reserved(name) {
        return Err(Errno::INVAL); // a layer made of this upper would hide things
    }
    Ok(())
}
