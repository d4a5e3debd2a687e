//! One job's folder in the state directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use mica_durable::{Folder, Named};
use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::{JobConfig, UpperDirs};
use crate::files::{FileError, LONGEST, Lock, PATIENCE, at, create_private_dir};
use crate::removal;
use crate::status::Status;

/// The folder of jobs that nobody needs any more, beside that of the others.
pub(crate) const TRASH: &str = "trash";

/// An empty file that says that the job goes when it ends: its folder outlives neither its supervisor nor the machine,
/// so nothing in it needs to be on the disk.
pub(crate) const REMOVED_AT_END: &str = "remove";

/// One job's folder.
#[derive(Clone, Debug)]
pub struct JobDir {
    id: String,
    path: PathBuf,
}

impl JobDir {
    /// A job in the folder of all jobs.
    pub(crate) fn new(id: String, jobs: &Path) -> Self {
        let path = jobs.join(&id);
        Self { id, path }
    }

    /// Opens the folder a supervisor was told.
    pub(crate) fn at(path: PathBuf) -> Self {
        let id =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { id, path }
    }

    /// Twelve hex digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The job's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state directory.
    pub(crate) fn root(&self) -> &Path {
        self.path.ancestors().nth(2).unwrap_or(&self.path)
    }

    /// Where the stack is mounted.
    pub fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// Where the n-th of [`JobConfig::images`] is mounted.
    pub fn image_tree(&self, index: usize) -> PathBuf {
        self.path.join("images").join(index.to_string()).join("tree")
    }

    /// The writable layer of that one.
    pub fn image_upper(&self, index: usize) -> UpperDirs {
        let tree = self.image_tree(index);
        UpperDirs { upper: tree.with_file_name("upper"), work: tree.with_file_name("work") }
    }

    /// The private writable layer.
    pub fn private_upper(&self) -> UpperDirs {
        UpperDirs { upper: self.path.join("upper"), work: self.path.join("work") }
    }

