//! What was asked for: `config.json` of a job.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use mica_fetcher::registry::Source;
use mica_graph::{Digest, PackageName, Version};
use mica_launcher::Spec;
use mica_mounter::Verify;
use serde::{Deserialize, Serialize};

use crate::networks::Attachment;
use crate::stack::TraceFile;

/// What a job runs on and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobConfig {
    /// The name given by the user, unique among the jobs.
    pub name: Option<String>,
    /// What it runs on.
    #[serde(flatten)]
    pub stack: StackConfig,
    /// Further stacks that it sees; one bind of `spec.mounts` for each shows [`crate::JobDir::image_tree`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageMount>,
    /// The confined process; its root is filled in by the supervisor once the stack is mounted.
    pub spec: Spec,
    /// Remove the job's folder when it ends.
    pub remove: bool,
    /// Signal that asks the job to end.
    pub stop_signal: i32,
    /// Seconds it then has.
    pub stop_timeout: u64,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// It has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Its standard input stays open for commands that attach, even if none is there.
    #[serde(default)]
    pub open_stdin: bool,
    /// What to do when its program ends.
    #[serde(default)]
    pub restart: Restart,
    /// How to find out whether it works.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// The bridge network it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Attachment>,
    /// Where what it prints is kept.
    #[serde(default)]
    pub log: LogConfig,
}

/// Where a job's output is kept, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// What keeps it.
    pub driver: LogDriver,
    /// Bytes of one file.
    pub max_size: u64,
    /// Files, the one that is written included.
    pub max_file: u32,
}

impl Default for LogConfig {
    /// As much as docker's compact driver keeps.
    fn default() -> Self {
        Self { driver: LogDriver::JsonFile, max_size: 20 << 20, max_file: 5 }
    }
}

/// What keeps a job's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// Files in the job's folder, for `mica logs`.
    #[default]
    JsonFile,
    /// The host's journal.
    Journald,
    /// Nothing.
    None,
}

/// A stack to mount.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StackConfig {
    /// What was asked for, as people write it: `A@953bc…` or the image file.
    pub source: String,
    /// The manifest of the package that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<mica_graph::Digest>,
    /// The stack, topmost first.
    pub layers: Vec<JobLayer>,
    /// The writable layer; `None` mounts the stack read-only.
    pub upper: Option<UpperDirs>,
    /// The cache whose images must not be removed while it is mounted.
    pub cache: Option<PathBuf>,
    /// The cache below it, which is only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_cache: Option<PathBuf>,
    /// When what is read from the images is verified.
    #[serde(default)]
    pub verify: Verify,
    /// Where the order of first reads is recorded, or was.
    #[serde(default)]
    pub trace: Option<TraceFile>,
    /// Whence images come that are not all here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy: Option<LazySource>,
}

/// A stack beside the job's own, mounted in the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageMount {
    /// What is mounted.
    #[serde(flatten)]
    pub stack: StackConfig,
    /// Where the job sees it.
    pub target: PathBuf,
    /// The file or folder of the stack that it sees there; `None`: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<PathBuf>,
}

/// One image of a job's stack.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobLayer {
    /// The module's label or the file's name, for messages.
    pub name: String,
    /// The image file. Where there is none, the image is in the stack's cache in another form, or comes there.
    pub path: PathBuf,
    /// Its digest, where it came from a registry.
    pub digest: Option<Digest>,
    /// Its chunk table, where there is one: what it holds is verified when it is read.
    #[serde(default)]
    pub chunks: Option<PathBuf>,
    /// The table's digest, as the package's manifest gives it: what is in the file counts only if it has that.
    #[serde(default)]
    pub table: Option<Digest>,
    /// Whether the image lies where another account can change it: then it is verified at every read, whatever was asked for.
    #[serde(default)]
    pub foreign: bool,
}

/// A package whose images are fetched while they are used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LazySource {
    /// Its registry.
    pub registry: Source,
    /// The package, whose manifest and chunk tables are in the cache.
    pub name: PackageName,
    /// Its version.
    pub version: Version,
    /// Seconds that a reader waits for what is missing.
    pub deadline: u64,
}

/// Where a writable layer lives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpperDirs {
    /// What was written.
    pub upper: PathBuf,
    /// Scratch on the same file system.
    pub work: PathBuf,
}

/// What to do when a job's program ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Restart {
    /// Nothing.
    #[default]
    No,
    /// Start it again if it failed, at most so many times.
    OnFailure(Option<u32>),
    /// Start it again, until it is stopped.
    Always,
    /// The same; a job that was stopped isn't started with the machine either.
    UnlessStopped,
}

/// Not a restart policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a restart policy; use no, on-failure[:N], always or unless-stopped")]
pub struct UnknownRestart(String);

impl FromStr for Restart {
    type Err = UnknownRestart;

    fn from_str(text: &str) -> Result<Self, UnknownRestart> {
        Ok(match text.split_once(':').unwrap_or((text, "")) {
            ("no" | "", "") => Self::No,
            ("always", "") => Self::Always,
            ("unless-stopped", "") => Self::UnlessStopped,
            ("on-failure", "") => Self::OnFailure(None),
            ("on-failure", count) => {
                Self::OnFailure(Some(count.parse().map_err(|_| UnknownRestart(text.to_owned()))?))
            }
            _ => return Err(UnknownRestart(text.to_owned())),
        })
    }
}

impl TryFrom<String> for Restart {
    type Error = UnknownRestart;

    fn try_from(text: String) -> Result<Self, UnknownRestart> {
        text.parse()
    }
}

impl From<Restart> for String {
    fn from(restart: Restart) -> Self {
        restart.to_string()
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure(None) => f.write_str("on-failure"),
            Self::OnFailure(Some(count)) => write!(f, "on-failure:{count}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl Restart {
    /// Whether a job that ended with `code`, after so many restarts, is started again.
    pub(crate) fn again(self, code: i32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => code != 0 && most.is_none_or(|most| restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

/// A command that is run in the job now and then: the job is healthy while it exits with 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// From the end of one check to the next, in milliseconds.
    pub interval_ms: u64,
    /// A check that takes longer has failed, in milliseconds.
    pub timeout_ms: u64,
    /// Failures don't count so soon after the start, in milliseconds.
    pub start_period_ms: u64,
    /// So many failures in a row make the job unhealthy.
    pub retries: u32,
}

#[cfg(test)]
pub(crate) mod tests {
    use mica_launcher::Root;

    use super::*;

    /// Of a job that runs nothing.
    pub(crate) fn config(restart: Restart) -> JobConfig {
        JobConfig {
            name: None,
            stack: StackConfig::default(),
            images: Vec::new(),
            spec: Spec::new("0123", Root::Tree("/tree".into()), ["true"]),
            remove: false,
            stop_signal: 15,
            stop_timeout: 10,
            labels: BTreeMap::new(),
            created_ms: 0,
            terminal: false,
            open_stdin: false,
            restart,
            health: None,
            network: None,
            log: LogConfig::default(),
        }
    }

    #[test]
    fn restart_policies() {
        for text in ["no", "always", "unless-stopped", "on-failure", "on-failure:3"] {
            assert_eq!(text.parse::<Restart>().unwrap().to_string(), text);
        }
        for text in ["never", "always:2", "on-failure:x"] {
            assert!(text.parse::<Restart>().is_err(), "{text}");
        }
        assert!(Restart::OnFailure(Some(2)).again(1, 1));
        assert!(!Restart::OnFailure(Some(2)).again(1, 2));
        assert!(!Restart::OnFailure(None).again(0, 0));
        assert!(Restart::Always.again(0, 100));
    }
}
