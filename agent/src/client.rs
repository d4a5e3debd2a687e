//! The other side of a supervisor: starting one, and acting on a job from any command.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::control::Size;
use crate::events;
use crate::files::{FileError, Lock};
use crate::handover::Handover;
use crate::logs::{self, Entry};
use crate::report::{Report, Reports};
use crate::state::JobDir;
use crate::status::Status;
use crate::supervisor::Invocation;
use crate::sys;

/// The word that makes the binary a supervisor; the command line hands it to [`crate::supervise`].
pub const SUPERVISE: &str = "supervise-job";

/// How a job's streams are connected to the command that starts it.
#[derive(Debug)]
pub struct Attach {
    /// What the job reads, or what is typed at its terminal; without it, it reads end of file.
    pub stdin: Option<OwnedFd>,
    /// Output goes to the command's standard output and error as well as to the log; a terminal gets this size.
    pub output: Option<Size>,
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

/// How a supervisor comes to be.
pub enum Supervisor<'a> {
    /// From the binary that calls [`crate::supervise`] for the word [`SUPERVISE`].
    Program(&'a Path),
    /// As a copy of this process, which hands the invocation to [`crate::supervise`]. Quicker, where [`may_fork`] says so.
    Fork(&'a dyn Fn(Invocation)),
}

/// Whether a copy of this process can run any code: it has one thread, and has made no runtime, whose drivers outlive it.
pub fn may_fork() -> bool {
    !mica_fetcher::made_a_runtime() && sys::has_one_thread()
}

/// Signals are held back while this lives: a supervisor that is forked meanwhile inherits no handler of the caller's, and
/// takes signals when it has its own.
#[derive(Debug)]
pub struct HeldSignals(());

impl HeldSignals {
    /// Holds them back from the calling thread.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        sys::hold_signals(true);
        Self(())
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        sys::hold_signals(false);
    }
}

/// A job whose supervisor has been started.
#[derive(Debug)]
pub struct StartedJob {
    job: JobDir,
    reports: Reports,
}

/// Starts the supervisor of `job`, which goes on without the calling process, and hands it the job's `lock`.
pub fn start(
    supervisor: Supervisor<'_>,
    job: JobDir,
    lock: Lock,
    attach: Attach,
) -> Result<StartedJob, StartError> {
    let reports = match supervisor {
        Supervisor::Program(program) => spawn(program, &job, lock, attach),
        Supervisor::Fork(work) => fork(work, job.clone(), lock, attach),
    };
    Ok(StartedJob { job, reports: reports.map_err(StartError::Spawn)? })
}

/// A copy of this process with nothing open but what the supervisor needs.
fn fork(work: &dyn Fn(Invocation), job: JobDir, lock: Lock, attach: Attach) -> io::Result<Reports> {
    let (ours, pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let null = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
    sys::fork(move || {
        let keep = [lock.file().as_raw_fd(), pipe.as_raw_fd()];
        let placed = rustix::stdio::dup2_stdin(attach.stdin.as_ref().unwrap_or(&null))
            .and_then(|()| match attach.output {
                Some(_) => Ok(()),
                None => rustix::stdio::dup2_stdout(&null)
                    .and_then(|()| rustix::stdio::dup2_stderr(&null)),
            })
            .map_err(io::Error::from)
            .and_then(|()| sys::close_all_but(&keep));
        // Closed just now.
        std::mem::forget((attach.stdin, null));
        if placed.is_err() {
            return 1;
        }
        let words = [b"mica", SUPERVISE.as_bytes(), job.path().as_os_str().as_bytes(), b""];
        if let Err(error) = sys::set_command_line(words.join(&0)) {
            tracing::debug!(%error, "the supervisor has the command line of its starter");
        }
        let handover = Handover { lock, pipe };
        work(Invocation { job, handover, attached: attach.output });
        0
    })?;
    Ok(Reports::new(ours))
}

fn spawn(program: &Path, job: &JobDir, lock: Lock, attach: Attach) -> io::Result<Reports> {
    let stream = |wanted: bool| if wanted { Stdio::inherit() } else { Stdio::null() };
    let mut command = Command::new(program);
    command
        .arg(SUPERVISE)
        .stdin(attach.stdin.map_or_else(Stdio::null, Stdio::from))
        .stdout(stream(attach.output.is_some()))
        .stderr(stream(attach.output.is_some()));
    let last = attach.output.map_or_else(
        || "detached".to_owned(),
        |Size { rows, columns }| format!("{rows}x{columns}"),
    );
    hand_over(command, job.path(), lock, &[&last])
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

/// Hands every entry of the newest `files` of the job's log to `each`, those yet to come included, until the job has ended.
pub fn follow(
    job: &JobDir,
    files: usize,
    mut each: impl FnMut(Entry) -> io::Result<()>,
) -> Result<(), FollowError> {
    let path = job.path();
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|error| FollowError::Watch(error.into()))?;
    inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO)
        .map_err(|error| FollowError::Watch(error.into()))?;
    let supervisor = job.status()?.and_then(|status| Pid::from_raw(status.supervisor));
    let supervisor = supervisor.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let mut reader = logs::reader(path).newest(files);
    loop {
        // Asked first: what is in the log once the job has ended is all there will be.
        let ended = job.status()?.is_none_or(|status| status.is_final()) || !job.is_owned();
        reader.each_new(|entry| each(entry).map_err(FollowError::Output))?;
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
pub fn remove(job: &JobDir) -> Result<(), RemoveError> {
    job.mend_lock()?;
    let Some(lock) = job.lock_ended()? else {
        // One that was to be removed at its end has done so itself.
        return if job.path().exists() {
            Err(RemoveError::Running(job.id().to_owned()))
        } else {
            Ok(())
        };
    };
    if let Ok(config) = job.config() {
        events::record(job, &config, "destroy", &[]);
    }
    let left = job.status().ok().flatten().and_then(|status| status.cgroup);
    if left.is_some_and(|group| !mica_launcher::cleanup(&group)) {
        return Err(RemoveError::Stuck(job.id().to_owned()));
    }
    Ok(job.remove(&lock)?)
}

/// Becomes readable when the supervisor has something to say, or is gone.
impl AsFd for StartedJob {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reports.as_fd()
    }
}

/// A job that cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Its supervisor is there.
    #[error("job {0} is running")]
    Running(String),
    /// A process of it can't be killed.
    #[error("a process of job {0} hangs in the kernel and can't be killed")]
    Stuck(String),
    /// Its folder cannot be removed.
    #[error(transparent)]
    File(#[from] FileError),
}
