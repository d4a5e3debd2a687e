//! The supervisor of a job, and the files that say what runs.
//!
//! No daemon is needed: a command makes a job's folder, [`start`]s a supervisor and hands it the folder's lock; every
//! later command reads the folder. A supervisor that was killed is noticed by its lock being free, and [`reconcile()`]
//! ends what it left.
//!
//! ```
//! use mica_agent::{CreateError, JobConfig, StackConfig, StateDir};
//! use mica_launcher::{Root, Spec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let state = StateDir::open(&folder.path().join("state"))?;
//! let (job, lock) = state.create::<CreateError>(|job| {
//!     Ok(JobConfig {
//!         name: Some("greeter".into()),
//!         stack: StackConfig {
//!             source: "A@953bc".into(),
//!             upper: Some(job.private_upper()),
//!             ..StackConfig::default()
//!         },
//!         images: Vec::new(),
//!         spec: Spec::new(job.id(), Root::Tree(job.tree()), ["app/A"]),
//!         remove: false,
//!         stop_signal: 15,
//!         stop_timeout: 10,
//!         labels: Default::default(),
//!         created_ms: mica_agent::now_ms(),
//!         terminal: false,
//!         open_stdin: false,
//!         restart: Default::default(),
//!         health: None,
//!         network: None,
//!         log: Default::default(),
//!     })
//! })?;
//! assert_eq!(state.find("greeter")?.id(), job.id());
//!
//! // Here `start(Supervisor::Program(program), job, lock, attach)` would start the supervisor: `program` is a binary that
//! // calls `supervise` for the word `SUPERVISE`. This command dies instead, and the next one cleans up.
//! drop(lock);
//! mica_agent::reconcile(&state)?;
//! assert!(state.jobs()?.is_empty());
//! # Ok(())
//! # }
//! ```

mod admission;
mod client;
mod config;
mod control;
mod ending;
mod enter;
pub mod events;
mod features;
mod files;
mod forced;
#[doc(hidden)]
pub mod fuzz;
mod handover;
mod health;
mod holders;
mod images;
mod inherited;
mod job;
mod journal;
mod lines;
pub mod logs;
mod mountinfo;
mod mounts;
mod namespace;
mod networks;
mod output;
mod peer;
mod processes;
mod reconcile;
mod removal;
mod report;
mod requests;
mod restarts;
mod serve;
mod session;
mod sinks;
mod stack;
mod state;
mod status;
mod steps;
mod subids;
mod supervisor;
mod surroundings;
mod sys;
mod task;
mod volumes;

pub use client::{
    Attach, FollowError, HeldSignals, RemoveError, SUPERVISE, StartError, StartedJob, Supervisor,
    follow, may_fork, remove, start,
};
pub use config::{
    HealthCheck, ImageMount, JobConfig, JobLayer, LazySource, LogConfig, LogDriver, Restart,
    StackConfig, UnknownRestart, UpperDirs,
};
pub use control::{Connected, ControlError, Held, Remote, Size};
pub use ending::{signal, stop};
pub use enter::{EnterError, in_job};
pub use files::{FileError, Lock};
pub use holders::{Holder, Holders};
pub use images::ImageError;
pub use inherited::{is_ignored, put_process_right};
pub use job::JobDir;
pub use lines::JsonLines;
pub use mica_mounter::{Stats as MountStats, Unmounted, Verify};
pub use mounts::{MountConfig, MountDir, Mounts, SERVE_MOUNT, TakenDown, UmountError, start_mount};
pub use namespace::{NamespaceError, see_owners};
pub use networks::{
    Attachment, Member, Network, NetworkConfig, NetworkError, NetworkName, Networks, NewNetwork,
    routed,
};
pub use processes::{ProcessInfo, processes};
pub use reconcile::reconcile;
pub use removal::{REMOVE_FILES, remove_files};
pub use report::{MountReport, Report};
pub use restarts::{restart_pending, resume};
pub use serve::{MountInvocation, ServeMountError, serve_config, serve_mount};
pub use stack::{MountStackError, StackError, TraceFile};
pub use state::{CreateError, FindError, StateDir, now_ms};
pub use status::{Failure, Health, HealthState, Phase, Status, StoppedBy, Timings};
pub use subids::{NoSubIds, SubIds};
pub use supervisor::{Invocation, SuperviseError, supervise};
pub use sys::keep_descriptors;
pub use volumes::{VolumeError, VolumeName, Volumes};
