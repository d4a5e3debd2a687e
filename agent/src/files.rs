//! JSON documents and folders of the state directory, on the files that survive a crash of [`mica_durable`].

use std::io;
use std::path::Path;
use std::time::Duration;

pub use mica_durable::{FileError, Lock};
use mica_durable::{Folder, Named, trusted};
use serde::{Serialize, de::DeserializeOwned};

/// How long a command waits for a lock that others hold for moments only.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The longest document that is read, in bytes.
pub(crate) const LONGEST: u64 = 16 << 20;

/// Nobody but the owner reads or writes what is kept of jobs.
const MODE: u32 = 0o600;

/// Attaches the verb and the path to an I/O error: `.map_err(at("read", path))`.
pub(crate) fn at<E: Into<io::Error>>(
    verb: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> FileError {
    move |source| FileError { verb, path: path.to_owned(), source: source.into() }
}

/// Replaces `path` by `value` as JSON: readers see the old document or the new one, also after a power failure.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let text = serde_json::to_vec_pretty(value).map_err(at("encode", path))?;
    let (folder, name) = split(path)?;
    Folder::open(folder)?.replace(name, &text, MODE)
}

/// Reads a JSON document. A link, a FIFO or something endless in its place is an error.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let (folder, name) = split(path)?;
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let text = Folder::open(folder)?.read(name, LONGEST)?.ok_or_else(gone).named("read", path)?;
    serde_json::from_slice(&text).map_err(at("understand", path))
}

fn split(path: &Path) -> Result<(&Path, &std::ffi::OsStr), FileError> {
    let parts = path.parent().zip(path.file_name());
    parts.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename)).named("use", path)
}

/// Fails unless a folder of ours is the caller's alone: what is in it names processes, files and programs.
pub(crate) fn refuse_shared(folder: &Folder) -> Result<(), FileError> {
    let path = folder.path();
    let refuse = |reason: String| {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, reason)).named("use", path)
    };
    let (stat, me) = (folder.metadata()?, rustix::process::geteuid().as_raw());
    if stat.st_uid != me {
        return refuse(format!("it belongs to user {}, and not to user {me}", stat.st_uid));
    }
    if stat.st_mode & 0o077 != 0 {
        let mode = stat.st_mode & 0o777;
        return refuse(format!("others may look into it: its mode is {mode:o}, and must be 700"));
    }
    // Whoever can write a folder above it puts another one in its place.
    match trusted::check_above(path, me) {
        Ok(()) => Ok(()),
        Err(error) => refuse(error.to_string()),
    }
}

/// Makes a folder, and the folders above it, for its owner only.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), FileError> {
    Folder::create(path, 0o700).map(drop)
}
