//! Removing folders that a job has written to.
//!
//! With subordinate ids a job leaves files of users whom its owner can't touch, unless from within a user namespace.
//! Another process of this binary goes there.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::files::{FileError, at};
use crate::namespace;

/// The word that makes the binary remove a folder; the command line hands it to [`remove_files`].
pub const REMOVE_FILES: &str = "remove-job-files";

/// Removes a folder with all it holds; one that isn't there is no error.
pub(crate) fn remove_dir(path: &Path) -> Result<(), FileError> {
    let mut removed = fs::remove_dir_all(path);
    let denied = |removed: &std::io::Result<()>| {
        removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    if denied(&removed) {
        make_dirs_writable(path);
        removed = fs::remove_dir_all(path);
    }
    if denied(&removed) && !rustix::process::geteuid().is_root() {
        let helper = Command::new("/proc/self/exe")
            .arg(REMOVE_FILES)
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if helper.is_ok() {
            removed = fs::remove_dir_all(path);
        }
    }
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The other process: removes what the folder holds. The process must have one thread.
///
/// Whoever started it sees by the folder whether that worked.
pub fn remove_files(words: &[OsString]) -> Option<bool> {
    let [path] = words else { return None };
    let removed = namespace::see_owners().is_ok() && fs::remove_dir_all(path).is_ok();
    Some(removed)
}

/// A job may leave folders in its upper that even their owner can't list or change.
fn make_dirs_writable(dir: &Path) {
    // What can't be changed here shows up as the error of the removal that follows.
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_dirs_writable(&entry.path());
        }
    }
}
