//! What a supervisor listens to while its job runs: the job's end, signals, commands, the clock. One loop, one thread.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mica_launcher::{ExecSpec, Exit, Job, Limits, Program, Stdio, message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGKILL, SIGTERM};

use crate::config::{JobConfig, Restart};
use crate::control::{Listener, Reply, Request, Size};
use crate::events;
use crate::health::Monitor;
use crate::output::{Input, STARTER, Sink, Sinks};
use crate::peer::Peer;
use crate::state::JobDir;
use crate::status::{Failure, Phase, Status, not_running, refusal};
use crate::sys;

/// Whether the job is to be started again when it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    pub(crate) restart: Restart,
    /// Somebody ended it on purpose.
    pub(crate) stopped: bool,
}

/// When nothing has happened for so long, nothing will for a while.
const SETTLED: Duration = Duration::from_secs(1);

/// Connections that have not asked for anything yet, at most.
const MOST_SILENT: usize = 32;

/// Everything but the job itself, which may be started anew.
pub(crate) struct Session {
    job: JobDir,
    config: JobConfig,
    /// A signal to the supervisor is a wish to end; each writes a byte here.
    signals: UnixStream,
    listener: Listener,
    /// Broken when the starting command has gone or let go.
    starter: Option<OwnedFd>,
    pub(crate) sinks: Sinks,
    pub(crate) input: Input,
    /// The other end of the job's terminal.
    pub(crate) terminal: Option<OwnedFd>,
    peers: Vec<Peer>,
    /// For the next peer.
    next_id: u64,
    wishes: Wishes,
    /// When the job, asked to end, has had its time.
    kill_at: Option<Instant>,
}

/// What can wake the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Job,
    Signals,
    Listener,
    Starter,
    Health,
    Peer(u64),
    Program(u64),
}

