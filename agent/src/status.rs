//! What became of a job: its `status.json`.

use mica_launcher::bridge::Link;
use mica_launcher::{Cgroup, Usage};
use serde::{Deserialize, Serialize};

/// How far a job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The supervisor mounts the stack or prepares the namespaces.
    Starting,
    /// The program runs.
    Running,
    /// Its processes are stopped where they are.
    Paused,
    /// The program ended and will be started again.
    Restarting,
    /// The program ended.
    Exited,
    /// The program could not be started, or its supervisor died.
    Failed,
}

/// What became of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// How far it has come.
    pub phase: Phase,
    /// Process id of the supervisor.
    pub supervisor: i32,
    /// The kernel's id of the boot in which this was written: process ids mean nothing in another.
    #[serde(default)]
    pub boot: String,
    /// Process id of the job's init, as the host sees it.
    pub pid: Option<i32>,
    /// The job's control group, to be emptied and removed if the supervisor can't.
    pub cgroup: Option<Cgroup>,
    /// The exit code a shell would show; 125-127 if it never ran.
    pub exit_code: Option<i32>,
    /// Killed for its memory limit.
    #[serde(default)]
    pub oom_killed: bool,
    /// What the job used, once it has ended.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// Why it could not be started.
    pub error: Option<Failure>,
    /// What was asked for and could not be had.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// When the program started, in milliseconds since 1970.
    pub started_ms: Option<i64>,
    /// When it ended.
    pub finished_ms: Option<i64>,
    /// How often it was started again.
    #[serde(default)]
    pub restarts: u32,
    /// How long it waits before it is started once more, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_delay_ms: Option<u64>,
    /// Who ended it, or wants it to end; earlier versions don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StoppedBy>,
    /// How it is connected with its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// How its last health checks went, if it has any.
    #[serde(default)]
    pub health: Option<Health>,
    /// How long each part of the start took.
    #[serde(default)]
    pub timings: Timings,
}

impl Status {
    pub(crate) fn starting() -> Self {
        Self {
            phase: Phase::Starting,
            supervisor: rustix::process::getpid().as_raw_nonzero().get(),
            boot: boot_id(),
            pid: None,
            cgroup: None,
            exit_code: None,
            oom_killed: false,
            usage: None,
            error: None,
            warnings: Vec::new(),
            started_ms: None,
            finished_ms: None,
            restarts: 0,
            next_delay_ms: None,
            stopped: None,
            link: None,
            health: None,
            timings: Timings::default(),
        }
    }

    /// Whether the job has ended, one way or the other.
    pub fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Exited | Phase::Failed)
    }
}

/// Who wants a job to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoppedBy {
    /// It ended by itself or with its supervisor, as when the machine is shut down.
    Nobody,
    /// A command.
    Person,
}

/// Microseconds since the supervisor started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Until the stack was mounted.
    pub mounted_us: Option<u64>,
    /// Until the program was started.
    pub started_us: Option<u64>,
    /// Until the program's first output.
    pub first_output_us: Option<u64>,
}

/// An error, in the form it crosses a process boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The error and its causes, outermost first.
    pub chain: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The exit code it deserves: 125, 126 or 127.
    pub exit_code: i32,
}

impl Failure {
    /// The error with its causes.
    pub(crate) fn new(error: &dyn std::error::Error, hint: Option<String>, exit_code: i32) -> Self {
        let mut chain: Vec<String> = std::iter::successors(Some(error), |error| error.source())
            .map(ToString::to_string)
            .collect();
        chain.dedup(); // a transparent wrapper says the same as what it wraps
        Self { chain, hint, exit_code }
    }
}

/// The answer to a request that a job can't be asked now.
pub(crate) fn not_running() -> Failure {
    refusal("it is not running at the moment", None)
}

/// The answer to a request that can't be met.
pub(crate) fn refusal(text: &str, hint: Option<&str>) -> Failure {
    Failure { chain: vec![text.to_owned()], hint: hint.map(Into::into), exit_code: 125 }
}

/// Where the kernel says which boot this is (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel's id of this boot; empty where it tells none.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

/// How a job's health checks went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What they say.
    pub state: HealthState,
    /// Failures since the last success.
    pub failing_streak: u32,
    /// What the last check printed.
    pub output: String,
}

/// What health checks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Nothing yet.
    #[default]
    Starting,
    /// The last one succeeded.
    Healthy,
    /// Too many failed in a row.
    Unhealthy,
}
