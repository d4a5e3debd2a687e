//! What a supervisor listens to at every moment, while it starts its job, while the job runs and while it ends: the job's
//! end, signals, commands, work that threads do, the clock. One loop, one thread, which waits for nothing but them.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mica_launcher::{Exit, Job, LaunchError, Limits, Program};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGKILL, SIGTERM};

use crate::config::{JobConfig, Restart};
use crate::control::{Listener, Reply, Request};
use crate::events;
use crate::forced;
use crate::health::Monitor;
use crate::job::JobDir;
use crate::output::Input;
use crate::peer::Peer;
use crate::sinks::{STARTER, Sinks};
use crate::status::{Phase, Status, StoppedBy};
use crate::sys;
use crate::task::{Task, Waker};

/// Whether the job is to be started again when it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    pub(crate) restart: Restart,
    /// Somebody ended it on purpose.
    pub(crate) stopped: bool,
    /// And a person did: a command, not whoever ends the supervisor, as the machine does that is shut down.
    pub(crate) by_person: bool,
    /// The signal by which.
    pub(crate) signal: i32,
    /// And nobody waits for what it still has to do.
    pub(crate) hurry: bool,
}

/// When nothing has happened for so long, nothing will for a while.
const SETTLED: Duration = Duration::from_secs(1);
/// A killed job that is still there hangs in a file system; ours lets go of it then.
const FORCE: Duration = Duration::from_millis(400);
/// One that hangs in another is given up.
const GIVE_UP: Duration = Duration::from_secs(2);
/// Without descriptors nobody is listened to for so long.
const DEAF: Duration = Duration::from_millis(100);
/// Connections that have not asked for anything yet, at most.
const MOST_SILENT: usize = 32;
/// More commands than these are sent away.
const MAX_PEERS: usize = 256;

/// Everything but the job itself, which may be started anew.
pub(crate) struct Session {
    pub(super) job: JobDir,
    pub(super) config: JobConfig,
    /// A signal to the supervisor is a wish to end; each writes a byte here.
    signals: UnixStream,
    pub(super) listener: Listener,
    /// Broken when the starting command has gone or let go.
    starter: Option<OwnedFd>,
    /// Of threads that have done something.
    pub(crate) waker: Waker,
    pub(crate) sinks: Sinks,
    pub(crate) input: Input,
    /// The other end of the job's terminal.
    pub(crate) terminal: Option<OwnedFd>,
    pub(super) peers: Vec<Peer>,
    /// Programs that are being started in the job for peers.
    pub(super) starting: Vec<Starting>,
    /// What needs a job that runs, while that is being started: commands and what they ask for.
    pub(super) waiting: Vec<(u64, Request, Vec<OwnedFd>)>,
    pub(super) is_starting: bool,
    /// A signal that ends programs came while the job was being started.
    pub(super) interrupted: Option<i32>,
    /// For the next peer, which is also the number of its program.
    next_id: u64,
    pub(super) wishes: Wishes,
    /// When the job, asked to end, has had its time.
    pub(super) kill_at: Option<Instant>,
    /// When it was killed.
    pub(super) killed: Option<Instant>,
    forced: bool,
    /// No descriptor was left for a command.
    deaf_until: Option<Instant>,
}

/// A program that is being started in the job.
pub(super) struct Starting {
    pub(super) peer: u64,
    pub(super) command: String,
    pub(super) task: Task<Result<(Program, Option<OwnedFd>), LaunchError>>,
}

/// What can wake the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Job,
    Signals,
    Listener,
    Starter,
    Tasks,
    Health,
    Peer(u64),
    Program(u64),
}

/// The job as it runs.
pub(super) struct Running<'a> {
    pub(super) job: &'a mut Job,
    pub(super) monitor: Option<Monitor>,
    pub(super) status: &'a mut Status,
}

/// Lets a wait for a lock end while there is a signal that nobody has read yet.
fn end_waits_on_signals(unread: UnixStream) {
    static UNREAD: OnceLock<UnixStream> = OnceLock::new();
    if UNREAD.set(unread).is_ok() {
        mica_durable::interrupted_by(|| {
            UNREAD.get().is_some_and(|unread| {
                let mut fds = [PollFd::new(unread, PollFlags::IN)];
                poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            })
        });
    }
}

impl Session {
    pub(crate) fn start(
        job: &JobDir,
        config: &JobConfig,
        starter: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let (signals, writer) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        end_waits_on_signals(signals.try_clone()?);
        let waker = Waker::new()?;
        let wishes = Wishes {
            restart: config.restart,
            stopped: false,
            by_person: false,
            signal: config.stop_signal,
            hurry: false,
        };
        Ok(Self {
            job: job.clone(),
            config: config.clone(),
            signals,
            listener: Listener::bind(job)?,
            starter,
            sinks: Sinks::new(&waker),
            waker,
            input: Input::default(),
            terminal: None,
            peers: Vec::new(),
            starting: Vec::new(),
            waiting: Vec::new(),
            is_starting: false,
            interrupted: None,
            next_id: STARTER + 1,
            wishes,
            kill_at: None,
            killed: None,
            forced: false,
            deaf_until: None,
        })
    }

