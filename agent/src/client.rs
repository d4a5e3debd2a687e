//! The other side of a supervisor: starting one, and acting on a job from any command.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::files::{FileError, Lock};
use crate::logs::{Entry, LogReader};
use crate::report::{Report, Reports};
use crate::state::{JobDir, Phase, Status};

/// The word that makes the binary a supervisor; the command line hands it to [`crate::supervise`].
pub const SUPERVISE: &str = "supervise-job";

/// How a job's streams are connected to the command that starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The job reads the command's standard input; else it reads end of file.
    pub stdin: bool,
    /// Output goes to the command's standard output and error as well as to the log.
    pub output: bool,
}

/// A supervisor that could not be started or was lost.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such program, no memory, too many processes.
    #[error("cannot start the job's supervisor")]
    Spawn(#[source] io::Error),
    /// The pipe broke.
    #[error("cannot hear from the job's supervisor")]
    Report(#[source] io::Error),
    /// A mount's server was killed.
    #[error("the server of the mount was killed")]
    MountDied,
    /// It was killed.
    #[error("the supervisor of job {0} was killed, and the job with it")]
    Died(String),
}

/// A job whose supervisor has been started.
#[derive(Debug)]
pub struct StartedJob {
    job: JobDir,
    reports: Reports,
}

/// Starts the supervisor of `job`, which goes on without the calling process, and hands it the job's `lock`.
///
/// `program` is the binary that calls [`crate::supervise`] for the word [`SUPERVISE`].
pub fn start(
    program: &Path,
    job: JobDir,
    lock: Lock,
    attach: Attach,
) -> Result<StartedJob, StartError> {
    let stream = |wanted: bool| if wanted { Stdio::inherit() } else { Stdio::null() };
    let mut command = Command::new(program);
    command
        .arg(SUPERVISE)
        .stdin(stream(attach.stdin))
        .stdout(stream(attach.output))
        .stderr(stream(attach.output));
    let last = if attach.output { "attached" } else { "detached" };
    let reports = hand_over(command, job.path(), lock, &[last]).map_err(StartError::Spawn)?;
    Ok(StartedJob { job, reports })
}

/// Spawns a process of ours that takes over a folder with its lock, and returns the pipe it reports to. Its command
/// line goes on with the folder, the numbers of the two descriptors, and `last`.
pub(crate) fn hand_over(
    mut command: Command,
    folder: &Path,
    lock: Lock,
    last: &[&str],
) -> io::Result<Reports> {
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (pipe, lock_copy) = (inheritable(&theirs)?, inheritable(lock.file())?);
    let numbers = [&lock_copy, &pipe].map(|fd| fd.as_raw_fd().to_string());
    command.arg(folder).args(numbers).args(last).spawn()?;
    Ok(Reports::new(ours))
}

/// A copy of a descriptor that a child process keeps, above the three standard ones.
fn inheritable(fd: impl AsFd) -> io::Result<OwnedFd> {
    let copy = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
    rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty())?;
    Ok(copy)
}

impl StartedJob {
    /// The job's folder.
    pub fn job(&self) -> &JobDir {
        &self.job
    }

    /// Waits until the program runs, or has failed to.
    pub fn wait_started(&mut self) -> Result<Status, StartError> {
        match self.reports.next().map_err(StartError::Report)? {
            Some(Report::Started(status) | Report::Ended(status)) => Ok(status),
            None => Err(StartError::Died(self.job.id().to_owned())),
        }
    }

    /// Waits until the job has ended and nothing of it is left.
    pub fn wait_ended(&mut self) -> Result<Status, StartError> {
        loop {
            let status = self.wait_started()?;
            if status.is_final() {
                return Ok(status);
            }
        }
    }
}

