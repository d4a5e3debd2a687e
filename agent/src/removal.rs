//! Removing folders that a job has written to.
//!
//! With subordinate ids a job leaves files of users whom its owner can't touch, unless from within a user namespace.
//! Another process of this binary goes there.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use mica_durable::remove_tree;

use crate::files::FileError;
use crate::namespace;

/// The word that makes the binary remove a folder; the command line hands it to [`remove_files`].
pub const REMOVE_FILES: &str = "remove-job-files";

/// Removes a folder with all it holds; one that isn't there is no error.
pub(crate) fn remove_dir(path: &Path) -> Result<(), FileError> {
    let denied = |removed: &Result<bool, FileError>| {
        removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    let mut removed = remove_tree(path);
    if denied(&removed) && !rustix::process::geteuid().is_root() {
        let helper = Command::new("/proc/self/exe")
            .arg(REMOVE_FILES)
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if helper.is_ok() {
            removed = remove_tree(path);
        }
    }
    removed.map(drop)
}

/// The other process: removes what the folder holds. The process must have one thread.
///
/// Whoever started it sees by the folder whether that worked.
pub fn remove_files(words: &[OsString]) -> Option<bool> {
    let [path] = words else { return None };
    let removed = namespace::see_owners().is_ok() && remove_tree(Path::new(path)).is_ok();
    Some(removed)
}
