//! The supervisor of a job, and the files that say what runs.
//!
//! No daemon is needed: a command makes a job's folder, [`start`]s a supervisor and hands it the folder's lock; every
//! later command reads the folder. A supervisor that was killed is noticed by its lock being free, and [`reconcile()`]
//! ends what it left.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use mica_agent::{Attach, CreateError, JobConfig, StateDir};
//!
//! # fn config() -> JobConfig { unimplemented!() }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let state = StateDir::open(Path::new("/var/lib/mica"))?;
//! mica_agent::reconcile(&state)?;
//! let (job, lock) = state.create::<CreateError>(|_| Ok(config()))?;
//! // `mica` calls `supervise` for the word that `start` puts first on its command line.
//! let program = Path::new("/usr/bin/mica");
//! let mut started = mica_agent::start(program, job, lock, Attach { stdin: false, output: true })?;
//! let status = started.wait_ended()?;
//! println!("exit code {:?}", status.exit_code);
//! # Ok(())
//! # }
//! ```

mod client;
mod files;
mod handover;
pub mod logs;
mod mounts;
mod namespace;
mod output;
mod reconcile;
mod report;
mod stack;
mod state;
mod supervisor;
mod sys;

pub use client::{
    Attach, FollowError, SUPERVISE, SignalError, StartError, StartedJob, follow, remove, signal,
    start, stop,
};
pub use files::{FileError, Lock};
pub use mounts::{
    MountConfig, MountDir, MountInvocation, Mounts, SERVE_MOUNT, ServeMountError, UmountError,
    serve_config, serve_mount, start_mount,
};
pub use namespace::NamespaceError;
pub use reconcile::reconcile;
pub use report::{MountReport, Report};
pub use stack::StackError;
pub use state::{
    CreateError, Failure, FindError, JobConfig, JobDir, JobLayer, Phase, StateDir, Status, Timings,
    UpperDirs, now_ms,
};
pub use supervisor::{Invocation, SuperviseError, supervise};
