//! The process that serves a job's mount and waits for its end.
//!
//! It is the same binary, started by the hidden word [`crate::SUPERVISE`], and lives outside the job's
//! namespaces and control group:
//!
//! ```text
//! take over lock and pipe -> own session, own mount namespace -> mount the stack (threads start here)
//!   -> launch -> report "started" -> pass output on -> wait -> unmount -> record -> report "ended" -> release lock
//! ```
//!
//! Whatever fails on the way is recorded in `status.json` and reported, so nobody has to read a log to learn why.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mica_fetcher::CacheError;
use mica_launcher::{Job, LaunchError, Stdio, launch};
use mica_mounter::{Mount, MountError};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
use signal_hook::iterator::Signals;

use crate::files::FileError;
use crate::handover::Handover;
use crate::namespace::{self, NamespaceError};
use crate::output::Output;
use crate::report::{Report, Reporter};
use crate::stack::{self, StackError};
use crate::state::{Failure, JobConfig, JobDir, Phase, Status, now_ms};

/// Why a job did not start.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Its folder cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nowhere to mount.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The cache has not what the job needs.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An image cannot be opened.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The stack cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The program cannot be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// No pipes, no signals.
    #[error("cannot prepare the job's streams")]
    Streams(#[source] io::Error),
}

impl SuperviseError {
    /// The error that this one passes on as it is.
    pub fn inner(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Self::File(error) => error,
            Self::Namespace(error) => error,
            Self::Cache(error) => error,
            Self::Stack(error) => error,
            Self::Mount(error) => error,
            Self::Launch(error) => error,
            Self::Streams(_) => self,
        }
    }
}

/// The command line of a supervisor, written by [`crate::start`]; `None` if a person typed the word.
#[derive(Debug)]
pub struct Invocation {
    job: JobDir,
    handover: Handover,
    attached: bool,
}

impl Invocation {
    /// Takes over what the starting command left open.
    pub fn parse(words: &[OsString]) -> Option<Self> {
        let [dir, lock, pipe, attached] = words else { return None };
        let handover = Handover::adopt(lock, pipe)?;
        let attached = attached == "attached";
        Some(Self { job: JobDir::at(PathBuf::from(dir)), handover, attached })
    }

    /// Where the supervisor's own log belongs.
    pub fn log_path(&self) -> PathBuf {
        self.job.path().join("supervisor.log")
    }
}

/// Runs a job to its end. `hint` says what a person could do about an error.
///
/// The process must have one thread.
pub fn supervise(invocation: Invocation, hint: impl Fn(&SuperviseError) -> Option<String>) {
    let since = Instant::now();
    let Invocation { job, handover: Handover { lock, pipe }, attached } = invocation;
    let mut reporter = Reporter::new(pipe);
    let mut status = Status::starting();
    let mut supervisor = Supervisor { job: &job, status: &mut status, since, attached };
    let result = supervisor.run(&mut reporter);
    let ran = result.is_ok();
    if let Err(error) = &result {
        tracing::error!(error = error as &dyn std::error::Error, "the job failed");
        status.phase = Phase::Failed;
        let failure = Failure::new(error, hint(error), exit_code(error));
        status.exit_code = Some(failure.exit_code);
        status.error = Some(failure);
    }
    status.finished_ms = Some(now_ms());
    if let Err(error) = job.write_status(&status) {
        tracing::error!(%error, "cannot record how the job ended");
    }
    // What never ran is of no interest once its error has been told.
    let remove = !ran || job.config().is_ok_and(|config| config.remove);
    if remove && let Err(error) = job.remove(&lock) {
        tracing::error!(%error, "cannot remove the job's folder");
    }
    drop(lock);
    reporter.send(&Report::Ended(status));
}

fn exit_code(error: &SuperviseError) -> i32 {
    match error {
        SuperviseError::Launch(error) => error.exit_code().into(),
        _ => 125,
    }
}

