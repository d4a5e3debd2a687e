//! The process that serves a job's mount and waits for its end.
//!
//! It is the same binary, started by the hidden word [`crate::SUPERVISE`], or a copy of the process that starts the job;
//! and it lives outside the job's namespaces and control group:
//!
//! ```text
//! take over lock and pipe -> own session, own mount namespace -> start the job's init -> mount the stack (threads start here)
//!   -> launch -> report "started" -> pass output on, serve requests -> wait -> (once more, if its restart policy says so)
//!   -> unmount -> record, or take the job's folder away -> release lock -> report "ended"
//! ```
//!
//! Whatever fails on the way is recorded in `status.json` and reported, so nobody has to read a log to learn why.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mica_launcher::{Exit, Job, LaunchError, Stdio, launch};
use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::consts::signal::SIGKILL;

use crate::config::JobConfig;
use crate::control::Size;
use crate::events;
use crate::files::FileError;
use crate::forced;
use crate::handover::Handover;
use crate::health::Monitor;
use crate::images::ImageError;
use crate::job::JobDir;
use crate::logs::{LogWriter, Stream};
use crate::namespace::{self, NamespaceError};
use crate::networks::{Attached, NetworkError};
use crate::output::Output;
use crate::report::{Report, Reporter};
use crate::session::{Session, Wishes};
use crate::sinks::STARTER;
use crate::stack::MountStackError;
use crate::state::now_ms;
use crate::status::{Failure, Phase, Status};
use crate::steps::Interrupted;
use crate::surroundings::Surroundings;
use crate::sys;
use crate::task::{Task, Worker};

