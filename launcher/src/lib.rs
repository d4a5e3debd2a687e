//! A job specification into a confined process.
//!
//! ```text
//! Spec --facts--> Plan { steps, id maps, process } --launch--> Job (init = pid 1 of the job) -> program
//! ```
//!
//! A [`Spec`] says what is wanted; [`plan()`] turns it into a list of [`Step`]s without touching the system; [`launch`]
//! makes the namespaces and the cgroup, and lets a small init, which is this same binary started again, carry the steps out.
//! A launcher can [`prepare`] that init while it makes the job's root, which is quicker.
//! The init reaps, passes signals on, starts further programs and dies with its launcher; how it is kept out of the job's
//! reach is told at [`init_main`]. The launcher knows a root directory, not how it was mounted.
//!
//! Needs Linux 5.12 (recursive `mount_setattr`); `cgroup.kill` needs 5.14 and has a fallback.
//!
//! As root the job gets a user namespace with all ids unchanged, or with those of [`IdMapping::Ranges`]; as an ordinary user
//! one with its own id alone, or with all that its launcher's namespace has.
//!
//! For whoever supervises jobs:
//! - `main` calls [`init_main`] before anything else.
//! - [`launch`] may be called from any thread but the one that serves the job's root, and returns when the program runs.
//! - Write [`Job::cgroup`] down; after a crash, [`cleanup`] with it removes what is left. Processes leave nothing: they end
//!   with the launcher.
//! - [`Job::pidfd`] and [`Program`] can be polled; [`Job::wait`] collects the job and removes its cgroup. Nothing else in
//!   the process may wait for its children with `wait(-1)`.
//!
//! Deliberately absent: OCI hooks but those of [`cdi`], AppArmor and SELinux labels, device cgroups (device nodes have no
//! effect but the bound ones), 32-bit programs under the usual filter, and a daemon.
//!
//! # Example
//!
//! ```
//! use mica_launcher::{HostView, Root, Spec, Stdio, init_main, launch};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     init_main(); // first thing: this binary is also the job's init
//!     let tree = std::env::temp_dir().join(format!("mica-example-{}", std::process::id()));
//!     std::fs::create_dir_all(&tree)?;
//!     let root = Root::Host { tree: tree.clone(), at: "/packages/example-1".into(), view: HostView::default() };
//!     let spec = Spec::new(format!("example-{}", std::process::id()), root, ["/bin/sh", "-c", "test $$ = 2; exit 3"]);
//!     let result = launch(&spec, Stdio::null()?).map(|mut job| job.wait());
//!     std::fs::remove_dir(&tree)?;
//!     assert_eq!(result??.code(), 3);
//!     Ok(())
//! }
//! ```

mod ahead;
pub mod bridge;
mod caps;
pub mod cdi;
pub mod cgroup;
mod closed;
mod entrance;
mod error;
mod facts;
mod firewall;
mod forwarding;
mod hidden;
mod ids;
mod init;
mod job;
mod launch;
mod links;
pub mod message;
mod names;
mod network;
mod os;
mod plan;
mod process;
mod programs;
mod rlimits;
mod rooted;
mod seccomp;
mod spec;
mod step;
mod sys;
mod view;
mod volumes;
mod wire;

pub use ahead::{Prepared, prepare};
pub use caps::{CapabilitySet, UnknownCapability};
pub use cgroup::{Cgroup, LimitError, Usage, cleanup};
pub use closed::OwnNetwork;
pub use entrance::Entrance;
pub use error::LaunchError;
pub use facts::{EntryKind, FactsError, HostFacts, RootEntry};
pub use hidden::Hidden;
pub use ids::{Caller, IdMaps, User, UserError, parse_map, resolve_user};
pub use job::{Ending, Exit, Job, Program};
pub use launch::{Stdio, init_main, launch, this_thread_stays};
pub use names::is_host_name;
pub use network::PRIVATE_DNS;
pub use plan::{Plan, PlanError, plan};
pub use process::{ExecSpec, Process};
pub use rlimits::UnknownResource;
pub use rooted::open_in;
pub use seccomp::{Profile, ProfileError};
pub use spec::{
    Capabilities, Device, GeneratedFile, IdMapping, IdRange, IoLimit, Limits, Mount, Namespace,
    Namespaces, Network, PortForward, Protocol, Rlimit, Seccomp, Spec,
};
pub use step::{Flags, Step};
pub use view::{HostView, Root, Shown, ShownKind};
