//! Files that are either whole or not there, whatever dies, and locks that die with their holder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};

/// What failed, and on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {path}", path = path.display())]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FileError {
    /// What the operating system answered.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Attaches the verb and the path to an I/O error: `.map_err(at("read", path))`.
pub(crate) fn at<E: Into<io::Error>>(
    verb: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> FileError {
    move |source| FileError { verb, path: path.to_owned(), source: source.into() }
}

/// Replaces `path` by `value` as JSON: readers see the old document or the new one.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let temporary = path.with_extension("tmp");
    let text = serde_json::to_vec_pretty(value).map_err(at("encode", path))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(at("create", &temporary))?;
    file.write_all(&text).map_err(at("write", &temporary))?;
    fs::rename(&temporary, path).map_err(at("rename to", path))
}

/// Reads a JSON document.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let text = fs::read(path).map_err(at("read", path))?;
    serde_json::from_slice(&text).map_err(at("understand", path))
}

/// An exclusive lock on a file; it ends when the last descriptor of this open file is closed.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock, or says `None` if somebody holds it.
    pub fn try_new(path: &Path) -> Result<Option<Self>, FileError> {
        let file = open_lock(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(at("lock", path)(error)),
        }
    }

    /// Takes the lock, waiting for whoever holds it.
    pub fn wait(path: &Path) -> Result<Self, FileError> {
        let file = open_lock(path)?;
        flock(&file, FlockOperation::LockExclusive).map_err(at("lock", path))?;
        Ok(Self(file))
    }

    /// A lock that another process took and handed over.
    pub(crate) fn adopted(file: File) -> Self {
        Self(file)
    }

    /// The locked file, to be handed to another process: the lock lives as long as any copy.
    pub fn file(&self) -> &File {
        &self.0
    }
}

fn open_lock(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(at("open", path))
}

/// Makes a folder, and the folders above it, readable by its owner only.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("create", path))
}
