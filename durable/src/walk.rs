//! Looking at every file of a tree, however deep it is.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use crate::error::{FileError, Named};
use crate::folder::here;

/// What is found in a tree.
pub struct Found<'a> {
    /// Its path below the top.
    pub path: &'a Path,
    /// The folder that it is in.
    pub folder: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a OsStr,
    /// Its metadata, of a link itself.
    pub stat: &'a Stat,
}

/// Calls `each` for everything below the folder `top`, a folder before what is in it, until it breaks. No link is followed.
/// Two descriptors are open at a time: the way up is `..`, which must lead where the way down came from. What vanishes
/// meanwhile is left out.
///
/// # Errors
/// A folder can't be read, or was moved meanwhile.
pub fn walk<B>(
    top: &Path,
    mut each: impl FnMut(Found<'_>) -> ControlFlow<B>,
) -> Result<Option<B>, FileError> {
    let mut path = PathBuf::new();
    let fd = openat(here(), top, FOLDER, Mode::empty()).named("open", top)?;
    let mut levels = vec![level(&fd).named("list", top)?];
    let mut at = fd;
    while let Some(current) = levels.last_mut() {
        let Some(name) = current.left.pop() else {
            levels.pop();
            let Some(above) = levels.last() else { break };
            at = openat(&at, "..", FOLDER, Mode::empty()).named("open", &top.join(&path))?;
            if identity(&at).named("stat", &top.join(&path))? != above.identity {
                let source = io::Error::other("it was moved meanwhile");
                return Err(FileError { verb: "read", path: top.join(&path), source });
            }
            path.pop();
            continue;
        };
        path.push(&name);
        if let Some(stat) = missing(statat(&at, &name, AtFlags::SYMLINK_NOFOLLOW))
            .named("stat", &top.join(&path))?
        {
            let found = Found { path: &path, folder: at.as_fd(), name: &name, stat: &stat };
            if let ControlFlow::Break(value) = each(found) {
                return Ok(Some(value));
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let below = openat(&at, &name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
                if let Some(below) = missing(below).named("open", &top.join(&path))? {
                    levels.push(level(&below).named("list", &top.join(&path))?);
                    at = below;
                    continue;
                }
            }
        }
        path.pop();
    }
    Ok(None)
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A folder on the way down.
struct Level {
    /// What is still to be looked at, the next one last.
    left: Vec<OsString>,
    identity: (u64, u64),
}

fn level(folder: &OwnedFd) -> io::Result<Level> {
    let mut left = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            left.push(name.to_owned());
        }
    }
    left.sort_unstable_by(|a, b| b.cmp(a));
    Ok(Level { left, identity: identity(folder)? })
}

fn identity(folder: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn missing<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Err(Errno::NOENT) => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_met_once_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["a/b", "c"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("a/link")).unwrap();
        let mut met = Vec::new();
        let none = walk::<()>(dir.path(), |found| {
            met.push(found.path.to_str().unwrap().to_owned());
            ControlFlow::Continue(())
        });
        assert_eq!(none.unwrap(), None);
        assert_eq!(met, ["a", "a/b", "a/b/file", "a/link", "c"]);
        let broken = walk(dir.path(), |found| match found.name == "file" {
            true => ControlFlow::Break(found.path.to_owned()),
            false => ControlFlow::Continue(()),
        });
        assert_eq!(broken.unwrap().unwrap(), Path::new("a/b/file"));
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = openat(here(), dir.path(), FOLDER, Mode::empty()).unwrap();
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, "directory", Mode::RWXU).unwrap();
            at = openat(&at, "directory", FOLDER, Mode::empty()).unwrap();
        }
        let mut count = 0;
        walk::<()>(dir.path(), |_| {
            count += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(count, 1500);
        crate::remove_tree(&dir.path().join("directory")).unwrap();
    }
}
