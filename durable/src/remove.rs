//! Removing trees of any depth with a few descriptors.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{FileError, Named, found};
use crate::folder::here;

/// Removes the file or folder `path` with all that is in it, without following links; whether there was one.
///
/// Folders are emptied from within: three descriptors are open at a time however deep the tree is, so neither the limit
/// of descriptors nor PATH_MAX matters. What is added by others meanwhile is removed too, as long as it comes in time.
///
/// # Errors
/// Something can't be removed; the rest of the tree may be gone.
pub fn remove_tree(path: &Path) -> Result<bool, FileError> {
    let failed =
        |error: io::Error| FileError { verb: "remove", path: path.to_owned(), source: error };
    match rustix::fs::unlinkat(here(), path, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        // POSIX says EPERM of a folder, Linux EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let top = match open(here(), path) {
        Err(Errno::ACCESS) => {
            // Its owner may make it readable.
            open_up(here(), path).map_err(|error| failed(error.into()))?;
            open(here(), path)
        }
        top => top,
    };
    let Some(top) = found(top).named("open", path)? else { return Ok(false) };
    empty(top).map_err(failed)?;
    Ok(found(rustix::fs::unlinkat(here(), path, AtFlags::REMOVEDIR)).map_err(failed)?.is_some())
}

fn open(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Lets the owner of a folder into it. By a descriptor: chmod(2) would follow a link that somebody has put in its place.
fn open_up(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(at, name, flags, Mode::empty())?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", folder.as_raw_fd()), Mode::RWXU)
}

/// Empties a folder. Goes down into the first folder it meets, and up by `..` when there is nothing left; a folder that
/// was moved meanwhile is noticed by its parent being another one.
fn empty(top: OwnedFd) -> io::Result<()> {
    let mut names: Vec<(OsString, u64, u64)> = Vec::new(); // the way down: name, and the parent's identity
    let mut at = top;
    loop {
        match remove_entries(&at)? {
            Some(name) => {
                let parent = rustix::fs::fstat(&at)?;
                let below = open(&at, &name)?;
                names.push((name, parent.st_dev, parent.st_ino));
                at = below;
            }
            None => {
                let Some((name, device, inode)) = names.pop() else { return Ok(()) };
                let above = open(&at, "..")?;
                let stat = rustix::fs::fstat(&above)?;
                if (stat.st_dev, stat.st_ino) != (device, inode) {
                    return Err(io::Error::other("a folder in it was moved meanwhile"));
                }
                found(rustix::fs::unlinkat(&above, &name, AtFlags::REMOVEDIR))?;
                at = above;
            }
        }
    }
}

/// Removes what is no folder, and folders that are empty; returns the first folder that is not.
fn remove_entries(folder: &OwnedFd) -> io::Result<Option<OsString>> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {} // the file system tells no kinds
                Err(error) => return Err(error.into()),
            }
        }
        match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                // An unreadable one is made readable: it is about to go.
                let mode = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode;
                if mode & 0o700 != 0o700 {
                    open_up(folder, name)?;
                }
                return Ok(Some(OsString::from_vec(name.to_bytes().to_vec())));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn depth_costs_no_descriptors_and_no_path() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = open(here(), dir.path()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "directory", Mode::RWXU).unwrap();
            at = open(&at, "directory").unwrap();
        }
        assert!(remove_tree(&dir.path().join("directory")).unwrap());
        assert!(!remove_tree(&dir.path().join("directory")).unwrap());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let kept = dir.path().join("kept");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(tree.join("closed")).unwrap();
        std::fs::write(tree.join("closed/file"), "").unwrap();
        std::fs::set_permissions(tree.join("closed"), PermissionsExt::from_mode(0o000)).unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "").unwrap();
        symlink(&kept, tree.join("a/link")).unwrap();
        std::fs::set_permissions(&tree, PermissionsExt::from_mode(0o000)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(kept.join("file").exists());
        symlink(&kept, &tree).unwrap();
        assert!(remove_tree(&tree).unwrap());
        assert!(kept.join("file").exists());
    }

    /// Whoever can write a folder may put a link in the place of what was just looked at.
    #[test]
    fn a_link_in_the_place_of_a_closed_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (other, link) = (dir.path().join("other"), dir.path().join("link"));
        std::fs::create_dir(&other).unwrap();
        std::fs::set_permissions(&other, PermissionsExt::from_mode(0o500)).unwrap();
        symlink(&other, &link).unwrap();
        open_up(here(), &link).unwrap_err();
        let mode = || std::fs::metadata(&other).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o500);
        open_up(here(), &other).unwrap();
        assert_eq!(mode(), 0o700);
    }
}