struct Supervisor<'a> {
    job: &'a JobDir,
    status: &'a mut Status,
    since: Instant,
    attached: bool,
}

impl Supervisor<'_> {
    fn run(&mut self, reporter: &mut Reporter) -> Result<(), SuperviseError> {
        self.job.write_status(self.status)?;
        let config = self.job.config()?;
        // Its own session: what the terminal sends to the command is the command's to pass on.
        let _ = rustix::process::setsid();
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(SuperviseError::Streams)?;
        namespace::enter()?;
        let _lease = stack::lease(config.cache.as_deref(), &config.layers)?;
        let mount = self.mount(&config)?;
        self.status.timings.mounted_us = Some(self.elapsed_us());
        let ended = self.launch(&config, signals, reporter);
        if let Err(error) = mount.unmount() {
            // The mount is gone with this process and its namespace in any case.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot unmount the stack");
        }
        ended
    }

    fn mount(&self, config: &JobConfig) -> Result<Mount, SuperviseError> {
        let mut options = stack::options(config.upper.as_ref());
        if let Some(upper) = &mut options.upper {
            upper.volatile = true;
            upper.thrown_away = config.remove && upper.upper.starts_with(self.job.path());
        }
        let stack = stack::open(&config.layers, config.verify)?;
        Ok(mica_mounter::mount(stack, &self.job.tree(), &options)?)
    }

    fn launch(
        &mut self,
        config: &JobConfig,
        signals: Signals,
        reporter: &mut Reporter,
    ) -> Result<(), SuperviseError> {
        let (stdio, stdout, stderr) = streams().map_err(SuperviseError::Streams)?;
        let command = self.attached.then(|| reporter.pipe()).flatten();
        let output = Output::start(self.job, stdout, stderr, command, self.since)?;
        let mut job = launch(&config.spec, stdio)?;
        self.status.phase = Phase::Running;
        self.status.pid = Some(job.pid().as_raw_nonzero().get());
        self.status.cgroup = Some(job.cgroup().clone());
        self.status.warnings = job.warnings().to_vec();
        self.status.started_ms = Some(now_ms());
        self.status.timings.started_us = Some(self.elapsed_us());
        self.job.write_status(self.status)?;
        reporter.send(&Report::Started(self.status.clone()));
        let ended = wait(&mut job, config, signals).map_err(SuperviseError::Streams)?;
        let first = output.finish();
        self.status.timings.first_output_us = first.map(as_us);
        self.status.phase = Phase::Exited;
        self.status.exit_code = Some(ended.code());
        self.status.oom_killed = ended.oom_killed;
        self.status.usage = Some(ended.usage);
        Ok(())
    }

    fn elapsed_us(&self) -> u64 {
        as_us(self.since.elapsed())
    }
}

fn as_us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The job's streams: our own standard input (which is what the command chose), and pipes to us.
fn streams() -> io::Result<(Stdio, OwnedFd, OwnedFd)> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let ((our_out, stdout), (our_err, stderr)) = (pipe()?, pipe()?);
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    Ok((Stdio::Streams { stdin, stdout, stderr }, our_out, our_err))
}

/// Waits for the job's end. A signal to the supervisor is a wish to end: the job gets its stop signal, and after
/// its time SIGKILL.
fn wait(
    job: &mut Job,
    config: &JobConfig,
    mut signals: Signals,
) -> io::Result<mica_launcher::Exit> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut deadline: Option<Instant> = None;
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let pidfd = job.pidfd();
        let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref());
        match ready {
            Ok(0) => {
                job.kill()?;
                deadline = None;
            }
            Ok(_) => return job.wait(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if signals.pending().next().is_some() && deadline.is_none() {
            deadline = Some(Instant::now() + Duration::from_secs(config.stop_timeout));
            let signal = if config.stop_timeout == 0 { SIGKILL } else { config.stop_signal };
            // It may have ended meanwhile; the next round sees it.
            let _ = job.signal(signal);
        }
    }
}
