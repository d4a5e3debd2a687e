//! The state directory: one folder a job, plain files that every command reads, no daemon.
//!
//! ```text
//! jobs/<id>/config.json    what was asked for; written once, before the supervisor starts
//!           control        socket on which a running job's supervisor takes requests (see [`crate::Remote`])
//!           lock           held (flock) from before `config.json` exists until the supervisor ends
//!           status.json    what became of it; replaced as a whole by the supervisor
//!           log.jsonl      what the job printed (see [`crate::logs`])
//!           supervisor.log what the supervisor and its mount had to say
//!           tree/          where the stack is mounted, inside the supervisor's own mount namespace
//!           upper/ work/   the job's private writable layer
//!           images/        further stacks that it sees
//! trash/<id>/              a job's folder, locked itself, while it is removed
//! volumes/<name>/data      named volumes
//! networks/<name>/         bridge networks (see [`crate::Networks`])
//! events.jsonl             what happened to jobs (see [`crate::events`])
//! ```
//!
//! A job is *owned* while its lock is held. A job that is not owned and has not ended lost its supervisor:
//! [`crate::reconcile()`] ends it. The lock is an open file's, not a process id's, so a process id that
//! comes round again deceives nobody, and nothing survives a reboot.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::config::{JobConfig, UpperDirs};
use crate::events::{self, Event};
use crate::files::{FileError, Lock, PATIENCE, at, create_private_dir, read_json, write_json};
use crate::lines::JsonLines;
use crate::networks::Networks;
use crate::removal;
use crate::status::Status;
use crate::volumes::{Volumes, is_name};

/// All jobs of one user.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// One job's folder.
#[derive(Clone, Debug)]
pub struct JobDir {
    id: String,
    path: PathBuf,
}

