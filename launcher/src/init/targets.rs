//! Paths of the job's root, opened so that no link in the tree can lead out of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, mkdirat, readlinkat, statat, symlinkat};
use rustix::io::Errno;

use crate::rooted::open_in;

/// The new root, before it becomes `/`.
pub(crate) struct Targets {
    pub(crate) root: OwnedFd,
    /// It was empty to begin with.
    pub(crate) fresh: bool,
}

/// A path inside the root, without its leading slash.
fn inside(path: &Path) -> PathBuf {
    path.components().filter(|c| matches!(c, Component::Normal(_))).collect()
}

/// Where a link in `parent` leads, as a path inside the root.
fn follow(parent: &Path, to: &Path) -> PathBuf {
    let mut path = if to.is_absolute() { PathBuf::new() } else { parent.to_owned() };
    for component in to.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => drop(path.pop()),
            _ => {}
        }
    }
    path
}

const MOST_LINKS: usize = 8;

impl Targets {
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn open_with(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        open_in(&self.root, path, flags, mode)
    }

    /// What is at this path, links followed.
    pub(crate) fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open_with(&inside(path), OFlags::PATH, Mode::empty())
    }

    /// The directory at this path, made with its parents where it is missing.
    pub(crate) fn directory(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = inside(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open_with(&path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::NOENT);
        };
        let parent = self.directory(parent)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        self.open_with(&path, flags, Mode::empty())
    }

    /// The file at this path, made empty where it is missing. Where a link leads nowhere, the file is made where it leads.
    pub(crate) fn file(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let mut path = inside(path);
        if self.fresh {
            // Most are not there yet, in a folder that is.
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOCTTY;
            if let Ok(made) = self.open_with(&path, flags, Mode::from_raw_mode(0o644)) {
                return Ok(made);
            }
        }
        for _ in 0..MOST_LINKS {
            match self.open_with(&path, OFlags::PATH, Mode::empty()) {
                Err(Errno::NOENT) => {}
                result => return result,
            }
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(Errno::NOENT);
            };
            let directory = self.directory(parent)?;
            match readlinkat(&directory, name, Vec::new()) {
                Ok(to) => path = follow(parent, Path::new(OsStr::from_bytes(to.to_bytes()))),
                Err(Errno::NOENT) => {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOCTTY;
                    self.open_with(&path, flags, Mode::from_raw_mode(0o644))?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Errno::LOOP)
    }

    /// A mount point fit for what is to be mounted there.
    pub(crate) fn mount_point(
        &self,
        path: &Path,
        for_directory: bool,
    ) -> rustix::io::Result<OwnedFd> {
        if for_directory { self.directory(path) } else { self.file(path) }
    }

    /// Makes a symbolic link. One that exists already is left as it is.
    pub(crate) fn symlink(&self, path: &Path, to: &Path) -> rustix::io::Result<()> {
        let path = inside(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::INVAL);
        };
        match symlinkat(to, self.directory(parent)?, name) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }
}

/// Is this a directory?
pub(crate) fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = statat(fd, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}
