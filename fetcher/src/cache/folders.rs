//! The folders of a cache, and who may do what in them.

use std::io;
use std::path::Path;

use mica_durable::{Named, trusted};

use crate::file::{self, FileError, Folder, Staging};

/// Everybody may read what is complete.
const PUBLIC: u32 = 0o755;
/// What is locked, or half there, nobody else may open.
const PRIVATE: u32 = 0o700;
/// What others than the owner would need to change a folder.
const OTHERS_WRITE: u32 = 0o022;

const FOLDERS: [(&str, u32); 11] = [
    ("blobs", PUBLIC),
    ("borrowed", PUBLIC),
    ("checked", PUBLIC),
    ("manifests", PUBLIC),
    ("signatures", PUBLIC),
    ("packages", PUBLIC),
    ("touched", PUBLIC),
    ("traces", PUBLIC),
    ("incoming", PRIVATE),
    ("leases", PRIVATE),
    ("locks", PRIVATE),
];

/// The folder of a cache, made if need be.
pub(super) fn open(root: &Path) -> Result<Folder, FileError> {
    file::create_dir(root, PUBLIC)
}

/// Refuses a cache that is not the caller's alone to write.
///
/// One that an earlier version made under a strange umask is put right, and what others left in it removed.
pub(super) fn claim(folder: &Folder) -> Result<(), FileError> {
    let stat = folder.metadata()?;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if ours && stat.st_mode & OTHERS_WRITE != 0 {
        folder.set_mode(stat.st_mode & 0o7777 & !OTHERS_WRITE)?;
        for (name, _) in FOLDERS {
            remove_foreign(folder, name)?;
        }
    }
    folder.refuse_foreign()?;
    // Whoever can write a folder above it puts another one in its place, also while we use it by its path.
    let above = trusted::check_above(folder.path(), rustix::process::geteuid().as_raw());
    let refused = |error: trusted::Distrust| {
        io::Error::new(io::ErrorKind::PermissionDenied, error.to_string())
    };
    above.map_err(refused).named("use", folder.path())
}

/// Whether there is something in the folder that no cache has.
pub(super) fn holds_others(folder: &Folder) -> Result<bool, FileError> {
    let known = |name: &std::ffi::OsString| FOLDERS.iter().any(|(ours, _)| name == ours);
    Ok(folder.names()?.iter().any(|name| !known(name)))
}

/// Makes what is not there, and takes away from others what they could write.
pub(super) fn make(root: &Folder) -> Result<(), FileError> {
    for (name, mode) in FOLDERS {
        let folder = root.create_folder(name, mode)?;
        let has = folder.metadata()?.st_mode & 0o7777;
        let wrong = if mode == PRIVATE { 0o077 } else { OTHERS_WRITE };
        if has & wrong != 0 {
            folder.set_mode(has & !wrong)?;
            remove_foreign(root, name)?;
        }
    }
    Ok(())
}

pub(super) fn staging(root: &Folder, name: &str) -> Result<Staging, FileError> {
    Ok(Staging::new(root.create_folder(name, PRIVATE)?))
}

/// Removes what another account put into a folder, or in its place, while it could.
fn remove_foreign(root: &Folder, name: &str) -> Result<(), FileError> {
    let ours = rustix::process::geteuid().as_raw();
    let foreign = |folder: &Folder, name: &std::ffi::OsStr| -> Result<bool, FileError> {
        Ok(folder.stat(name)?.is_some_and(|stat| stat.st_uid != ours && stat.st_uid != 0))
    };
    if foreign(root, name.as_ref())? {
        mica_durable::remove_tree(&root.path().join(name))?;
    }
    let Some(folder) = root.folder(name)? else { return Ok(()) };
    for name in folder.names()? {
        if foreign(&folder, &name)? {
            let path = folder.path().join(&name);
            tracing::warn!(path = %path.display(), "removing what another account put into the cache");
            mica_durable::remove_tree(&path)?;
        }
    }
    Ok(())
}
