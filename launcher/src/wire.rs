//! What the launcher and a job's init say to each other.
//!
//! Two kinds of sockets (see [`crate::message`]):
//!
//! - *control*, one per job, from the launcher to the init: [`Command`]s. Its end of file ends the job.
//! - *report*, one per program (the job's own and each later one), from the init to the launcher: [`Report`]s.

use serde::{Deserialize, Serialize};

use crate::ids::IdMaps;
pub(crate) use crate::message::{
    Message, from_memory, pair, receive, report_pair, send, to_memory,
};
use crate::plan::Plan;
use crate::process::Process;
use crate::step::Step;

/// The init's `argv[0]`; what follows are descriptor numbers.
pub(crate) const INIT_NAME: &str = "mica-job-init";

/// What the init is started with, in a memory file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) steps: Vec<Step>,
    pub(crate) process: Process,
    pub(crate) stdio: Streams,
    /// The job has its own process namespace, so its end is the end of all its processes.
    pub(crate) own_pids: bool,
    /// The launcher hands over all that is to be mounted, not just what takes its rights.
    pub(crate) handed_over: bool,
    /// The maps of the job's user namespace, for the launcher's own use.
    #[serde(skip)]
    pub(crate) ids: Option<IdMaps>,
    /// Kill the init when the thread that started it ends.
    pub(crate) die_with_parent: bool,
}

impl Start {
    pub(crate) fn new(plan: &Plan, stdio: Streams, own_pids: bool) -> Self {
        Self {
            steps: plan.steps.clone(),
            process: plan.process.clone(),
            stdio,
            own_pids,
            handed_over: plan.hands_over,
            ids: plan.ids.clone(),
            // The kernel means the thread, not the process: where a thread calls that may end, the control socket alone
            // has to tell the init that we are gone. So it has to where the init must live on to kill what it started.
            die_with_parent: own_pids && crate::launch::thread_stays(),
        }
    }
}

/// The standard streams of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Streams {
    /// Three descriptors are passed.
    Given,
    /// A new terminal; its other end is reported.
    Terminal { rows: u16, columns: u16 },
}

/// From the launcher to the init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// To an init that was started ahead, before anything else. Descriptors: [`Start`] in a memory file, three streams if given.
    Begin,
    /// Here is a mount for the next step that needs one; before anything else.
    Mount,
    /// Start a further program, to be called by this number. Descriptors: the [`Process`] in a memory file, its report
    /// socket, three streams if given.
    Exec(Streams, u64),
    /// Kill that program and all that it started, as far as it can be told by sessions and parents.
    End(u64),
    /// Send a signal to the job's own program.
    Signal(i32),
    /// Stop all processes of the job but the init, or let them go on.
    Freeze(bool),
}

/// From the init to the launcher, about one program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Sent by the program's own process before the exec, so that the kernel tells the launcher its pid.
    Born,
    /// The other end of its terminal, as a descriptor.
    Terminal,
    /// Something the caller should know.
    Warning(String),
    /// The program runs.
    Started,
    /// The program doesn't run.
    Failed(Failure),
    /// It ended by itself.
    Exited(i32),
    /// A signal ended it.
    Killed(i32),
}

/// Why a program doesn't run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What could not be done, after "cannot".
    pub(crate) what: String,
    pub(crate) errno: i32,
    /// It was the exec itself.
    pub(crate) exec: bool,
}