/// Why a job did not start.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Its folder cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nowhere to mount.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Its stack cannot be mounted.
    #[error(transparent)]
    Stack(#[from] MountStackError),
    /// A further stack cannot be mounted.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its network cannot be joined.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The program cannot be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// No pipes, no signals.
    #[error("cannot prepare the job's streams")]
    Streams(#[source] io::Error),
    /// No more threads.
    #[error("cannot start the threads of the job's supervisor")]
    Thread(#[source] io::Error),
    /// Somebody wanted it to end first, by this signal.
    #[error("the job was stopped while it was being started")]
    Stopped(i32),
}

impl SuperviseError {
    /// The error that this one passes on as it is.
    pub fn inner(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Self::File(error) => error,
            Self::Namespace(error) => error,
            Self::Stack(error) => error,
            Self::Image(error) => error,
            Self::Network(error) => error,
            Self::Launch(error) => error,
            Self::Streams(_) | Self::Thread(_) | Self::Stopped(_) => self,
        }
    }
}

/// The command line of a supervisor, written by [`crate::start`]; `None` if a person typed the word.
#[derive(Debug)]
pub struct Invocation {
    pub(crate) job: JobDir,
    pub(crate) handover: Handover,
    /// The size of the command's terminal, if a command is attached.
    pub(crate) attached: Option<Size>,
}

impl Invocation {
    /// Takes over what the starting command left open.
    pub fn parse(words: &[OsString]) -> Option<Self> {
        let [dir, lock, pipe, attached] = words else { return None };
        let handover = Handover::adopt(lock, pipe)?;
        let attached = match attached.to_str()? {
            "detached" => None,
            size => {
                let (rows, columns) = size.split_once('x')?;
                Some(Size { rows: rows.parse().ok()?, columns: columns.parse().ok()? })
            }
        };
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
    sys::keep_heap_small();
    let Invocation { job, handover: Handover { lock, pipe }, attached } = invocation;
    let mut reporter = Reporter::new(pipe);
    let mut status = Status::starting();
    // One that ran before and was started again stays, whatever comes of it now.
    let before = job.status().ok().flatten();
    let is_new = before.is_none();
    if let Some(before) = before.filter(|before| before.phase == Phase::Restarting) {
        // This goes on where a supervisor was killed.
        (status.restarts, status.next_delay_ms) = (before.restarts, before.next_delay_ms);
    }
    let mut supervisor = Supervisor { job: &job, status: &mut status, since, attached };
    let result = supervisor.run(&mut reporter);
    // What never ran is of no interest once its error has been told.
    let never_ran = is_new && status.started_ms.is_none();
    if let Err(error) = &result {
        if let SuperviseError::Stopped(_) | SuperviseError::Thread(_) = error
            && let Ok(config) = job.config()
        {
            // Whatever it was at.
            forced::abort_mounts(&job, &config);
            forced::end_start(&job);
        }
        tracing::error!(error = error as &dyn std::error::Error, "the job failed");
        status.phase = Phase::Failed;
        let failure = Failure::new(error, hint(error), exit_code(error));
        status.exit_code = Some(failure.exit_code);
        status.error = Some(failure);
    }
    status.finished_ms = Some(now_ms());
    // What is left of its control group, if anything, is for the next command to remove.
    status.cgroup = status.cgroup.filter(|group| !mica_launcher::cleanup(group));
    let config = job.config().ok();
    let remove = never_ran || config.as_ref().is_some_and(|config| config.remove);
    let mut retired = None;
    if remove && status.cgroup.is_none() {
        if let Some(config) = &config {
            events::record(&job, config, "destroy", &[]);
        }
        match job.retire(&lock) {
            Ok(folder) => retired = Some(folder),
            Err(error) => tracing::error!(%error, "cannot take the job's folder away"),
        }
    }
    let Some(retired) = retired else {
        if let Err(error) = job.write_status(&status) {
            tracing::error!(%error, "cannot record how the job ended");
        }
        drop(lock);
        return reporter.send(&Report::Ended(status));
    };
    // From here on no command sees the job: its name is free, and nobody has to wait until its files are gone.
    reporter.send(&Report::Ended(status));
    if let Err(error) = retired.remove() {
        tracing::error!(%error, "cannot remove the job's folder");
    }
}

fn exit_code(error: &SuperviseError) -> i32 {
    match error {
        SuperviseError::Launch(error) => error.exit_code().into(),
        SuperviseError::Stopped(signal) => 128 + signal,
        _ => 125,
    }
}

struct Supervisor<'a> {
    job: &'a JobDir,
    status: &'a mut Status,
    since: Instant,
    attached: Option<Size>,
}

/// The first wait before a job is started again; it doubles from one to the next.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A job that ran for so long is one that works: the next wait is the first one again.
const RAN_WELL: Duration = Duration::from_secs(10);

/// How long taking down a job's mounts may take. Files that were copied up in part are completed then.
const LEAVING: Duration = Duration::from_secs(600);

/// Health checks are called by numbers from here on; programs of commands by those of the commands.
const CHECKS: u64 = 1 << 32;

impl Supervisor<'_> {
    fn run(&mut self, reporter: &mut Reporter) -> Result<(), SuperviseError> {
        self.job.write_status(self.status)?;
        let mut config = self.job.config()?;
        let hidden = &mut config.spec.hidden;
        if hidden.folders.is_empty() {
            // The job is an earlier version's.
            hidden.folders.push(self.job.root().to_owned());
            hidden.but.push(self.job.root().join("volumes"));
            hidden.but.extend((0..config.images.len()).map(|index| self.job.image_tree(index)));
        }
        // Its own session: what the terminal sends to the command is the command's to pass on.
        let _ = rustix::process::setsid();
        let mut session =
            Session::start(self.job, &config, reporter.pipe()).map_err(SuperviseError::Streams)?;
        sys::hold_signals(false);
        let ended = self.run_in(&mut session, reporter, config);
        self.status.stopped = Some(session.stopped_by());
        ended
    }

    fn run_in(
        &mut self,
        session: &mut Session,
        reporter: &mut Reporter,
        config: JobConfig,
    ) -> Result<(), SuperviseError> {
        namespace::enter()?;
        // Threads may begin here.
        let worker = Worker::start(&session.waker).map_err(SuperviseError::Thread)?;
        self.connect(session, reporter).map_err(SuperviseError::Streams)?;
        if config.terminal && self.attached.is_some() {
            let typed = io::stdin().as_fd().try_clone_to_owned();
            let pumped = typed.and_then(|typed| session.input.pump(typed));
            pumped.map_err(SuperviseError::Thread)?;
        }
        let (job, asked) = (self.job.clone(), config.clone());
        let made = worker.begin(move || Surroundings::make(&job, asked));
        let mut surroundings = self.wait(session, &made)??;
        if let Some(signal) = session.unwanted() {
            return Err(SuperviseError::Stopped(signal));
        }
        self.status.link = surroundings.attached.as_ref().map(|attached| attached.link.clone());
        self.status.timings.mounted_us = Some(self.elapsed_us());
        let ended = self.run_again_and_again(&worker, session, reporter, &mut surroundings);
        if matches!(ended, Err(SuperviseError::Stopped(_))) {
            return ended;
        }
        let left = worker.begin(move || surroundings.leave());
        match session.ending(&left, LEAVING) {
            Ok(()) => {}
            // The mounts are gone with this process and its namespace in any case.
            Err(why) => {
                tracing::warn!(?why, "the job's mounts are not left in time");
                forced::abort_mounts(self.job, &config);
            }
        }
        session.end(self.status.exit_code.unwrap_or(125));
        ended
    }

    /// Waits for a step of the start.
    fn wait<T: Send + 'static>(
        &self,
        session: &mut Session,
        task: &Task<T>,
    ) -> Result<T, SuperviseError> {
        session.during(task).map_err(|why| match why {
            Interrupted::Stopped => SuperviseError::Stopped(session.unwanted().unwrap_or(SIGKILL)),
            Interrupted::Poll(error) => SuperviseError::Streams(error),
            Interrupted::Panicked(panicked) => SuperviseError::Thread(panicked.into()),
        })
    }

    /// Sends output to the starting command if that stays.
    fn connect(&self, session: &mut Session, reporter: &Reporter) -> io::Result<()> {
        if self.attached.is_none() {
            return Ok(());
        }
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let output = [stdout.as_fd().try_clone_to_owned()?, stderr.as_fd().try_clone_to_owned()?];
        session.sinks.add(STARTER, output, reporter.pipe())?;
        // When the command lets go of the job, nothing of ours keeps its terminal or its pipes open.
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(())
    }

    fn run_again_and_again(
        &mut self,
        worker: &Worker,
        session: &mut Session,
        reporter: &mut Reporter,
        surroundings: &mut Surroundings,
    ) -> Result<(), SuperviseError> {
        let kept = self.status.next_delay_ms.map(Duration::from_millis);
        let mut delay = kept.map_or(FIRST_DELAY, |kept| kept.clamp(FIRST_DELAY, LONGEST_DELAY));
        loop {
            let started = Instant::now();
            let exit = self.launch(worker, session, reporter, surroundings)?;
            let config = &surroundings.config;
            let code = exit.code();
            self.status.exit_code = Some(code);
            self.status.oom_killed = exit.oom_killed;
            self.status.usage = Some(exit.usage);
            if exit.oom_killed {
                events::record(self.job, config, "oom", &[]);
            }
            events::record(self.job, config, "die", &[("exitCode", code.to_string())]);
            let Wishes { restart, stopped, .. } = session.wishes();
            if stopped || !restart.again(code, self.status.restarts) {
                self.status.phase = Phase::Exited;
                return Ok(());
            }
            if started.elapsed() >= RAN_WELL {
                delay = FIRST_DELAY;
            }
            self.status.phase = Phase::Restarting;
            self.status.pid = None;
            self.status.finished_ms = Some(now_ms());
            let next = (delay * 2).min(LONGEST_DELAY);
            self.status.next_delay_ms = u64::try_from(next.as_millis()).ok();
            self.job.write_status(self.status)?;
            session.idle(Instant::now() + delay).map_err(SuperviseError::Streams)?;
            if session.wishes().stopped {
                self.status.phase = Phase::Exited;
                return Ok(());
            }
            self.status.restarts += 1;
            delay = next;
        }
    }

    fn launch(
        &mut self,
        worker: &Worker,
        session: &mut Session,
        reporter: &mut Reporter,
        surroundings: &mut Surroundings,
    ) -> Result<Exit, SuperviseError> {
        let config = &surroundings.config;
        let Streams { stdio, outputs, input } =
            self.streams(config).map_err(SuperviseError::Streams)?;
        // Before there is a job whose output nobody could read.
        let mut output = self.output(config, session, outputs)?;
        let mut spec = config.spec.clone();
        spec.limits = session.limits().clone();
        if let Some(attached) = &surroundings.attached {
            attached.connect(&mut spec);
        }
        let prepared = surroundings.prepared.take();
        let launched = worker.begin(move || match prepared {
            Some(prepared) => prepared.launch(&spec, stdio),
            None => launch(&spec, stdio),
        });
        let mut job = self.wait(session, &launched)??;
        session.input.lead_to(input);
        if let Some(terminal) = job.program().take_terminal() {
            let copy = || terminal.try_clone().map_err(SuperviseError::Streams);
            session.input.lead_to(Some(copy()?));
            session.terminal = Some(copy()?);
            output = self.output(config, session, vec![(Stream::Stdout, terminal)])?;
        }
        let further = surroundings.attached.iter().flat_map(Attached::warnings);
        self.status.warnings = job.warnings().iter().cloned().chain(further).collect();
        self.record_start(config, &job)?;
        reporter.send_started(self.status);
        let health = config.health.clone();
        let monitor = health.map(|check| Monitor::new(check, CHECKS, &session.waker));
        let exit =
            session.watch(&mut job, monitor, self.status).map_err(SuperviseError::Streams)?;
        let exit = exit.unwrap_or_else(|| {
            tracing::error!("a process of the job is stuck in the kernel and can't be killed");
            job.abandon()
        });
        session.terminal = None;
        session.input.lead_to(None);
        session.drain(&output).map_err(SuperviseError::Streams)?;
        self.status.timings.first_output_us = output.first().map(as_us);
        Ok(exit)
    }

    /// Passes on what comes out of these.
    fn output(
        &self,
        config: &JobConfig,
        session: &Session,
        streams: Vec<(Stream, OwnedFd)>,
    ) -> Result<Output, SuperviseError> {
        let (id, name) = (self.job.id(), config.name.as_deref().unwrap_or(self.job.id()));
        let fields = [("SYSLOG_IDENTIFIER", name), ("CONTAINER_NAME", name), ("CONTAINER_ID", id)];
        let log = LogWriter::open(self.job.path(), &config.log, &fields)?;
        Output::start(log, streams, &session.sinks, &session.waker, self.since)
            .map_err(SuperviseError::Thread)
    }

    fn record_start(&mut self, config: &JobConfig, job: &Job) -> Result<(), SuperviseError> {
        self.status.phase = Phase::Running;
        self.status.pid = Some(job.pid().as_raw_nonzero().get());
        self.status.cgroup = Some(job.cgroup().clone());
        self.status.started_ms = Some(now_ms());
        self.status.finished_ms = None;
        self.status.health = config.health.as_ref().map(|_| crate::status::Health::default());
        self.status.timings.started_us = Some(self.elapsed_us());
        self.job.write_status(self.status)?;
        events::record(self.job, config, "start", &[]);
        Ok(())
    }

    /// What the job reads and writes, and our ends of it.
    fn streams(&self, config: &JobConfig) -> io::Result<Streams> {
        if config.terminal {
            let Size { rows, columns } = self.attached.unwrap_or_default();
            let stdio = Stdio::Terminal { rows, columns };
            return Ok(Streams { stdio, outputs: Vec::new(), input: None });
        }
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let ((our_out, stdout), (our_err, stderr)) = (pipe()?, pipe()?);
        let (stdin, input) = if config.open_stdin && self.attached.is_none() {
            let (stdin, ours) = pipe()?;
            (stdin, Some(ours))
        } else {
            // What the command chose: its own, or nothing.
            (io::stdin().as_fd().try_clone_to_owned()?, None)
        };
        let outputs = vec![(Stream::Stdout, our_out), (Stream::Stderr, our_err)];
        Ok(Streams { stdio: Stdio::Streams { stdin, stdout, stderr }, outputs, input })
    }

    fn elapsed_us(&self) -> u64 {
        as_us(self.since.elapsed())
    }
}

/// A job's streams.
struct Streams {
    stdio: Stdio,
    /// What it prints comes out here, but for a terminal's.
    outputs: Vec<(Stream, OwnedFd)>,
    /// What it reads goes in here.
    input: Option<OwnedFd>,
}

fn as_us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