/// A job that cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No id or name starts like that.
    #[error("no job has the name or id `{0}`")]
    Unknown(String),
    /// Several ids start like that.
    #[error("`{prefix}` is the beginning of {} jobs: {}", ids.len(), ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// The candidates.
        ids: Vec<String>,
    },
    /// The state directory cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A job that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Names are plain words, as they become names of hosts too.
    #[error("`{0}` is not a name (letters, digits, `_`, `.`, `-`; a letter or digit first)")]
    Name(String),
    /// Names are unique.
    #[error("the name `{name}` is in use by job {id}")]
    NameInUse {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The state directory cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl StateDir {
    /// The jobs below `root`, which is made if need be.
    pub fn open(root: &Path) -> Result<Self, FileError> {
        create_private_dir(&root.join("jobs"))?;
        Ok(Self { root: root.to_owned() })
    }

    fn jobs_dir(&self) -> PathBuf {
        self.root.join("jobs")
    }

    fn names_lock(&self) -> PathBuf {
        self.root.join("names.lock")
    }

    /// Takes the lock under which folders are made, if no command is making one.
    pub(crate) fn try_names(&self) -> Result<Option<Lock>, FileError> {
        Lock::try_exclusive(&self.names_lock())
    }

    /// Makes the folder of a new job, with the configuration that `make` writes for it, and takes its lock,
    /// to be handed to the supervisor.
    pub fn create<E: From<CreateError>>(
        &self,
        make: impl FnOnce(&JobDir) -> Result<JobConfig, E>,
    ) -> Result<(JobDir, Lock), E> {
        let file = |error: FileError| E::from(error.into());
        let id = new_id();
        let job = JobDir { path: self.jobs_dir().join(&id), id };
        let config = make(&job)?;
        // Two commands that give one name at one time meet here.
        let _names = Lock::exclusive(&self.names_lock(), PATIENCE).map_err(file)?;
        self.check_name(&config)?;
        create_private_dir(&job.path).map_err(file)?;
        let lock = Lock::exclusive(&job.path.join("lock"), PATIENCE).map_err(file)?;
        create_private_dir(&job.tree()).map_err(file)?;
        write_json(&job.path.join("config.json"), &config).map_err(file)?;
        events::record(&job, &config, "create", &[]);
        Ok((job, lock))
    }

    /// Changes the configuration of a job, where `change` allows it.
    pub fn reconfigure<E: From<CreateError>>(
        &self,
        job: &JobDir,
        change: impl FnOnce(&mut JobConfig) -> Result<(), E>,
    ) -> Result<JobConfig, E> {
        let file = |error: FileError| E::from(error.into());
        let _names = Lock::exclusive(&self.names_lock(), PATIENCE).map_err(file)?;
        let mut config = job.config().map_err(file)?;
        let before = config.name.clone();
        change(&mut config)?;
        if config.name != before {
            self.check_name(&config)?;
        }
        write_json(&job.path.join("config.json"), &config).map_err(file)?;
        Ok(config)
    }

    /// Removes what supervisors have left that were killed when they removed their jobs.
    pub(crate) fn empty_trash(&self) -> Result<(), FileError> {
        for entry in fs::read_dir(trash_dir(&self.root)).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Some(held) = Retired::hold(&path)? {
                Retired { path, _held: Some(held) }.remove()?;
            }
        }
        Ok(())
    }

    /// Gives a job another name.
    pub fn rename(&self, job: &JobDir, name: &str) -> Result<(), CreateError> {
        let config = self.reconfigure(job, |config| {
            config.name = Some(name.to_owned());
            Ok::<_, CreateError>(())
        })?;
        events::record(job, &config, "rename", &[]);
        if let Some(attachment) = &config.network
            && let Err(error) = self.networks().refresh(&attachment.network)
        {
            tracing::warn!(%error, "the other jobs of the network don't know the new name");
        }
        Ok(())
    }

    /// Takes the lock of a job that has ended, to start it again.
    pub fn take(&self, job: &JobDir) -> Result<Option<Lock>, FileError> {
        job.try_lock()
    }

    /// What happened to jobs.
    pub fn events(&self) -> JsonLines<Event> {
        events::reader(&self.root)
    }

    /// The volumes that jobs can have by name.
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes(self)
    }

    /// The networks that jobs can be on.
    pub fn networks(&self) -> Networks<'_> {
        Networks(self)
    }

    /// The folder of the job with this id.
    pub(crate) fn job(&self, id: &str) -> JobDir {
        JobDir { id: id.to_owned(), path: self.jobs_dir().join(id) }
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn check_name(&self, config: &JobConfig) -> Result<(), CreateError> {
        let Some(name) = &config.name else { return Ok(()) };
        if !is_name(name) {
            return Err(CreateError::Name(name.clone()));
        }
        match self.jobs()?.into_iter().find(|job| job.has_name(name)) {
            Some(other) => Err(CreateError::NameInUse { name: name.clone(), id: other.id }),
            None => Ok(()),
        }
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> Result<Vec<JobDir>, FileError> {
        let dir = self.jobs_dir();
        let mut jobs = Vec::new();
        for entry in fs::read_dir(&dir).map_err(at("list", &dir))? {
            let entry = entry.map_err(at("list", &dir))?;
            if let Ok(id) = entry.file_name().into_string() {
                let created =
                    entry.metadata().and_then(|meta| meta.created().or(meta.modified())).ok();
                jobs.push((created, JobDir { id, path: entry.path() }));
            }
        }
        jobs.sort_by(|a, b| (a.0, &a.1.id).cmp(&(b.0, &b.1.id)));
        Ok(jobs.into_iter().map(|(_, job)| job).collect())
    }

    /// The job with this name, or whose id starts so.
    pub fn find(&self, word: &str) -> Result<JobDir, FindError> {
        let jobs = self.jobs()?;
        if let Some(job) = jobs.iter().find(|job| job.id == word || job.has_name(word)) {
            return Ok(job.clone());
        }
        let mut found: Vec<JobDir> =
            jobs.into_iter().filter(|job| !word.is_empty() && job.id.starts_with(word)).collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(FindError::Unknown(word.to_owned())),
            _ => Err(FindError::Ambiguous {
                prefix: word.to_owned(),
                ids: found.into_iter().map(|job| job.id).collect(),
            }),
        }
    }
}

