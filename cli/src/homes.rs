//! Where a user's folders are when the environment says nothing useful: under `su`, cron or a batch system HOME may be
//! another user's, or not there.

use std::path::{Path, PathBuf};

use mica_durable::{FileError, Folder};
use rustix::fs::{Access, access};

/// Whether this user has the folder, or could make it.
pub(crate) fn is_usable(dir: &Path) -> bool {
    for dir in dir.ancestors() {
        match access(dir, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => return true,
            Err(rustix::io::Errno::NOENT) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Where the temporary folder of a user is, whether there is one or not.
pub(crate) fn temporary_path() -> PathBuf {
    PathBuf::from(format!("/tmp/mica-{}", rustix::process::geteuid().as_raw()))
}

/// The same, made for this user alone. A link, or a folder that another user made there, is an error.
///
/// # Errors
/// There is something else in its place; it can't be made.
pub(crate) fn temporary() -> Result<PathBuf, FileError> {
    let path = temporary_path();
    let name = path.file_name().unwrap_or_default();
    let folder = Folder::open(Path::new("/tmp"))?.create_folder(name, 0o700)?;
    folder.refuse_foreign()?;
    Ok(path)
}
