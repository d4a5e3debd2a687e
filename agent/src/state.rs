//! The state directory: one folder a job, plain files that every command reads, no daemon.
//!
//! ```text
//! jobs/.<id>/              a job's folder while it is made; then it is renamed, so that a job has a configuration at all times
//! jobs/<id>/config.json    what was asked for; there before the supervisor starts
//!           remove         an empty file, if the job goes when it ends
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
//! state.json               which version and features the folder has (see [`crate::features`])
//! tmp/                     folders for a time (see [`mica_durable::Scratch`])
//! ```
//!
//! A job is *owned* while its lock is held. A job that is not owned and has not ended lost its supervisor:
//! [`crate::reconcile()`] ends it. The lock is an open file's, not a process id's, so a process id that
//! comes round again deceives nobody, and nothing survives a reboot. Commands that only read take no lock.
//!
//! What can't be read is never removed but by `mica rm -f`: it may be damaged by a crash, or be a newer version's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use mica_durable::{Folder, Named, Scratch};
use rustix::fs::FileType;

use crate::config::JobConfig;
use crate::events::{self, Event};
use crate::features::{self, Access};
use crate::files::{FileError, Lock, PATIENCE, at, refuse_shared, write_json};
pub(crate) use crate::job::JobDir;
use crate::job::{REMOVED_AT_END, Retired, TRASH};
use crate::lines::JsonLines;
use crate::networks::Networks;
use crate::removal;
use crate::volumes::{Volumes, is_name};