    /// Whether a program has written anything, as far as that can be told.
    pub(crate) fn has_written(&self) -> bool {
        match Folder::open(&self.private_upper().upper).and_then(|upper| upper.names()) {
            Ok(names) => !names.is_empty(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// The open folder; what is in it is reached from there, and no link is followed.
    pub(crate) fn folder(&self) -> Result<Folder, FileError> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        self.find_folder()?.ok_or_else(gone).named("open", &self.path)
    }

    fn find_folder(&self) -> Result<Option<Folder>, FileError> {
        Folder::open(self.path.parent().unwrap_or(Path::new("/")))?.folder(&self.id)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FileError> {
        let Some(text) = self.find_folder()?.map(|folder| folder.read(name, LONGEST)) else {
            return Ok(None);
        };
        let Some(text) = text? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(at("understand", &self.path.join(name)))
    }

    /// What was asked for.
    ///
    /// # Errors
    /// It can't be read or understood, as what a newer version has written; or it is not there.
    pub fn config(&self) -> Result<JobConfig, FileError> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        self.read("config.json")?.ok_or_else(gone).named("read", &self.path.join("config.json"))
    }

    /// What became of it; `None` before the supervisor has said anything.
    ///
    /// # Errors
    /// It can't be read or understood.
    pub fn status(&self) -> Result<Option<Status>, FileError> {
        self.read("status.json")
    }

    pub(crate) fn write_status(&self, status: &Status) -> Result<(), FileError> {
        let path = self.path.join("status.json");
        let text = serde_json::to_vec_pretty(status).map_err(at("encode", &path))?;
        let folder = self.folder()?;
        match folder.stat(REMOVED_AT_END)? {
            Some(_) => folder.replace_unsynced("status.json", &text, 0o600),
            None => folder.replace("status.json", &text, 0o600),
        }
    }

    /// Its name, also where the rest of its configuration can't be understood.
    pub fn name(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Named {
            name: Option<String>,
        }
        self.read::<Named>("config.json").ok().flatten()?.name
    }

    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.name().as_deref() == Some(name)
    }

    /// What is known of it when the rest can't be understood: any document that is one.
    pub fn raw_config(&self) -> Option<serde_json::Value> {
        self.read("config.json").ok().flatten()
    }

    /// When its folder was made.
    pub(crate) fn created(&self) -> Option<SystemTime> {
        let meta = self.path.symlink_metadata();
        meta.and_then(|meta| meta.created().or(meta.modified())).ok()
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Takes the job's lock if no supervisor has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, FileError> {
        match Lock::try_exclusive(&self.lock_path()) {
            // The folder was removed between the listing and now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other,
        }
    }

    /// Takes the lock of a job that has ended, and waits a little for whoever looks at it or cleans up behind it; `None` if
    /// it runs, or is gone.
    pub(crate) fn lock_ended(&self) -> Result<Option<Lock>, FileError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(lock) = self.try_lock()? {
                return Ok(Some(lock));
            }
            if !matches!(self.status(), Ok(Some(status)) if status.is_final()) {
                return Ok(None);
            }
            if Instant::now() > deadline {
                return Lock::exclusive(&self.lock_path(), Duration::ZERO).map(Some);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Takes what stands in the place of the lock away if that is none: nobody holds it, and the job could never be removed.
    pub(crate) fn mend_lock(&self) -> Result<(), FileError> {
        if let Some(folder) = self.find_folder()?
            && let Some(stat) = folder.stat("lock")?
            && FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        {
            removal::remove_dir(&self.lock_path())?;
        }
        Ok(())
    }

    /// Whether a supervisor (or the command that is starting one) owns the job.
    pub fn is_owned(&self) -> bool {
        Lock::is_held(&self.lock_path()).unwrap_or(false)
    }

    /// Waits until no supervisor owns the job any more, at most `patience`.
    ///
    /// # Errors
    /// `TimedOut` if one still does; the lock can't be opened.
    pub fn wait_until_released(&self, patience: Duration) -> Result<(), FileError> {
        match Lock::shared(&self.lock_path(), patience) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes the folder away from the jobs, at once; the caller holds the lock, removes what is returned, and need not hurry
    /// about that. After a kill the next command does it.
    pub(crate) fn retire(&self, _lock: &Lock) -> Result<Retired, FileError> {
        let trash = self.root().join(TRASH);
        create_private_dir(&trash)?;
        // Locked before it is there: then whoever comes by leaves it to us.
        let held = Retired { path: self.path.clone(), _held: hold(&self.path)? };
        held.move_to(trash.join(&self.id))
    }

    /// Removes the folder, in one step for whoever looks; the caller holds the lock.
    pub(crate) fn remove(&self, lock: &Lock) -> Result<(), FileError> {
        self.retire(lock)?.remove()
    }
}

/// The folder of a job that nobody needs any more.
#[derive(Debug)]
pub(crate) struct Retired {
    path: PathBuf,
    /// Locked by whoever removes it: the folder itself, as a lock file in it would be removed before the rest is.
    _held: Option<std::fs::File>,
}

impl Retired {
    /// One that nobody is removing, to be removed.
    pub(crate) fn hold(path: PathBuf) -> Result<Option<Self>, FileError> {
        Ok(hold(&path)?.map(|held| Self { path, _held: Some(held) }))
    }

    /// Gives it another place.
    pub(crate) fn move_to(self, path: PathBuf) -> Result<Self, FileError> {
        rustix::fs::rename(&self.path, &path).named("rename", &self.path)?;
        Ok(Self { path, ..self })
    }

    pub(crate) fn remove(self) -> Result<(), FileError> {
        removal::remove_dir(&self.path)
    }
}

/// Locks a folder, unless somebody else does, or has removed it.
fn hold(path: &Path) -> Result<Option<std::fs::File>, FileError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = mica_durable::found(rustix::fs::open(path, flags, Mode::empty()));
    let Some(folder) = open.named("open", path)? else { return Ok(None) };
    let folder = std::fs::File::from(folder);
    Ok(Lock::try_exclusive_on(&folder).named("lock", path)?.then_some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateDir;

    #[test]
    fn the_trash_is_emptied_by_whoever_holds_it() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(&root.path().join("state")).unwrap();
        let job = state.job("0123");
        create_private_dir(&job.tree()).unwrap();
        let lock = job.try_lock().unwrap().unwrap();
        let retired = job.retire(&lock).unwrap();
        assert!(state.jobs().unwrap().is_empty());
        let left = || std::fs::read_dir(root.path().join("state").join(TRASH)).unwrap().count();
        state.empty_trash().unwrap();
        assert_eq!(left(), 1, "somebody is at it");
        // As if that one had been killed.
        drop(retired);
        state.empty_trash().unwrap();
        assert_eq!(left(), 0);
    }
}
