//! Making files below a directory, and nowhere else.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::UnpackError;
use crate::read::{Inode, InodeKind};

/// How much of a path one system call takes (`PATH_MAX` with its NUL).
const PATH_MAX: usize = 4095;

/// Whether a file's owner was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Restored,
    Lost,
}

/// The directory that is unpacked into.
pub(super) struct Target {
    path: PathBuf,
    root: Arc<OwnedFd>,
}

/// The last component of a path.
pub(super) fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or(path)
}

/// All but the last component of a path.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(&[], |slash| &path[..slash])
}

/// Sets an xattr of an open file.
pub(super) fn set_xattr(fd: &OwnedFd, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
}

/// Sets an xattr of something that cannot be opened. There is no call for that relative to a descriptor, so the
/// descriptor's path in /proc stands in.
pub(super) fn set_xattr_at(
    directory: &OwnedFd,
    file: &[u8],
    name: &[u8],
    value: &[u8],
) -> rustix::io::Result<()> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(file);
    rustix::fs::lsetxattr(path.as_slice(), name, value, XattrFlags::empty())
}

fn times(mtime: u32) -> Timestamps {
    let time = Timespec { tv_sec: mtime.into(), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

impl Target {
    /// Makes the directory, or takes it if it is empty.
    pub(super) fn open(path: &Path) -> Result<Self, UnpackError> {
        let fail = |e: Errno| UnpackError::Target { path: path.to_owned(), source: e.into() };
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(fail(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
        for entry in rustix::fs::Dir::read_from(&root).map_err(fail)? {
            let name = entry.map_err(fail)?;
            if !matches!(name.file_name().to_bytes(), b"." | b"..") {
                return Err(UnpackError::NotEmpty { path: path.to_owned() });
            }
        }
        Ok(Self { path: path.to_owned(), root: Arc::new(root) })
    }

    pub(super) fn root(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.root)
    }

    pub(super) fn error(&self, verb: &'static str, path: &[u8], errno: Errno) -> UnpackError {
        self.io_error(verb, path, errno.into())
    }

    pub(super) fn io_error(
        &self,
        verb: &'static str,
        path: &[u8],
        source: io::Error,
    ) -> UnpackError {
        UnpackError::Write { verb, path: self.path.join(OsStr::from_bytes(path)), source }
    }

    /// Opens a directory below the target. Paths of any length: they are resolved in parts, each below the one before.
    pub(super) fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let mut rest = path;
        let mut open: Option<OwnedFd> = None;
        loop {
            let part = match rest.len() {
                0..=PATH_MAX => std::mem::take(&mut rest),
                _ => {
                    // A component has at most 256 bytes, so there is a slash.
                    let cut = rest[..PATH_MAX].iter().rposition(|&b| b == b'/').unwrap_or(PATH_MAX);
                    let part = &rest[..cut];
                    rest = &rest[cut + 1..];
                    part
                }
            };
            let part = if part.is_empty() { &b"."[..] } else { part };
            let at = open.as_ref().unwrap_or(&self.root);
            let fd = rustix::fs::openat2(at, part, flags, Mode::empty(), resolve)
                .map_err(|e| self.error("open", path, e))?;
            if rest.is_empty() {
                return Ok(fd);
            }
            open = Some(fd);
        }
    }

    pub(super) fn make_directory(&self, at: &OwnedFd, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let name = file_name(path);
        rustix::fs::mkdirat(at, name, Mode::RWXU).map_err(|e| self.error("create", path, e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(at, name, flags, Mode::empty()).map_err(|e| self.error("open", path, e))
    }

    pub(super) fn create_file(&self, at: &OwnedFd, path: &[u8]) -> Result<File, UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(at, file_name(path), flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| self.error("create", path, e))
    }

    pub(super) fn make_symlink(
        &self,
        at: &OwnedFd,
        path: &[u8],
        content: &[u8],
    ) -> Result<(), UnpackError> {
        rustix::fs::symlinkat(content, at, file_name(path))
            .map_err(|e| self.error("create", path, e))
    }

    /// Makes a device, fifo or socket; `false` if the system refuses it to this user.
    pub(super) fn make_node(
        &self,
        at: &OwnedFd,
        path: &[u8],
        inode: &Inode,
    ) -> Result<bool, UnpackError> {
        let kind = match inode.kind {
            InodeKind::BlockDevice { .. } => FileType::BlockDevice,
            InodeKind::CharDevice { .. } => FileType::CharacterDevice,
            InodeKind::Fifo => FileType::Fifo,
            _ => FileType::Socket,
        };
        let device = inode.device().map_or(0, |(major, minor)| rustix::fs::makedev(major, minor));
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::mknodat(at, file_name(path), kind, mode, device) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) if inode.device().is_some() => Ok(false),
            Err(errno) => Err(self.error("create", path, errno)),
        }
    }

    /// Gives the file at `first` another name.
    pub(super) fn hard_link(&self, first: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        let from = self.open_directory(parent(first))?;
        let to = self.open_directory(parent(path))?;
        rustix::fs::linkat(&from, file_name(first), &to, file_name(path), AtFlags::empty())
            .map_err(|e| self.error("link", path, e))
    }

    pub(super) fn chown(
        &self,
        fd: &OwnedFd,
        uid: u32,
        gid: u32,
        path: &[u8],
    ) -> Result<Owner, UnpackError> {
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        self.owner(uid, gid, path, || rustix::fs::fchown(fd, owner, group))
    }

    pub(super) fn chown_at(
        &self,
        at: &OwnedFd,
        uid: u32,
        gid: u32,
        path: &[u8],
    ) -> Result<Owner, UnpackError> {
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        self.owner(uid, gid, path, || rustix::fs::chownat(at, file_name(path), owner, group, flags))
    }

    /// Refused: to an ordinary user (EPERM), or for an id that the user namespace does not map (EINVAL).
    fn owner(
        &self,
        uid: u32,
        gid: u32,
        path: &[u8],
        chown: impl Fn() -> rustix::io::Result<()>,
    ) -> Result<Owner, UnpackError> {
        // -1 means "leave as it is" to the kernel; nobody can own a file by that id.
        if uid == u32::MAX || gid == u32::MAX {
            return Ok(Owner::Lost);
        }
        match chown() {
            Ok(()) => Ok(Owner::Restored),
            Err(Errno::PERM | Errno::INVAL) => Ok(Owner::Lost),
            Err(errno) => Err(self.error("set the owner of", path, errno)),
        }
    }

    pub(super) fn chmod_and_touch(
        &self,
        fd: &OwnedFd,
        mode: u32,
        mtime: u32,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))
            .map_err(|e| self.error("set the mode of", path, e))?;
        rustix::fs::futimens(fd, &times(mtime)).map_err(|e| self.error("set the time of", path, e))
    }

    /// The same by name; `mode: None` for symlinks, which have none.
    pub(super) fn chmod_and_touch_at(
        &self,
        at: &OwnedFd,
        mode: Option<u32>,
        mtime: u32,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let name = file_name(path);
        if let Some(mode) = mode {
            rustix::fs::chmodat(at, name, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(|e| self.error("set the mode of", path, e))?;
        }
        rustix::fs::utimensat(at, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.error("set the time of", path, e))
    }
}