    pub(crate) fn wishes(&self) -> Wishes {
        self.wishes
    }

    /// Who wanted the job to end.
    pub(crate) fn stopped_by(&self) -> StoppedBy {
        if self.wishes.by_person { StoppedBy::Person } else { StoppedBy::Nobody }
    }

    /// Keeps in mind, whatever becomes of this process, that a person wants the job to end.
    pub(super) fn stopped_by_person(&mut self, running: Option<&mut Running<'_>>) {
        self.wishes.by_person = true;
        if let Some(running) = running
            && running.status.stopped != Some(StoppedBy::Person)
        {
            running.status.stopped = Some(StoppedBy::Person);
            if self.config.restart != Restart::No || self.wishes.restart != Restart::No {
                self.write(running.status);
            }
        }
    }

    /// The limits as they are now.
    pub(crate) fn limits(&self) -> &Limits {
        &self.config.spec.limits
    }

    /// Serves until the job ends. The job, if it is killed and doesn't end, is left to the caller to be abandoned: `None`.
    pub(crate) fn watch(
        &mut self,
        job: &mut Job,
        monitor: Option<Monitor>,
        status: &mut Status,
    ) -> io::Result<Option<Exit>> {
        (self.kill_at, self.killed, self.forced) = (None, None, false);
        status.stopped = Some(self.stopped_by());
        let mut running = Running { job, monitor, status };
        let mut shrink_at = Some(Instant::now() + SETTLED);
        if self.wishes.stopped {
            // It came while the job was being started.
            let (signal, hurry) = (self.wishes.signal, self.wishes.hurry);
            self.stop(Some(&mut running), Some(signal), hurry.then_some(0));
        }
        if let Some(signal) = self.interrupted.take() {
            // It may have ended meanwhile.
            self.send(&mut running, signal).ok();
        }
        for (peer, request, descriptors) in std::mem::take(&mut self.waiting) {
            self.act(peer, request, descriptors, Some(&mut running));
        }
        loop {
            // A paused job is not checked.
            let monitor =
                running.monitor.as_ref().filter(|_| running.status.phase == Phase::Running);
            let due = monitor.map(Monitor::due);
            let pressed = self.killed.map(|at| at + if self.forced { GIVE_UP } else { FORCE });
            let until = [self.kill_at, due, shrink_at, pressed].into_iter().flatten().min();
            let ready = self.wait(Some(&running), until)?;
            if shrink_at.is_some_and(|at| Instant::now() >= at) {
                shrink_at = None;
                sys::shrink();
            } else if !ready.is_empty() {
                shrink_at = Some(Instant::now() + SETTLED);
            }
            if ready.contains(&Source::Job)
                && let Some(exit) = running.job.try_wait()?
            {
                self.programs_ended();
                return Ok(Some(exit));
            }
            if self.kill_at.is_some_and(|at| Instant::now() >= at) {
                self.kill(&mut running);
            }
            if self.gives_up(&running) {
                self.programs_ended();
                return Ok(None);
            }
            if running.status.phase == Phase::Running {
                self.check_health(&mut running);
            }
            self.serve(&ready, Some(&mut running));
        }
    }

    pub(super) fn kill(&mut self, running: &mut Running<'_>) {
        self.kill_at = None;
        self.killed.get_or_insert_with(Instant::now);
        // It may have ended meanwhile, which the next round sees; and a frozen group doesn't die.
        running.job.kill().ok();
        if running.status.phase == Phase::Paused {
            running.job.unpause().ok();
        }
    }

    /// Presses on a killed job; true if that was to no avail.
    fn gives_up(&mut self, running: &Running<'_>) -> bool {
        let Some(killed) = self.killed else { return false };
        if killed.elapsed() >= FORCE && !self.forced {
            self.forced = true;
            forced::abort_mounts(&self.job, &self.config);
            running.job.kill_init().ok();
        }
        killed.elapsed() >= GIVE_UP
    }

    /// Tells those who are attached that the job has ended for good.
    pub(crate) fn end(&mut self, code: i32) {
        for peer in self.peers.iter().filter(|peer| peer.attached) {
            peer.say(&Reply::Ended(code), None);
        }
    }