/// A job that cannot be signalled.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// It has ended, or has not begun.
    #[error("job {0} is not running")]
    NotRunning(String),
    /// The kernel refused.
    #[error("cannot send signal {signal} to job {id}")]
    Kernel {
        /// The job.
        id: String,
        /// The signal's number.
        signal: i32,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Not a signal.
    #[error("{0} is not a signal")]
    NotASignal(i32),
    /// The job's record cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Sends `signal` to the job's init, which passes it on to the program.
pub fn signal(job: &JobDir, signal: i32) -> Result<(), SignalError> {
    let number = Signal::from_named_raw(signal).ok_or(SignalError::NotASignal(signal))?;
    let not_running = || SignalError::NotRunning(job.id().to_owned());
    let status =
        job.status()?.filter(|status| status.phase == Phase::Running).ok_or_else(not_running)?;
    let pid = status.pid.and_then(Pid::from_raw).ok_or_else(not_running)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| not_running())?;
    // Still owned after the descriptor was had: so the process it names is the job's, not a later one.
    if !job.is_owned() {
        return Err(not_running());
    }
    pidfd_send_signal(&pidfd, number).map_err(|source| SignalError::Kernel {
        id: job.id().to_owned(),
        signal,
        source,
    })
}

/// Asks the job to end, and makes it after `timeout`; returns when nothing of it is left.
pub fn stop(job: &JobDir, stop_signal: i32, timeout: Duration) -> Result<(), SignalError> {
    signal(job, stop_signal)?;
    if !wait_released_for(job, timeout)? {
        match signal(job, Signal::KILL.as_raw()) {
            Ok(()) | Err(SignalError::NotRunning(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(job.wait_until_released()?)
}

/// Waits for the supervisor's end, at most `timeout`; says whether it came.
fn wait_released_for(job: &JobDir, timeout: Duration) -> Result<bool, FileError> {
    let deadline = Instant::now() + timeout;
    let Some(supervisor) = job.status()?.and_then(|status| Pid::from_raw(status.supervisor)) else {
        return Ok(!job.is_owned());
    };
    let Ok(pidfd) = pidfd_open(supervisor, PidfdFlags::empty()) else { return Ok(true) };
    loop {
        if !job.is_owned() {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timespec =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        // Interrupted or in time: the loop looks again.
        if poll(&mut fds, Some(&timespec)).is_ok_and(|ready| ready > 0) {
            return Ok(true);
        }
    }
}

/// Hands every entry of the job's log to `each`, those yet to come included, until the job has ended.
pub fn follow(
    job: &JobDir,
    mut each: impl FnMut(Entry) -> io::Result<()>,
) -> Result<(), FollowError> {
    let path = job.path();
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|error| FollowError::Watch(error.into()))?;
    inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO)
        .map_err(|error| FollowError::Watch(error.into()))?;
    let supervisor = job.status()?.and_then(|status| Pid::from_raw(status.supervisor));
    let supervisor = supervisor.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let mut reader = LogReader::new(path);
    loop {
        // Asked first: what is in the log once the job has ended is all there will be.
        let ended = job.status()?.is_none_or(|status| status.is_final()) || !job.is_owned();
        for entry in reader.read_new()? {
            each(entry).map_err(FollowError::Output)?;
        }
        let Some(supervisor) = supervisor.as_ref().filter(|_| !ended) else { return Ok(()) };
        let mut fds = [PollFd::new(&watch, PollFlags::IN), PollFd::new(supervisor, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(FollowError::Watch(error.into())),
        }
        let mut events = [0_u8; 4096];
        while rustix::io::read(&watch, &mut events).is_ok_and(|count| count > 0) {}
    }
}

/// A log that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// No inotify.
    #[error("cannot watch the job's log")]
    Watch(#[source] io::Error),
    /// The receiver of the entries failed.
    #[error("cannot pass on the job's log")]
    Output(#[source] io::Error),
    /// The job's record cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Removes an ended job's folder.
pub fn remove(job: &JobDir) -> Result<(), SignalError> {
    match job.try_lock()? {
        Some(lock) => Ok(job.remove(&lock)?),
        None => Err(SignalError::NotRunning(job.id().to_owned())),
    }
}
