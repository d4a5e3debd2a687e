//! Files of caches and registries: what [`mica_durable`] does, and the one way to make a large file appear whole.
//!
//! A file that others may read is written under a temporary name in a *staging* folder of the same file system, synced,
//! renamed into place, and the folder is synced. The writer holds a lock on the temporary file, so a file nobody
//! has locked is garbage of a dead process: [`Staging::sweep`] removes exactly those.
//!
//! What is opened here lies in a folder that another account may be able to write: a shared cache, a registry of a group.
//! Nothing but a regular file is opened, no link is followed, and what has to be locked can be opened by its owner alone.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use mica_durable::FileError;
pub(crate) use mica_durable::{Folder, Lock, Named, found, is_full, open_regular, read_bounded};
use mica_graph::Digest;
use rustix::fs::OFlags;

/// The longest wait for a lock that another process holds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a folder with exactly this mode where there is none. Those above it get what the umask leaves of 0755: others can
/// never write them.
pub(crate) fn create_dir(path: &Path, mode: u32) -> Result<Folder, FileError> {
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(above);
        made.named("create", above)?;
    }
    Folder::create(path, mode)
}

/// Opens a regular file.
pub(crate) fn open(path: &Path) -> Result<File, FileError> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    open_regular(path)?.ok_or_else(gone).named("open", path)
}

/// The whole of a small file; `None` where there is none. More than `limit` bytes is an error, not memory.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    open_regular(path)?.map(|file| read_bounded(file, path, limit)).transpose()
}

/// The same of a file that the user named: it may be a link, or a pipe.
pub(crate) fn read_given(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = found(File::open(path)).named("open", path)?;
    file.map(|file| read_bounded(file, path, limit)).transpose()
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

/// Digest and length of a file.
pub(crate) fn hash(mut file: &File, path: &Path) -> Result<(Digest, u64), FileError> {
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
    folder: Arc<Folder>,
}

impl Staging {
    const PREFIX: &str = "tmp-";

    pub(crate) fn new(folder: Folder) -> Self {
        Self { folder: Arc::new(folder) }
    }

    /// A new file, locked by this process, which nobody but its owner can open.
    pub(crate) fn create(&self) -> Result<Temporary, FileError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
            let time = std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_nanos());
            let name = format!("{}{}-{serial}-{time}", Self::PREFIX, std::process::id());
            let Some(file) = self.folder.create_file(&name, 0o600)? else { continue };
            let path = self.folder.path().join(&name);
            Lock::exclusive_on(&file, PATIENCE).named("lock", &path)?;
            // A sweep may have come between the creation and the lock.
            if is_at(&file, &path).named("stat", &path)? {
                let folder = Arc::clone(&self.folder);
                return Ok(Temporary { file, folder, name, path, kept: false });
            }
        }
    }

    /// Writes a whole file that appears at `target` at once, in place of the one that may be there.
    pub(crate) fn write(&self, target: &Path, bytes: &[u8]) -> Result<(), FileError> {
        let mut file = self.create()?;
        file.file.write_all(bytes).named("write", &file.path)?;
        file.commit(target, 0o644)
    }

    /// Removes what dead processes left; what a live one writes is locked and stays, and so does what is another account's.
    pub(crate) fn sweep(&self) -> Result<(), FileError> {
        for name in self.folder.names()? {
            if !name.as_encoded_bytes().starts_with(Self::PREFIX.as_bytes()) {
                continue;
            }
            let Ok(Some(file)) = self.folder.open_file(&name) else { continue };
            let path = self.folder.path().join(&name);
            if Lock::try_exclusive_on(&file).named("lock", &path)?
                && is_at(&file, &path).named("stat", &path)?
            {
                self.folder.remove(&name)?;
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
    folder: Arc<Folder>,
    name: String,
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

    /// The same into a folder that is open.
    pub(crate) fn commit_in(
        mut self,
        target: &Folder,
        name: &str,
        mode: u32,
    ) -> Result<(), FileError> {
        complete(&self.file, &self.path, mode)?;
        self.folder.rename(&self.name, target, name)?;
        self.kept = true;
        target.sync()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // Whatever stays is swept by the next opener.
            drop(self.folder.remove(&self.name));
        }
    }
}

/// Makes a finished file durable and visible under its final name.
pub(crate) fn publish(file: &File, from: &Path, to: &Path, mode: u32) -> Result<(), FileError> {
    complete(file, from, mode)?;
    fs::rename(from, to).named("rename to", to)?;
    let folder = to.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).named("sync", folder)
}

fn complete(file: &File, path: &Path, mode: u32) -> Result<(), FileError> {
    file.set_permissions(fs::Permissions::from_mode(mode)).named("set the mode of", path)?;
    file.sync_all().named("sync", path)
}

/// Opens a file that is to be locked, making it if need be: for reading and writing, by its owner alone.
pub(crate) fn open_part(path: &Path) -> Result<File, FileError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .named("create", path)?;
    let meta = file.metadata().named("stat", path)?;
    if !meta.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(FileError { verb: "open", path: path.to_owned(), source });
    }
    if meta.mode() & 0o077 != 0 {
        // Of an earlier version.
        let owner = fs::Permissions::from_mode(0o600);
        file.set_permissions(owner).named("set the mode of", path)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Staging) {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::new(Folder::create(&dir.path().join("incoming"), 0o700).unwrap());
        (dir, staging)
    }

    #[test]
    fn a_sweep_spares_live_writers_and_what_is_no_file() {
        let (dir, staging) = scratch();
        let incoming = dir.path().join("incoming");
        let live = staging.create().unwrap();
        fs::write(incoming.join("tmp-1-dead"), b"x").unwrap();
        fs::write(incoming.join("other"), b"x").unwrap();
        std::os::unix::fs::symlink("other", incoming.join("tmp-link")).unwrap();
        staging.sweep().unwrap();
        assert!(live.path.exists());
        assert_eq!(fs::metadata(&live.path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(&incoming).unwrap().len(), 3);
        drop(live);
        assert_eq!(names(&incoming).unwrap(), ["other", "tmp-link"]);
    }

    #[test]
    fn a_write_replaces_whole_files() {
        let (dir, staging) = scratch();
        let target = dir.path().join("file");
        for content in [&b"one"[..], b"two"] {
            staging.write(&target, content).unwrap();
            assert_eq!(read_small(&target, 10).unwrap().unwrap(), content);
        }
        assert!(read_small(&target, 2).is_err());
        assert!(read_small(&dir.path().join("none"), 2).unwrap().is_none());
        std::os::unix::fs::symlink(&target, dir.path().join("link")).unwrap();
        assert!(read_small(&dir.path().join("link"), 10).is_err());
        assert_eq!(read_given(&dir.path().join("link"), 10).unwrap().unwrap(), b"two");
    }

    #[test]
    fn what_is_locked_is_its_owners() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("x.part");
        fs::write(&part, b"x").unwrap();
        fs::set_permissions(&part, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(open_part(&part).unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
}
