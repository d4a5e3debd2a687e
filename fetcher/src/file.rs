//! File operations whose errors name the verb and the path, and the one way to make a file appear whole.
//!
//! A file that others may read is written under a temporary name in a *staging* folder of the same file system, synced,
//! renamed into place, and the folder is synced. The writer holds a `flock` on the temporary file, so a file nobody
//! has locked is garbage of a dead process: [`Staging::sweep`] removes exactly those.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use mica_graph::Digest;
use rustix::fs::FlockOperation;

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
    /// Whether the file system, or the user's share of it, is full.
    pub fn is_full(&self) -> bool {
        is_full(&self.source)
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds verb and path to an I/O error.
pub(crate) trait Named<T> {
    fn named(self, verb: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> Named<T> for Result<T, E> {
    fn named(self, verb: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { verb, path: path.to_owned(), source: source.into() })
    }
}

/// `None` where there is no such file.
pub(crate) fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

pub(crate) fn create_dir(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).named("create", path)
}

/// The whole of a small file; `None` where there is none. More than `limit` bytes is an error, not memory.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let Some(file) = found(File::open(path)).named("open", path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).named("read", path)?;
    if bytes.len() as u64 > limit {
        let source = io::Error::new(io::ErrorKind::FileTooLarge, "the file is far too large");
        return Err(FileError { verb: "read", path: path.to_owned(), source });
    }
    Ok(Some(bytes))
}

/// The metadata; `None` where there is no file.
pub(crate) fn stat(path: &Path) -> Result<Option<fs::Metadata>, FileError> {
    found(fs::symlink_metadata(path)).named("stat", path)
}

/// Removes a file; whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool, FileError> {
    Ok(found(fs::remove_file(path)).named("remove", path)?.is_some())
}

/// Names in a folder; none where there is no folder. Names that are not UTF-8 are not ours and left out.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, FileError> {
    let Some(entries) = found(fs::read_dir(path)).named("list", path)? else { return Ok(vec![]) };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.named("list", path)?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|dir| dir.sync_all()).named("sync", path)
}

/// A lock between processes that ends with its holder, however that dies. The file itself stays.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn exclusive(path: &Path) -> Result<Self, FileError> {
        Self::take(path, FlockOperation::LockExclusive)
    }

    pub(crate) fn shared(path: &Path) -> Result<Self, FileError> {
        Self::take(path, FlockOperation::LockShared)
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Self, FileError> {
        let file = lock_file(path)?;
        flock(&file, operation).named("lock", path)?;
        Ok(Self { _file: file })
    }
}

fn lock_file(path: &Path) -> Result<File, FileError> {
    fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).named("open", path)
}

pub(crate) fn flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation))?)
}

/// Digest and length of a file.
pub(crate) fn hash(path: &Path) -> Result<(Digest, u64), FileError> {
    let mut file = File::open(path).named("open", path)?;
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).named("read", path)? {
            0 => return Ok((hasher.finalize().into(), size)),
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}

/// Whether a file starts with these bytes.
pub(crate) fn starts_with(path: &Path, start: &[u8]) -> Result<bool, FileError> {
    let file = File::open(path).named("open", path)?;
    let mut bytes = Vec::new();
    file.take(start.len() as u64).read_to_end(&mut bytes).named("read", path)?;
    Ok(bytes == start)
}

/// Takes the lock if nobody holds it.
pub(crate) fn try_flock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether `path` still names the open `file`: it may have been renamed or removed while we waited for its lock.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    let named = found(fs::symlink_metadata(path))?;
    Ok(named.is_some_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino())))
}

/// Lets the disk begin with what was written to a large file, so that little is left to wait for when it is synced.
pub(crate) struct Writeback {
    begun: u64,
}

impl Writeback {
    /// So much at a time.
    const STEP: u64 = 8 << 20;

    pub(crate) fn new(len: u64) -> Self {
        Self { begun: len }
    }