/// All jobs of one user.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
    access: Access,
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
    ///
    /// # Errors
    /// The folder is not the caller's alone, a newer version has made it such that this one can't read it, or it can't be
    /// made or opened.
    pub fn open(root: &Path) -> Result<Self, FileError> {
        let folder = Folder::create(root, 0o700)?;
        refuse_shared(&folder)?;
        let access = features::check(&folder)?;
        if access.writable().is_ok() {
            folder.create_folder("jobs", 0o700)?;
        }
        Ok(Self { root: root.to_owned(), access })
    }

    /// Fails if this version must not change what is here.
    pub(crate) fn writable(&self) -> Result<(), FileError> {
        self.access.writable().named("change", &self.root)
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
        self.writable().map_err(file)?;
        let id = new_id();
        let job = JobDir::new(id, &self.jobs_dir());
        let config = make(&job)?;
        // Two commands that give one name at one time meet here.
        let _names = Lock::exclusive(&self.names_lock(), PATIENCE).map_err(file)?;
        self.check_name(&config)?;
        let lock = self.furnish(&job, &config).map_err(file)?;
        events::record(&job, &config, "create", &[]);
        Ok((job, lock))
    }

    /// Makes the job's folder: under another name at first, so that whoever sees it sees all of it.
    fn furnish(&self, job: &JobDir, config: &JobConfig) -> Result<Lock, FileError> {
        let jobs = Folder::open(&self.jobs_dir())?;
        let making = jobs.create_folder(format!(".{}", job.id()), 0o700)?;
        let lock = Lock::exclusive(&making.path().join("lock"), PATIENCE)?;
        making.create_folder("tree", 0o700)?;
        if config.remove {
            making.append_file(REMOVED_AT_END, 0o600)?;
        }
        let path = making.path().join("config.json");
        let text = serde_json::to_vec_pretty(config).map_err(at("encode", &path))?;
        // What is thrown away has no use for a disk.
        match config.remove {
            true => making.replace_unsynced("config.json", &text, 0o600)?,
            false => making.replace("config.json", &text, 0o600)?,
        }
        rustix::fs::renameat(&jobs, format!(".{}", job.id()), &jobs, job.id())
            .named("rename to", job.path())?;
        if !config.remove {
            jobs.sync()?;
        }
        Ok(lock)
    }

    /// Changes the configuration of a job, where `change` allows it.
    pub fn reconfigure<E: From<CreateError>>(
        &self,
        job: &JobDir,
        change: impl FnOnce(&mut JobConfig) -> Result<(), E>,
    ) -> Result<JobConfig, E> {
        let file = |error: FileError| E::from(error.into());
        self.writable().map_err(file)?;
        let _names = Lock::exclusive(&self.names_lock(), PATIENCE).map_err(file)?;
        let mut config = job.config().map_err(file)?;
        let before = config.name.clone();
        change(&mut config)?;
        if config.name != before {
            self.check_name(&config)?;
        }
        write_json(&job.path().join("config.json"), &config).map_err(file)?;
        Ok(config)
    }

    /// Removes what commands and supervisors have left that were killed when they made or removed jobs.
    pub(crate) fn empty_trash(&self) -> Result<(), FileError> {
        let root = Folder::open(&self.root)?;
        if let Some(trash) = root.folder(TRASH)? {
            for name in trash.names()? {
                if let Some(retired) = Retired::hold(trash.path().join(name))? {
                    retired.remove()?;
                }
            }
        }
        Scratch::sweep(&self.tmp())
    }

    /// Removes a folder of the state directory, in one step for whoever looks: it is renamed away first.
    pub(crate) fn throw_away(&self, folder: &Path, name: &str) -> Result<(), FileError> {
        let trash = Folder::create(&self.root.join(TRASH), 0o700)?;
        let Some(held) = Retired::hold(folder.to_owned())? else { return Ok(()) };
        held.move_to(trash.path().join(format!("{name}-{}", new_id())))?.remove()
    }

    /// Removes folders of jobs that were not made to their end.
    fn remove_unmade(&self) -> Result<(), FileError> {
        let jobs = Folder::open(&self.jobs_dir())?;
        let unmade = |name: &OsString| name.as_encoded_bytes().starts_with(b".");
        let names: Vec<_> = jobs.names()?.into_iter().filter(unmade).collect();
        // Whoever makes one holds the names.
        if !names.is_empty()
            && let Some(_names) = self.try_names()?
        {
            for name in names {
                removal::remove_dir(&jobs.path().join(name))?;
            }
        }
        Ok(())
    }

    /// What nobody needs any more is removed, as far as nobody is at it.
    pub(crate) fn sweep(&self) {
        if let Err(error) = self.remove_unmade().and_then(|()| self.empty_trash()) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot remove an ended job");
        }
    }

    /// Where folders for a time are, on the same file system: see [`Scratch`].
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
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

    /// Takes the lock of a job that has ended, to start it again; `None` if it runs.
    ///
    /// # Errors
    /// Somebody is at it for too long, or it is gone.
    pub fn take(&self, job: &JobDir) -> Result<Option<Lock>, FileError> {
        self.writable()?;
        job.lock_ended()
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
        JobDir::new(id.to_owned(), &self.jobs_dir())
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
            Some(other) => {
                Err(CreateError::NameInUse { name: name.clone(), id: other.id().to_owned() })
            }
            None => Ok(()),
        }
    }

    /// All jobs, oldest first.
    ///
    /// # Errors
    /// The state directory can't be read.
    pub fn jobs(&self) -> Result<Vec<JobDir>, FileError> {
        let root = Folder::open(&self.root)?;
        let Some(folder) = root.folder("jobs")? else { return Ok(Vec::new()) };
        let mut jobs = Vec::new();
        for name in folder.names()? {
            // With a point first: one that is being made.
            let Some(id) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let Some(stat) = folder.stat(&name)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let job = JobDir::new(id.to_owned(), folder.path());
                jobs.push((job.created(), job));
            }
        }
        jobs.sort_by(|a, b| (a.0, a.1.id()).cmp(&(b.0, b.1.id())));
        Ok(jobs.into_iter().map(|(_, job)| job).collect())
    }

    /// The job with this name, or whose id starts so.
    pub fn find(&self, word: &str) -> Result<JobDir, FindError> {
        let jobs = self.jobs()?;
        if let Some(job) = jobs.iter().find(|job| job.id() == word || job.has_name(word)) {
            return Ok(job.clone());
        }
        let mut found: Vec<JobDir> =
            jobs.into_iter().filter(|job| !word.is_empty() && job.id().starts_with(word)).collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(FindError::Unknown(word.to_owned())),
            _ => Err(FindError::Ambiguous {
                prefix: word.to_owned(),
                ids: found.into_iter().map(|job| job.id().to_owned()).collect(),
            }),
        }
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