    pub(super) fn wait(
        &self,
        running: Option<&Running<'_>>,
        until: Option<Instant>,
    ) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Signals, Source::Tasks];
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.waker, PollFlags::IN),
        ];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        let deaf = self.deaf_until.filter(|until| Instant::now() < *until);
        if deaf.is_none() {
            add(Source::Listener, self.listener.as_fd(), PollFlags::IN);
        }
        if let Some(starter) = &self.starter {
            add(Source::Starter, starter.as_fd(), PollFlags::empty());
        }
        if let Some(running) = running {
            add(Source::Job, running.job.pidfd(), PollFlags::IN);
            for source in running.monitor.iter().flat_map(Monitor::sources) {
                add(Source::Health, source, PollFlags::IN);
            }
        }
        for peer in &self.peers {
            add(Source::Peer(peer.id), peer.socket.as_fd(), PollFlags::IN);
            if let Some(program) = &peer.program {
                add(Source::Program(peer.id), program.as_fd(), PollFlags::IN);
            }
        }
        let until = earlier(until, deaf);
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let ready = sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(source, _)| source).collect())
    }

    pub(super) fn serve(&mut self, ready: &[Source], mut running: Option<&mut Running<'_>>) {
        for source in ready {
            match source {
                Source::Job | Source::Health => {}
                Source::Tasks => self.tasks_done(),
                Source::Signals => {
                    // As many as there were: one wish. A second one can't wait.
                    while self.signals.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
                    let timeout = self.wishes.stopped.then_some(0);
                    self.stop(running.as_deref_mut(), None, timeout);
                }
                Source::Listener => self.accept(),
                Source::Starter => {
                    self.starter = None;
                    self.sinks.remove(STARTER);
                }
                Source::Peer(id) => self.hear(*id, running.as_deref_mut()),
                Source::Program(id) => self.program_ended(*id),
            }
        }
        self.peers.retain(|peer| !peer.gone);
    }

    fn tasks_done(&mut self) {
        self.waker.clear();
        if self.sinks.are_unwanted() {
            // A terminal without its other end hangs up.
            self.terminal = None;
            self.input.lead_to(None);
        }
        self.programs_started();
    }

    fn accept(&mut self) {
        self.deaf_until = None;
        match self.listener.accept() {
            Ok(Some(socket)) if self.peers.len() < MAX_PEERS => {
                // Those that say nothing keep nobody out: the one that did so for longest makes room.
                let mut silent = self.peers.iter_mut().filter(|peer| !peer.heard);
                if let (Some(first), true) = (silent.next(), silent.count() + 1 >= MOST_SILENT) {
                    first.gone = true;
                }
                self.peers.push(Peer::new(self.next_id, socket));
                self.next_id += 1;
            }
            Ok(_) => {}
            // A command that has gone meanwhile is nothing to wait for; descriptors are.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.deaf_until = Some(Instant::now() + DEAF),
        }
    }

    pub(super) fn stop(
        &mut self,
        running: Option<&mut Running<'_>>,
        signal: Option<i32>,
        timeout: Option<u64>,
    ) {
        let timeout = timeout.unwrap_or(self.config.stop_timeout);
        let wanted = signal.unwrap_or(self.config.stop_signal);
        let wanted = if timeout == 0 { SIGKILL } else { wanted };
        if !self.wishes.stopped {
            self.wishes.signal = wanted;
        }
        self.wishes.stopped = true;
        self.wishes.hurry |= timeout == 0;
        let Some(running) = running else { return };
        let at = Instant::now() + Duration::from_secs(timeout.min(u64::from(u32::MAX)));
        if self.kill_at.is_none() && self.killed.is_none() {
            events::record(&self.job, &self.config, "stop", &[("signal", wanted.to_string())]);
        }
        if wanted == SIGKILL {
            return self.kill(running);
        }
        // A second wish can only shorten the time.
        if self.kill_at.is_none() && self.killed.is_none() {
            // It may have ended meanwhile, which the next round sees; and what is paused would not hear.
            running.job.signal(wanted).ok();
            if running.status.phase == Phase::Paused {
                running.job.unpause().ok();
            }
        }
        self.kill_at = earlier(self.kill_at, Some(at));
    }

    fn check_health(&self, running: &mut Running<'_>) {
        let Some(monitor) = &mut running.monitor else { return };
        if !monitor.tick(running.job) {
            return;
        }
        let health = monitor.health().clone();
        let before = running.status.health.replace(health.clone());
        self.write(running.status);
        if before.is_none_or(|before| before.state != health.state) {
            let state = serde_json::to_value(health.state).unwrap_or_default();
            let state = state.as_str().unwrap_or_default().to_owned();
            events::record(&self.job, &self.config, "health_status", &[("health", state)]);
        }
    }

    pub(super) fn write(&self, status: &Status) {
        if let Err(error) = self.job.write_status(status) {
            tracing::error!(%error, "cannot record the job's state");
        }
    }
}

pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