    /// Called when so much of the file is written.
    pub(crate) fn wrote(&mut self, file: &File, len: u64) {
        // What is thrown away and written again need not begin early.
        let Some(new) = len.checked_sub(self.begun).filter(|new| *new >= Self::STEP) else {
            return;
        };
        // This writes what is dirty, and forgets only what is not: the pages stay for whoever mounts the image.
        let advice = rustix::fs::Advice::DontNeed;
        if rustix::fs::fadvise(file, self.begun, NonZero::new(new), advice).is_err() {
            // Then everything is written when it is synced.
            tracing::trace!("the file system takes no advice");
        }
        self.begun = len;
    }
}

/// A folder for files in the making.
#[derive(Clone, Debug)]
pub(crate) struct Staging {
    folder: PathBuf,
}

impl Staging {
    const PREFIX: &str = "tmp-";

    pub(crate) fn new(folder: PathBuf) -> Result<Self, FileError> {
        create_dir(&folder)?;
        Ok(Self { folder })
    }

    /// A new file, locked by this process.
    pub(crate) fn create(&self) -> Result<Temporary, FileError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
            let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_nanos());
            let name = format!("{}{}-{serial}-{time}", Self::PREFIX, std::process::id());
            let path = self.folder.join(name);
            let options = fs::OpenOptions::new().read(true).write(true).create_new(true).clone();
            let file = match options.open(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.named("create", &path)?,
            };
            flock(&file, FlockOperation::LockExclusive).named("lock", &path)?;
            // A sweep may have come between the creation and the lock.
            if is_at(&file, &path).named("stat", &path)? {
                return Ok(Temporary { file, path, kept: false });
            }
        }
    }

    /// Writes a whole file that appears at `target` at once, in place of the one that may be there.
    pub(crate) fn write(&self, target: &Path, bytes: &[u8]) -> Result<(), FileError> {
        let mut file = self.create()?;
        file.file.write_all(bytes).named("write", &file.path)?;
        file.commit(target, 0o644)
    }

    /// Removes what dead processes left; what a live one writes is locked and stays.
    pub(crate) fn sweep(&self) -> Result<(), FileError> {
        for name in names(&self.folder)? {
            if !name.starts_with(Self::PREFIX) {
                continue;
            }
            let path = self.folder.join(name);
            let Some(file) = found(File::open(&path)).named("open", &path)? else { continue };
            if try_flock(&file).named("lock", &path)? && is_at(&file, &path).named("stat", &path)? {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// A file in the making; removed on drop unless committed.
#[derive(Debug)]
pub(crate) struct Temporary {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    kept: bool,
}

impl Temporary {
    /// Leaves the file under its temporary name, for as long as it stays locked.
    pub(crate) fn persist(mut self) -> Self {
        self.kept = true;
        self
    }

    pub(crate) fn commit(mut self, target: &Path, mode: u32) -> Result<(), FileError> {
        publish(&self.file, &self.path, target, mode)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // Whatever stays is swept by the next opener.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Makes a finished file durable and visible under its final name.
pub(crate) fn publish(file: &File, from: &Path, to: &Path, mode: u32) -> Result<(), FileError> {
    file.set_permissions(fs::Permissions::from_mode(mode)).named("set the mode of", from)?;
    file.sync_all().named("sync", from)?;
    fs::rename(from, to).named("rename to", to)?;
    sync_dir(to.parent().unwrap_or(Path::new("/")))
}

/// Opens a file for reading and writing, making it if need be, without following a symbolic link.
pub(crate) fn open_part(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_spares_live_writers() {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::new(folder.path().join("incoming")).unwrap();
        let live = staging.create().unwrap();
        fs::write(folder.path().join("incoming/tmp-1-dead"), b"x").unwrap();
        fs::write(folder.path().join("incoming/other"), b"x").unwrap();
        staging.sweep().unwrap();
        assert!(live.path.exists());
        assert_eq!(names(&folder.path().join("incoming")).unwrap().len(), 2);
        drop(live);
        assert_eq!(names(&folder.path().join("incoming")).unwrap(), ["other"]);
    }

    #[test]
    fn a_write_replaces_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::new(folder.path().join("incoming")).unwrap();
        let target = folder.path().join("file");
        for content in [&b"one"[..], b"two"] {
            staging.write(&target, content).unwrap();
            assert_eq!(read_small(&target, 10).unwrap().unwrap(), content);
        }
        assert!(read_small(&target, 2).is_err());
        assert!(read_small(&folder.path().join("none"), 2).unwrap().is_none());
    }
}