/// The job as it runs.
struct Running<'a> {
    job: &'a mut Job,
    monitor: Option<Monitor>,
    status: &'a mut Status,
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
        sinks: Sinks,
    ) -> io::Result<Self> {
        let (signals, writer) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        end_waits_on_signals(signals.try_clone()?);
        Ok(Self {
            job: job.clone(),
            config: config.clone(),
            signals,
            listener: Listener::bind(job)?,
            starter,
            sinks,
            input: Input::default(),
            terminal: None,
            peers: Vec::new(),
            next_id: STARTER + 1,
            wishes: Wishes { restart: config.restart, stopped: false },
            kill_at: None,
        })
    }

    pub(crate) fn wishes(&self) -> Wishes {
        self.wishes
    }

    /// The limits as they are now.
    pub(crate) fn limits(&self) -> &Limits {
        &self.config.spec.limits
    }

    /// Serves until the job ends.
    pub(crate) fn watch(
        &mut self,
        job: &mut Job,
        monitor: Option<Monitor>,
        status: &mut Status,
    ) -> io::Result<Exit> {
        self.kill_at = None;
        let mut running = Running { job, monitor, status };
        let mut shrink_at = Some(Instant::now() + SETTLED);
        loop {
            // A paused job is not checked.
            let monitor =
                running.monitor.as_ref().filter(|_| running.status.phase == Phase::Running);
            let due = monitor.map(Monitor::due);
            let ready =
                self.wait(Some(&running), earlier(earlier(self.kill_at, due), shrink_at))?;
            if shrink_at.is_some_and(|at| Instant::now() >= at) {
                shrink_at = None;
                sys::shrink();
            } else if !ready.is_empty() {
                shrink_at = Some(Instant::now() + SETTLED);
            }
            if ready.contains(&Source::Job) {
                let exit = running.job.wait()?;
                self.programs_ended();
                return Ok(exit);
            }
            if self.kill_at.is_some_and(|at| Instant::now() >= at) {
                self.kill_at = None;
                running.job.kill()?;
            }
            if running.status.phase == Phase::Running {
                self.check_health(&mut running);
            }
            self.serve(&ready, Some(&mut running));
        }
    }

    /// Serves without a job, until then or until it is not to be started any more.
    pub(crate) fn idle(&mut self, until: Instant) -> io::Result<()> {
        while !self.wishes.stopped && Instant::now() < until {
            let ready = self.wait(None, Some(until))?;
            self.serve(&ready, None);
        }
        Ok(())
    }

    /// Tells those who are attached that the job has ended for good.
    pub(crate) fn end(&mut self, code: i32) {
        for peer in self.peers.iter().filter(|peer| peer.attached) {
            peer.say(&Reply::Ended(code), None);
        }
    }

    fn wait(
        &self,
        running: Option<&Running<'_>>,
        until: Option<Instant>,
    ) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some(starter) = &self.starter {
            add(Source::Starter, starter.as_fd(), PollFlags::empty());
        }
        if let Some(running) = running {
            add(Source::Job, running.job.pidfd(), PollFlags::IN);
            if let Some(check) = running.monitor.as_ref().and_then(Monitor::running) {
                add(Source::Health, check, PollFlags::IN);
            }
        }
        for peer in &self.peers {
            add(Source::Peer(peer.id), peer.socket.as_fd(), PollFlags::IN);
            if let Some(program) = &peer.program {
                add(Source::Program(peer.id), program.as_fd(), PollFlags::IN);
            }
        }
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

    fn serve(&mut self, ready: &[Source], mut running: Option<&mut Running<'_>>) {
        for source in ready {
            match source {
                Source::Job | Source::Health => {}
                Source::Signals => {
                    // As many as there were: one wish.
                    while self.signals.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
                    self.stop(running.as_deref_mut(), None, None);
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

    fn accept(&mut self) {
        // A command that has gone meanwhile, or no more descriptors: the next try is another one's.
        let Ok(Some(socket)) = self.listener.accept() else { return };
        // Those that say nothing keep nobody out: the one that did so for longest makes room.
        if self.peers.iter().filter(|peer| !peer.heard).count() >= MOST_SILENT {
            self.peers
                .iter_mut()
                .filter(|peer| !peer.heard)
                .take(1)
                .for_each(|peer| peer.gone = true);
        }
        self.peers.push(Peer::new(self.next_id, socket));
        self.next_id += 1;
    }

    fn hear(&mut self, id: u64, running: Option<&mut Running<'_>>) {
        let Some(index) = self.peers.iter().position(|peer| peer.id == id) else { return };
        let message = match message::receive(&self.peers[index].socket, RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(Some(message)) => message,
            Ok(None) | Err(_) => {
                self.peers[index].gone = true;
                self.sinks.remove(id);
                return;
            }
        };
        let (request, descriptors) = match self.listener.understand(message) {
            Ok(request) => request,
            Err(failure) => {
                self.peers[index].gone = true;
                return self.peers[index].say(&Reply::Failed(failure), None);
            }
        };
        self.peers[index].heard = true;
        let mut terminal = None;
        let done = match request {
            Request::Exec { terminal: size } => {
                self.exec(index, running, size, descriptors).map(|fd| terminal = fd)
            }
            Request::Attach { input } => self.attach(index, input, descriptors),
            Request::Wait => {
                self.peers[index].attached = true;
                Ok(())
            }
            Request::Resize(size) => self.resize(size),
            Request::Signal(signal) => self.signal(index, running, signal),
            Request::Stop { signal, timeout } => {
                self.stop(running, signal, timeout);
                Ok(())
            }
            Request::Pause(paused) => self.pause(running, paused),
            Request::Update { limits, restart } => self.update(running, limits, restart),
        };
        let reply = done.map_or_else(Reply::Failed, |()| Reply::Done);
        self.peers[index].say(&reply, terminal.as_ref().map(AsFd::as_fd));
    }

    fn exec(
        &mut self,
        index: usize,
        running: Option<&mut Running<'_>>,
        terminal: Option<Size>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<OwnedFd>, Failure> {
        let running = running.ok_or_else(not_running)?;
        if running.status.phase == Phase::Paused {
            return Err(refusal("the job is paused", Some("`mica unpause` lets it go on")));
        }
        let mut descriptors = descriptors.into_iter();
        let mut next =
            || descriptors.next().ok_or_else(|| refusal("a descriptor is missing", None));
        let spec: ExecSpec =
            message::from_memory(next()?).map_err(|error| refusal(&error.to_string(), None))?;
        let stdio = match terminal {
            Some(Size { rows, columns }) => Stdio::Terminal { rows, columns },
            None => Stdio::Streams { stdin: next()?, stdout: next()?, stderr: next()? },
        };
        let mut program = running.job.exec(&spec, stdio).map_err(|error| Failure::from(&error))?;
        let terminal = program.take_terminal();
        self.peers[index].program = Some(program);
        let command = spec.argv.join(" ".as_ref()).to_string_lossy().into_owned();
        events::record(&self.job, &self.config, "exec_start", &[("command", command)]);
        Ok(terminal)
    }

    fn program_ended(&mut self, id: u64) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == id) else { return };
        if let Some(Ok(Some(ending))) = peer.program.as_mut().map(Program::try_wait) {
            peer.program = None;
            peer.say(&Reply::Ended(ending.code()), None);
        }
    }

    /// The job's end is that of all its programs.
    fn programs_ended(&mut self) {
        for peer in &mut self.peers {
            if let Some(Ok(ending)) = peer.program.take().map(|mut program| program.wait()) {
                peer.say(&Reply::Ended(ending.code()), None);
            }
        }
    }

    fn attach(
        &mut self,
        index: usize,
        input: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let mut descriptors = descriptors.into_iter();
        let mut next =
            || descriptors.next().ok_or_else(|| refusal("a descriptor is missing", None));
        let (stdout, stderr) = (File::from(next()?), File::from(next()?));
        if input {
            self.input.pump(next()?);
        }
        let peer = &mut self.peers[index];
        peer.attached = true;
        self.sinks.add(Sink { id: peer.id, stdout, stderr, starter: None });
        events::record(&self.job, &self.config, "attach", &[]);
        Ok(())
    }

    fn resize(&self, size: Size) -> Result<(), Failure> {
        let terminal =
            self.terminal.as_ref().ok_or_else(|| refusal("the job has no terminal", None))?;
        let size = rustix::termios::Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(terminal, size)
            .map_err(|error| refusal(&error.to_string(), None))
    }

    fn signal(
        &mut self,
        index: usize,
        running: Option<&mut Running<'_>>,
        signal: i32,
    ) -> Result<(), Failure> {
        if let Some(program) = &self.peers[index].program {
            // It may have ended just now.
            program.signal(signal).ok();
            return Ok(());
        }
        if signal == SIGKILL || signal == self.config.stop_signal {
            self.wishes.stopped = true;
        }
        let running = running.ok_or_else(not_running)?;
        events::record(&self.job, &self.config, "kill", &[("signal", signal.to_string())]);
        running.job.signal(signal).map_err(|error| refusal(&error.to_string(), None))
    }

    fn stop(
        &mut self,
        running: Option<&mut Running<'_>>,
        signal: Option<i32>,
        timeout: Option<u64>,
    ) {
        self.wishes.stopped = true;
        let Some(running) = running else { return };
        let timeout = timeout.unwrap_or(self.config.stop_timeout);
        let at = Instant::now() + Duration::from_secs(timeout.min(u64::from(u32::MAX)));
        // A second wish can only shorten the time.
        if self.kill_at.is_none() {
            let signal = signal.unwrap_or(self.config.stop_signal);
            events::record(&self.job, &self.config, "stop", &[("signal", signal.to_string())]);
            // It may have ended meanwhile, which the next round sees; and what is paused would not hear.
            running.job.signal(if timeout == 0 { SIGKILL } else { signal }).ok();
            if running.status.phase == Phase::Paused {
                running.job.unpause().ok();
            }
        }
        self.kill_at = earlier(self.kill_at, Some(at));
    }

    fn pause(&mut self, running: Option<&mut Running<'_>>, paused: bool) -> Result<(), Failure> {
        let running = running.ok_or_else(not_running)?;
        let wanted = if paused { Phase::Paused } else { Phase::Running };
        if running.status.phase == wanted {
            let text = if paused { "the job is paused already" } else { "the job is not paused" };
            return Err(refusal(text, None));
        }
        let done = if paused { running.job.pause() } else { running.job.unpause() };
        done.map_err(|error| refusal(&error.to_string(), None))?;
        running.status.phase = wanted;
        self.write(running.status);
        let action = if paused { "pause" } else { "unpause" };
        events::record(&self.job, &self.config, action, &[]);
        Ok(())
    }

    fn update(
        &mut self,
        running: Option<&mut Running<'_>>,
        limits: Limits,
        restart: Option<Restart>,
    ) -> Result<(), Failure> {
        if let Some(running) = running {
            running
                .job
                .cgroup()
                .update(&limits)
                .map_err(|error| Failure::new(&error, Some(error.hint().into()), 1))?;
        }
        self.config.spec.limits.change(limits);
        self.wishes.restart = restart.unwrap_or(self.wishes.restart);
        events::record(&self.job, &self.config, "update", &[]);
        Ok(())
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

    fn write(&self, status: &Status) {
        if let Err(error) = self.job.write_status(status) {
            tracing::error!(%error, "cannot record the job's state");
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