/// Where folders of jobs are that nobody needs any more.
fn trash_dir(root: &Path) -> PathBuf {
    root.join("trash")
}

/// The folder of a job that nobody needs any more.
#[derive(Debug)]
pub(crate) struct Retired {
    path: PathBuf,
    /// Locked by whoever removes it: the folder itself, as a lock file in it would be removed before the rest is.
    _held: Option<fs::File>,
}

impl Retired {
    /// Locks a folder, unless somebody else does, or has removed it.
    fn hold(path: &Path) -> Result<Option<fs::File>, FileError> {
        let folder = match fs::File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result.map_err(at("open", path))?,
        };
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(folder)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(at("lock", path)(error)),
        }
    }

    pub(crate) fn remove(self) -> Result<(), FileError> {
        removal::remove_dir(&self.path)
    }
}

impl JobDir {
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

    /// What was asked for.
    pub fn config(&self) -> Result<JobConfig, FileError> {
        read_json(&self.path.join("config.json"))
    }

    /// What became of it; `None` before the supervisor has said anything.
    pub fn status(&self) -> Result<Option<Status>, FileError> {
        match read_json(&self.path.join("status.json")) {
            Ok(status) => Ok(Some(status)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn write_status(&self, status: &Status) -> Result<(), FileError> {
        write_json(&self.path.join("status.json"), status)
    }

    fn has_name(&self, name: &str) -> bool {
        self.config().is_ok_and(|config| config.name.as_deref() == Some(name))
    }

    /// Takes the job's lock if no supervisor has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, FileError> {
        match Lock::try_exclusive(&self.path.join("lock")) {
            // The folder was removed between the listing and now.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => other,
        }
    }

    /// Whether a supervisor (or the command that is starting one) owns the job.
    pub fn is_owned(&self) -> bool {
        matches!(self.try_lock(), Ok(None))
    }

    /// Waits until no supervisor owns the job any more, at most `patience`.
    ///
    /// # Errors
    /// `TimedOut` if it still does; the lock can't be opened.
    pub fn wait_until_released(&self, patience: Duration) -> Result<(), FileError> {
        match Lock::shared(&self.path.join("lock"), patience) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes the folder away from the jobs, at once; the caller holds the lock, removes what is returned, and need not hurry
    /// about that. After a kill the next command does it.
    pub(crate) fn retire(&self, _lock: &Lock) -> Result<Retired, FileError> {
        let trash = trash_dir(self.root());
        create_private_dir(&trash)?;
        let path = trash.join(&self.id);
        // Before it is there: then whoever comes by leaves it to us.
        let held = Retired::hold(&self.path)?;
        fs::rename(&self.path, &path).map_err(at("rename", &self.path))?;
        Ok(Retired { path, _held: held })
    }

    /// Removes the folder; the caller holds the lock.
    pub(crate) fn remove(&self, _lock: &Lock) -> Result<(), FileError> {
        removal::remove_dir(&self.path)
    }
}

/// Twelve hex digits from the kernel's random numbers, as docker shows them.
pub(crate) fn new_id() -> String {
    let mut bytes = [0_u8; 6];
    // getrandom(2) can't fail for so few bytes once the kernel is up; a clash would only repeat the call.
    while rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        != Ok(bytes.len())
    {}
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trash_is_emptied_by_whoever_holds_it() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let job = state.job("0123");
        create_private_dir(&job.tree()).unwrap();
        let lock = job.try_lock().unwrap().unwrap();
        let retired = job.retire(&lock).unwrap();
        assert!(state.jobs().unwrap().is_empty());
        let left = || fs::read_dir(trash_dir(root.path())).unwrap().count();
        state.empty_trash().unwrap();
        assert_eq!(left(), 1, "somebody is at it");
        // As if that one had been killed.
        drop(retired);
        state.empty_trash().unwrap();
        assert_eq!(left(), 0);
    }
}
