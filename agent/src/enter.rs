//! Going where a job's files are: into the namespaces of one that runs, or into a mount of its own for one that has ended.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use mica_launcher::Root;

use crate::files::FileError;
use crate::images::{ImageError, Images};
use crate::namespace::{self, NamespaceError};
use crate::stack::MountStackError;
use crate::state::JobDir;
use crate::status::{Phase, Status};

/// A job's files that cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The kernel refused.
    #[error("cannot enter the namespaces of job {id}")]
    Namespaces {
        /// The job.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is between two lives, or being removed.
    #[error("job {0} is starting or being removed; try again")]
    Busy(String),
    /// Its record cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nowhere to mount.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// What it ran on cannot be mounted.
    #[error(transparent)]
    Stack(#[from] MountStackError),
    /// Nor can a further image that it saw.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Calls `work` where the job's files are seen. If the job has ended, it is given the directories that the job saw, each
/// with the one where it is now, and what lies deeper first; `None` in a running job, whose root is `/` then.
///
/// The process must have one thread, and is good for nothing else afterwards.
pub fn in_job<T>(
    path: &Path,
    work: impl FnOnce(Option<&[(PathBuf, PathBuf)]>) -> T,
) -> Result<T, EnterError> {
    let job = JobDir::at(PathBuf::from(path));
    if let Some(_lock) = job.lock_ended()? {
        let config = job.config()?;
        namespace::enter()?;
        let _lease = config.stack.lease()?;
        let mount =
            config.stack.mount(&job.tree(), &config.stack.options_in_job(&config.spec.ids))?;
        let images = Images::mount(&job, &config)?;
        let mut places = images.places(&job, &config);
        let root = match &config.spec.root {
            Root::Tree(_) => PathBuf::from("/"),
            Root::Host { at, .. } => at.clone(),
        };
        places.push((root, job.tree()));
        let result = work(Some(&places));
        images.unmount();
        if let Err(error) = mount.unmount() {
            // The mount is gone with this process and its namespace in any case.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot unmount the stack");
        }
        return Ok(result);
    }
    let Some(Status { pid: Some(pid), phase: Phase::Running | Phase::Paused, .. }) =
        job.status()?
    else {
        return Err(EnterError::Busy(job.id().to_owned()));
    };
    let failed = |source| EnterError::Namespaces { id: job.id().to_owned(), source };
    let namespaces = open_namespaces(pid).map_err(failed)?;
    // Still so after they were opened: then they are those of the job, and not of a later process of that number.
    if !job.is_owned() || job.status()?.and_then(|status| status.pid) != Some(pid) {
        return Err(EnterError::Busy(job.id().to_owned()));
    }
    // What is left of the caller in this process, its terminal and whatever descriptors it had, is not for the job to open
    // (`/proc/PID/fd`), whatever rights that has in its namespaces and whichever processes it sees.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| failed(error.into()))?;
    enter(namespaces).map_err(failed)?;
    Ok(work(None))
}

/// The user and mount namespaces of a process.
fn open_namespaces(pid: i32) -> io::Result<[File; 2]> {
    let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}"));
    Ok([open("user")?, open("mnt")?])
}

/// Joins them; the root of the process becomes ours.
fn enter([users, mounts]: [File; 2]) -> io::Result<()> {
    match move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User)) {
        // It is ours already: the job shares it with the host.
        Err(rustix::io::Errno::INVAL) => {}
        result => result?,
    }
    Ok(move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?)
}
