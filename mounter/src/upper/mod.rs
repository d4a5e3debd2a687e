//! The upper: the writable directory above the layers, in overlayfs's own form on disk.
//!
//! ```text
//! UPPER/…              files as they are seen; whiteouts; marks of directories as attributes
//! WORK/mica.lock       held (flock) while mounted: two mounts on one upper are refused; says the form of the marks,
//!                      and whether files of the upper may be incomplete
//! WORK/mica/#N         what is being made; complete when it is renamed into the upper, removed at the next mount
//! ```
//!
//! Marks are `trusted.overlay.*` for root and `user.overlay.*` otherwise, as overlayfs's `userxattr` has it. The kernel's
//! overlayfs can take either over; with `userxattr` it follows no redirects, so there a directory of the layers that was
//! renamed shows only what the upper has of it.
//! A job must not be able to lead the server out of the upper: everything is reached from the two
//! directory descriptors, directories by `openat2` with `RESOLVE_BENEATH | NO_SYMLINKS | NO_XDEV`, the last
//! name of a path always without following it.

mod force;
mod make;
mod marks;
mod open;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

pub(crate) use make::{Owner, Parked};
pub(crate) use marks::{Incomplete, MarkSpace, is_private};
pub use open::UpperError;

use crate::kind::Kind;

pub(crate) type Res<T> = Result<T, Errno>;

/// An open upper.
pub(crate) struct UpperDir {
    pub(crate) root: OwnedFd,
    work: Arc<OwnedFd>,
    /// Holds the lock, released by the kernel however the server ends; its text is the form of the marks.
    lock: OwnedFd,
    pub(crate) marks: MarkSpace,
    /// Size of the blocks of which the file system says exactly whether a file has them; `None` if it is not known to.
    pub(crate) grain: Option<u64>,
    /// Copied-up files are not synced: the upper is thrown away after a crash.
    pub(crate) volatile: bool,
    next_temporary: AtomicU64,
    /// Modes don't hold for this process.
    passes_modes: bool,
    /// What modes forbid is done anyhow just now.
    forced: AtomicBool,
    /// Files of the upper may be incomplete, says the lock file.
    incomplete: AtomicBool,
    /// An earlier mount said so too.
    left_incomplete: bool,
}

/// What the upper holds under a name.
pub(crate) enum Under {
    Nothing,
    Whiteout,
    Entry(Box<Statx>),
}

/// A name in a directory, and its kind where the file system says it.
pub(crate) type Name = (Box<[u8]>, Option<Kind>);

pub(crate) fn kind(stat: &Statx) -> Kind {
    Kind::from_mode(stat.stx_mode.into()).unwrap_or(Kind::Socket)
}

pub(crate) fn statx_at(dir: impl AsFd, name: &[u8]) -> Res<Statx> {
    rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
}

pub(crate) fn statx_fd(fd: impl AsFd) -> Res<Statx> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
}

/// A path that names an open file itself, for the calls that take no descriptor. Borrows the descriptor, which
/// must stay open for as long as the path is used.
pub(crate) fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

impl UpperDir {
    /// What is under `name` in `dir`.
    pub(crate) fn look(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<Under> {
        let stat = match self.stat_at(dir, name) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Under::Nothing),
            Err(errno) => return Err(errno),
        };
        Ok(if self.is_whiteout(dir, name, &stat)? {
            Under::Whiteout
        } else {
            Under::Entry(Box::new(stat))
        })
    }

    /// What is under `name`, a link not followed.
    pub(crate) fn stat_at(&self, dir: impl AsFd, name: &[u8]) -> Res<Statx> {
        let dir = dir.as_fd();
        self.allowed(dir, || statx_at(dir, name))
    }

    /// Opens a directory below `dir` by a path of names, which may be longer than the system takes at once.
    pub(crate) fn open_below(&self, dir: impl AsFd, names: &[Box<[u8]>]) -> Res<OwnedFd> {
        const AT_ONCE: usize = 2048;
        let mut at = self.open_dir(dir, b".")?;
        let mut rest = names;
        while !rest.is_empty() {
            let mut len = 0;
            let count = rest.iter().take_while(|name| {
                len += name.len() + 1;
                len <= AT_ONCE
            });
            let (now, later) = rest.split_at(count.count());
            at = match self.open_dir(&at, &now.join(&b'/')) {
                Err(Errno::ACCESS) => {
                    now.iter().try_fold(at, |at, name| self.open_dir(&at, name))?
                }
                opened => opened?,
            };
            rest = later;
        }
        Ok(at)
    }

    /// Opens a directory below `dir` by a short path.
    pub(crate) fn open_dir(&self, dir: impl AsFd, path: &[u8]) -> Res<OwnedFd> {
        let dir = dir.as_fd();
        self.allowed(dir, || {
            rustix::fs::openat2(
                dir,
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
            )
        })
    }

    /// Opens what is under `name` without opening it: to change or to keep the inode itself.
    pub(crate) fn open_path(&self, dir: impl AsFd, name: &[u8]) -> Res<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = dir.as_fd();
        self.allowed(dir, || rustix::fs::openat(dir, name, flags, Mode::empty()))
    }

    /// The names in `dir` with their kinds, whiteouts included, `.` and `..` not.
    pub(crate) fn list(&self, dir: impl AsFd) -> Res<Vec<Name>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = dir.as_fd();
        let dir = self.allowed(dir, || rustix::fs::openat(dir, c".", flags, Mode::empty()))?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push((name.into(), Kind::from_mode(entry.file_type().as_raw_mode())));
            }
        }
        Ok(names)
    }
}
