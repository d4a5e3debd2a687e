//! What commands ask a supervisor for: see [`crate::control`].

use std::os::fd::{AsFd, OwnedFd};

use mica_launcher::{ExecSpec, Limits, Program, Stdio, message};
use rustix::net::RecvFlags;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM};

use crate::config::Restart;
use crate::control::{Reply, Request, Size};
use crate::events;
use crate::session::{Running, Session, Starting};
use crate::status::{Failure, Phase, not_running, refusal};
use crate::task::Task;

impl Session {
    /// Reads what a command says, and does it or begins to.
    pub(super) fn hear(&mut self, id: u64, running: Option<&mut Running<'_>>) {
        let Some(index) = self.peers.iter().position(|peer| peer.id == id) else { return };
        let message = match message::receive(&self.peers[index].socket, RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Ok(Some(message)) => message,
            Ok(None) | Err(_) => {
                self.peers[index].gone = true;
                self.sinks.remove(id);
                if self.peers[index].holds {
                    // Somebody may have let it go on meanwhile.
                    self.pause(running, false).ok();
                }
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
        self.act(id, request, descriptors, running);
    }

    /// Does what a command asks for. What needs a job that runs waits for one that is just being started.
    pub(super) fn act(
        &mut self,
        id: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
        mut running: Option<&mut Running<'_>>,
    ) {
        let Some(index) = self.peers.iter().position(|peer| peer.id == id) else { return };
        if running.is_none() && self.job_is_starting() && needs_job(&request) {
            if let Request::Signal(signal @ (SIGKILL | SIGTERM | SIGINT | SIGQUIT | SIGHUP)) =
                request
            {
                // Nobody need wait for that: it ends the start, or is for the job if that comes first.
                self.interrupted = Some(signal);
                self.wishes.by_person = true;
                self.wishes.hurry |= signal == SIGKILL;
                return self.peers[index].say(&Reply::Done, None);
            }
            return self.waiting.push((id, request, descriptors));
        }
        let done = match request {
            Request::Exec { terminal } => {
                match self.exec(index, running, terminal, descriptors) {
                    // The answer comes when the program runs.
                    Ok(()) => return,
                    Err(failure) => Err(failure),
                }
            }
            Request::Attach { input } => self.attach(index, input, descriptors),
            Request::Wait => {
                self.peers[index].attached = true;
                Ok(())
            }
            Request::Resize(size) => self.resize(size),
            Request::Signal(signal) => self.signal(index, running, signal),
            Request::Stop { signal, timeout } => {
                self.stopped_by_person(running.as_deref_mut());
                self.stop(running, signal, timeout);
                Ok(())
            }
            Request::Pause(paused) => self.pause(running, paused),
            Request::Hold => self.pause(running, true).map(|()| self.peers[index].holds = true),
            Request::Update { limits, restart } => self.update(running, limits, restart),
        };
        let reply = done.map_or_else(Reply::Failed, |()| Reply::Done);
        self.peers[index].say(&reply, None);
    }

    /// Begins to start a program in the job: that may take as long as the job's file systems do.
    fn exec(
        &mut self,
        index: usize,
        running: Option<&mut Running<'_>>,
        terminal: Option<Size>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
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
        let peer = self.peers[index].id;
        let command = spec.argv.join(" ".as_ref()).to_string_lossy().into_owned();
        let failed =
            |error: std::io::Error| refusal(&format!("cannot start a program: {error}"), None);
        let entrance = running.job.entrance(peer).map_err(failed)?;
        let task = Task::start("mica-exec", &self.waker, move || {
            let mut program = entrance.exec(&spec, stdio)?;
            let terminal = program.take_terminal();
            Ok((program, terminal))
        });
        self.starting.push(Starting { peer, command, task: task.map_err(failed)? });
        Ok(())
    }

    /// Answers those whose programs run, or don't.
    pub(super) fn programs_started(&mut self) {
        let mut left = Vec::new();
        for starting in std::mem::take(&mut self.starting) {
            let Some(result) = starting.task.poll() else {
                left.push(starting);
                continue;
            };
            let result = match result {
                Ok(result) => result.map_err(|error| Failure::from(&error)),
                Err(panicked) => Err(refusal(&std::io::Error::from(panicked).to_string(), None)),
            };
            if result.is_ok() {
                let attributes = [("command", starting.command)];
                events::record(&self.job, &self.config, "exec_start", &attributes);
            }
            // A command that has gone meanwhile leaves its program to itself.
            let peer = self.peers.iter_mut().find(|peer| peer.id == starting.peer);
            match (peer, result) {
                (None, _) => {}
                (Some(peer), Err(failure)) => peer.say(&Reply::Failed(failure), None),
                (Some(peer), Ok((program, terminal))) => {
                    peer.program = Some(program);
                    peer.say(&Reply::Done, terminal.as_ref().map(AsFd::as_fd));
                }
            }
        }
        self.starting = left;
    }

    pub(super) fn program_ended(&mut self, id: u64) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == id) else { return };
        if let Some(Ok(Some(ending))) = peer.program.as_mut().map(Program::try_wait) {
            peer.program = None;
            peer.say(&Reply::Ended(ending.code()), None);
        }
    }

    /// The job's end is that of all its programs.
    pub(super) fn programs_ended(&mut self) {
        self.programs_started();
        for starting in std::mem::take(&mut self.starting) {
            if let Some(peer) = self.peers.iter().find(|peer| peer.id == starting.peer) {
                peer.say(&Reply::Failed(not_running()), None);
            }
        }
        for peer in &mut self.peers {
            let Some(mut program) = peer.program.take() else { continue };
            // What its init had to say has been said.
            let code = program.try_wait().ok().flatten().map_or(128 + SIGKILL, |end| end.code());
            peer.say(&Reply::Ended(code), None);
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
        let output = [next()?, next()?];
        let failed = |error: std::io::Error| refusal(&format!("cannot attach: {error}"), None);
        if input {
            self.input.pump(next()?).map_err(failed)?;
        }
        let peer = &mut self.peers[index];
        self.sinks.add(peer.id, output, None).map_err(failed)?;
        peer.attached = true;
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
        let ends = signal == SIGKILL || signal == self.config.stop_signal;
        let Some(running) = running else {
            // Between two lives, or at the end.
            if ends {
                self.stopped_by_person(None);
                self.stop(None, Some(signal), (signal == SIGKILL).then_some(0));
                return Ok(());
            }
            return Err(not_running());
        };
        self.send(running, signal)
    }

    /// Sends a signal to the job's own program.
    pub(super) fn send(&mut self, running: &mut Running<'_>, signal: i32) -> Result<(), Failure> {
        let ends = signal == SIGKILL || signal == self.config.stop_signal;
        if ends {
            self.stopped_by_person(Some(running));
        }
        if ends && !self.wishes.stopped {
            (self.wishes.stopped, self.wishes.signal) = (true, signal);
        }
        events::record(&self.job, &self.config, "kill", &[("signal", signal.to_string())]);
        if signal == SIGKILL {
            self.wishes.hurry = true;
            self.kill(running);
            return Ok(());
        }
        running.job.signal(signal).map_err(|error| refusal(&error.to_string(), None))
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
}

/// Whether a request is about a job that runs.
fn needs_job(request: &Request) -> bool {
    match request {
        Request::Hold
        | Request::Exec { .. }
        | Request::Signal(_)
        | Request::Pause(_)
        | Request::Update { .. } => true,
        // A terminal is there from when the job runs; until then its size is the starting command's.
        Request::Resize(_) => true,
        Request::Attach { .. } | Request::Wait | Request::Stop { .. } => false,
    }
}
