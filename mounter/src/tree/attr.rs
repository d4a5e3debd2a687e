//! Attributes: reading and changing them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::node::{InUpper, Node, Place};
use super::{Res, Tree};
use crate::ids::{Attr, Time};
use crate::kind::Kind;
use crate::upper::{Incomplete, proc_path, statx_fd};

/// A time to set.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SetTime {
    Now,
    At(Time),
}

/// What setattr is to change.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) atime: Option<SetTime>,
    pub(crate) mtime: Option<SetTime>,
    /// The caller may not keep the set-id bits of a file whose content it changes.
    pub(crate) drop_set_id: bool,
}

/// Where a node is in the upper.
pub(super) enum At {
    Name(Arc<OwnedFd>, Box<[u8]>),
    Fd(Arc<OwnedFd>),
}

impl Tree {
    /// Attributes of what was found.
    pub(crate) fn attr_of(&self, node: &Arc<Node>, stat: Option<&Statx>) -> Res<Attr> {
        match stat {
            Some(stat) => Ok(attr_from(node, stat)),
            None => self.attr(node),
        }
    }

    pub(crate) fn attr(&self, node: &Arc<Node>) -> Res<Attr> {
        self.look(|| self.attr_locked(node))
    }

    pub(super) fn attr_locked(&self, node: &Arc<Node>) -> Res<Attr> {
        if node.in_upper() {
            return Ok(attr_from(node, &self.stat(node)?));
        }
        let lowers = node.lowers();
        let part = node.state().lower.or_else(|| lowers.parts.first().copied());
        let mut attr =
            self.lower.attr(part.ok_or(Errno::IO)?).map_err(|error| self.damaged(node, &error))?;
        attr.ino = node.ino;
        if lowers.parts.len() > 1 {
            attr.nlink = 1; // as overlayfs has it: nobody counts the directories inside
        }
        Ok(attr)
    }

    pub(super) fn at(&self, node: &Arc<Node>) -> Res<At> {
        let (upper, place) = {
            let state = node.state();
            (state.upper.clone(), state.places.first().cloned())
        };
        match (upper, place) {
            (InUpper::Removed(fd), _) => Ok(At::Fd(fd)),
            (InUpper::Parked(at), _) => Ok(At::Name(Arc::clone(&at.work), at.name.clone())),
            (InUpper::Yes, Some(Place { parent, name })) => {
                Ok(At::Name(self.dir_fd(&parent)?, name))
            }
            (InUpper::Yes, None) if node.ino == crate::numbers::ROOT => {
                Ok(At::Fd(self.dir_fd(node)?))
            }
            _ => Err(Errno::NOENT),
        }
    }

    pub(super) fn stat(&self, node: &Arc<Node>) -> Res<Statx> {
        match self.at(node)? {
            At::Name(dir, name) => self.upper()?.stat_at(&dir, &name),
            At::Fd(fd) => statx_fd(&fd),
        }
    }

    /// A descriptor of the inode in the upper, good for everything but reading and writing.
    pub(super) fn path_fd(&self, node: &Arc<Node>) -> Res<Arc<OwnedFd>> {
        Ok(match self.at(node)? {
            At::Name(dir, name) => Arc::new(self.upper()?.open_path(&dir, &name)?),
            At::Fd(fd) => fd,
        })
    }

    /// Changes attributes, copying the file up first.
    pub(crate) fn set_attr(&self, node: &Arc<Node>, change: &Change) -> Res<Attr> {
        self.bring_up(node, change.size == Some(0))?;
        let partial = node.partial();
        let mut marks = partial.as_ref().map(|partial| partial.exclusive());
        self.look(|| self.set_attr_locked(node, change, marks.as_deref_mut()))
    }

