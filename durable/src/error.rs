//! The error of a file operation: the verb, the path, the reason.

use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", path.display())]
pub struct FileError {
    /// What was tried: `read`, `create`, …
    pub verb: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// What the operating system answered.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Whether the file system, or the user's share of it, is full.
    pub fn is_full(&self) -> bool {
        is_full(&self.source)
    }
}

/// Whether the file system, or the user's share of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds verb and path to an I/O error.
pub trait Named<T> {
    /// The result with an error that says what could not be done on which path.
    ///
    /// # Errors
    /// The error of `self`, named.
    fn named(self, verb: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> Named<T> for Result<T, E> {
    fn named(self, verb: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { verb, path: path.to_owned(), source: source.into() })
    }
}

/// `None` where there is no such file.
///
/// # Errors
/// Any other error of `result`.
pub fn found<T, E: Into<io::Error>>(result: Result<T, E>) -> io::Result<Option<T>> {
    match result.map_err(Into::into) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
