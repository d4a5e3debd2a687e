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

/// The folders of mica that accounts of this host have in the usual places. For root, whose jobs may be shown the homes of
/// others: what an account has put elsewhere is not known.
pub(crate) fn of_everybody() -> Vec<PathBuf> {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let homes = accounts.lines().filter_map(|line| line.split(':').nth(5));
    let homes = homes.filter(|home| home.starts_with('/') && *home != "/").map(Path::new);
    let usual =
        homes.flat_map(|home| [".local/state/mica", ".cache/mica"].map(|name| home.join(name)));
    let below = |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sessions = below("/run/user").map(|entry| entry.path().join("mica"));
    let temporary = below("/tmp").map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix("mica-"))
            .is_some_and(|uid| uid.parse::<u32>().is_ok())
    });
    let is_folder = |path: &PathBuf| path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let mut all: Vec<_> = usual.chain(sessions).chain(temporary).filter(is_folder).collect();
    all.sort_unstable();
    all.dedup();
    all
}