    fn set_attr_locked(
        &self,
        node: &Arc<Node>,
        change: &Change,
        marks: Option<&mut Incomplete>,
    ) -> Res<Attr> {
        if let Some(size) = change.size {
            let file = self.upper_file_locked(node, true)?;
            match marks {
                Some(marks) => self.truncate_partial(&file, marks, size)?,
                None => rustix::fs::ftruncate(&file, size)?,
            }
            if change.drop_set_id {
                drop_set_id(&*file)?;
            }
        }
        let fd = self.path_fd(node)?;
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(&fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            if node.kind == Kind::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(mode & 0o7777))?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            };
            set_times(fd.as_fd(), &times)?;
        }
        Ok(attr_from(node, &statx_fd(&fd)?))
    }
}

/// Sets times of an inode by any descriptor.
pub(super) fn set_times(fd: impl AsFd, times: &Timestamps) -> Res<()> {
    match rustix::fs::utimensat(&fd, c"", times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8 the empty path was not allowed here.
        Err(Errno::INVAL | Errno::NOENT) => {
            rustix::fs::utimensat(rustix::fs::CWD, proc_path(&fd), times, AtFlags::empty())
        }
        result => result,
    }
}

/// The times that stat(2) told, to be set again.
pub(super) fn times_of(stat: &Statx) -> Timestamps {
    let time =
        |t: rustix::fs::StatxTimestamp| Timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec.into() };
    Timestamps { last_access: time(stat.stx_atime), last_modification: time(stat.stx_mtime) }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(time)) => to_timespec(time),
    }
}

pub(super) fn to_timespec(time: Time) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() }
}

/// Takes set-user-id, and set-group-id where it isn't a lock mode, from a file.
pub(super) fn drop_set_id(fd: impl AsFd) -> Res<()> {
    let mode = u32::from(statx_fd(&fd)?.stx_mode) & 0o7777;
    let mut kept = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        kept &= !libc::S_ISGID;
    }
    if kept == mode {
        return Ok(());
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(kept))
}

pub(super) fn attr_from(node: &Node, stat: &Statx) -> Attr {
    let time = |t: &rustix::fs::StatxTimestamp| Time { seconds: t.tv_sec, nanos: t.tv_nsec };
    let merged = !node.lowers().parts.is_empty();
    // The name in the work directory is nobody's.
    let unseen = u32::from(matches!(node.state().upper, InUpper::Parked(_))).min(stat.stx_nlink);
    Attr {
        ino: node.ino,
        kind: node.kind,
        mode: u32::from(stat.stx_mode) & 0o7777,
        nlink: if merged { 1 } else { stat.stx_nlink - unseen },
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
        size: stat.stx_size,
        blocks: node.partial().map_or(stat.stx_blocks, |partial| partial.blocks(stat)),
        atime: time(&stat.stx_atime),
        mtime: time(&stat.stx_mtime),
        ctime: time(&stat.stx_ctime),
    }
}

/// What statfs(2) tells.
pub(crate) struct Space {
    pub(crate) block_size: u32,
    pub(crate) blocks: u64,
    pub(crate) free: u64,
    pub(crate) available: u64,
    pub(crate) files: u64,
    pub(crate) free_files: u64,
}

impl Tree {
    /// The space of the upper's file system; without an upper, the images', full.
    pub(crate) fn space(&self) -> Res<Space> {
        if let Some(upper) = &self.upper {
            let stat = rustix::fs::fstatvfs(&upper.root)?;
            return Ok(Space {
                block_size: stat.f_frsize as u32,
                blocks: stat.f_blocks,
                free: stat.f_bfree,
                available: stat.f_bavail,
                files: stat.f_files,
                free_files: stat.f_ffree,
            });
        }
        let block_size = 4096;
        let (mut blocks, mut files) = (0, 0);
        for image in self.lower.images() {
            blocks += image.superblock().bytes_used.div_ceil(block_size);
            files += u64::from(image.superblock().inodes);
        }
        Ok(Space {
            block_size: block_size as u32,
            blocks,
            free: 0,
            available: 0,
            files,
            free_files: 0,
        })
    }
}
