//! A running job, as seen by its launcher.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, Usage};
use crate::entrance::Entrance;
use crate::error::LaunchError;
use crate::ids::IdMaps;
use crate::launch::{Stdio, early_error};
use crate::process::{ExecSpec, Process};
use crate::sys;
use crate::view::Root;
use crate::wire::{self, Command, Report, Start};

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Ending {
    /// The exit code a shell would show: the program's own, or 128 and the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }
}

/// How a job ended, and what it used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Of its own program.
    pub ending: Ending,
    /// Some process of the job was killed because the job's memory ran out.
    pub oom_killed: bool,
    /// What all its processes used.
    pub usage: Usage,
}

impl Exit {
    /// The exit code a shell would show.
    pub fn code(&self) -> i32 {
        self.ending.code()
    }
}

/// A program in a job: the job's own, or a further one. Dropping it lets go of the program, no more.
#[derive(Debug)]
pub struct Program {
    report: OwnedFd,
    pid: Option<Pid>,
    /// Opened when its pid became known, so that a signal can't reach another process by accident.
    pidfd: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
    ending: Option<Ending>,
}

impl Program {
    pub(crate) fn new(report: OwnedFd) -> Self {
        Self { report, pid: None, pidfd: None, terminal: None, warnings: Vec::new(), ending: None }
    }

    /// Its process id, as the launcher sees it.
    pub fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// Sends it, and the processes of its group, a signal; itself only where the kernel knows no groups here (before 6.9).
    ///
    /// # Errors
    /// It has ended, or there is no such signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let pidfd = self.pidfd.as_ref().ok_or(Errno::SRCH)?;
        match sys::pidfd_send_signal(pidfd.as_fd(), signal, true) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                sys::pidfd_send_signal(pidfd.as_fd(), signal, false)
            }
            result => result,
        }
    }

    /// The other end of its terminal, if it was started with one; once.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Waits until it runs.
    pub(crate) fn started(&mut self, cgroup: &Cgroup) -> Result<(), LaunchError> {
        loop {
            let message =
                wire::receive(&self.report, RecvFlags::empty()).map_err(LaunchError::Talk)?;
            let Some(mut message) = message else { return Err(LaunchError::InitDied) };
            if let Some(error) = early_error(&message.bytes, cgroup) {
                return Err(error);
            }
            match decode(&message.bytes)? {
                Report::Born => {
                    self.pid = message.sender;
                    // One that is gone already will be reported as such.
                    self.pidfd = self.pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                }
                Report::Terminal => self.terminal = message.descriptors.pop(),
                Report::Warning(text) => self.warnings.push(text),
                Report::Started => return Ok(()),
                Report::Failed(failure) => {
                    let source = io::Error::from_raw_os_error(failure.errno);
                    let what = failure.what;
                    return Err(if failure.exec {
                        LaunchError::Exec { what, source }
                    } else {
                        LaunchError::Setup { what, source }
                    });
                }
                Report::Exited(code) => self.ending = Some(Ending::Exited(code)),
                Report::Killed(signal) => self.ending = Some(Ending::Killed(signal)),
            }
        }
    }

    /// How it ended, if it has. The job's death ends all its programs.
    ///
    /// # Errors
    /// The report can't be read.
    pub fn try_wait(&mut self) -> io::Result<Option<Ending>> {
        self.next_ending(RecvFlags::DONTWAIT)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The report can't be read.
    pub fn wait(&mut self) -> io::Result<Ending> {
        // Without DONTWAIT there is always an ending.
        self.next_ending(RecvFlags::empty())
            .map(|ending| ending.unwrap_or(Ending::Killed(libc::SIGKILL)))
    }

    fn next_ending(&mut self, flags: RecvFlags) -> io::Result<Option<Ending>> {
        while self.ending.is_none() {
            match wire::receive(&self.report, flags) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
                Ok(None) => self.ending = Some(Ending::Killed(libc::SIGKILL)),
                Ok(Some(message)) => match decode(&message.bytes) {
                    Ok(Report::Exited(code)) => self.ending = Some(Ending::Exited(code)),
                    Ok(Report::Killed(signal)) => self.ending = Some(Ending::Killed(signal)),
                    // Nothing else comes from a program that runs.
                    Ok(_) | Err(_) => {}
                },
            }
        }
        Ok(self.ending)
    }
}

/// Becomes readable when the program has ended.
impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }
}

fn decode(bytes: &[u8]) -> Result<Report, LaunchError> {
    serde_json::from_slice(bytes).map_err(|error| LaunchError::Talk(error.into()))
}

/// How long a job that is dropped may take to die. What is stuck in the kernel then is left to whoever cleans up.
const DYING: Duration = Duration::from_secs(2);

/// A running job. Dropping it kills the job and removes its cgroup.
#[derive(Debug)]
pub struct Job {
    init: Pid,
    pidfd: OwnedFd,
    control: OwnedFd,
    program: Program,
    cgroup: Cgroup,
    process: Process,
    root: Root,
    /// The maps of its user namespace.
    ids: Option<IdMaps>,
    /// What its init, started ahead, waits for: the plan in memory, and the streams of the program.
    begin: Option<(OwnedFd, Stdio)>,
    /// The helper that makes its private network; ends with it.
    network: Option<Box<Job>>,
    warnings: Vec<String>,
    /// It has a process namespace of its own, so that its init's end is the end of all.
    own_pids: bool,
    /// The init has been waited for, so its pid means nothing any more.
    reaped: bool,
    /// Taken when the init was reaped, before the cgroup went.
    usage: Option<Usage>,
}

impl Job {
    pub(crate) fn new(
        init: Pid,
        pidfd: OwnedFd,
        control: OwnedFd,
        program: Program,
        cgroup: Cgroup,
        start: Start,
        root: Root,
    ) -> Self {
        Self {
            init,
            pidfd,
            control,
            program,
            cgroup,
            process: start.process,
            root,
            ids: start.ids,
            begin: None,
            network: None,
            own_pids: start.own_pids,
            warnings: Vec::new(),
            reaped: false,
            usage: None,
        }
    }

    /// What an init that was started ahead is told when it is released.
    pub(crate) fn begin_with(&mut self, plan: OwnedFd, stdio: Stdio) {
        self.begin = Some((plan, stdio));
    }

    /// Lets the child go on with the mounts that were made for it, and waits until the job's program runs.
    pub(crate) fn release(&mut self, mounts: &[OwnedFd]) -> Result<(), LaunchError> {
        // A child that has died by now has said why.
        match self.begin.take() {
            Some((plan, stdio)) => {
                let descriptors: Vec<_> =
                    std::iter::once(plan.as_fd()).chain(stdio.parts().1).collect();
                wire::send(&self.control, &Command::Begin, &descriptors).ok();
            }
            None => drop(rustix::net::send(&self.control, b"g", SendFlags::NOSIGNAL)),
        }
        for mount in mounts {
            wire::send(&self.control, &Command::Mount, &[mount.as_fd()]).ok();
        }
        self.program.started(&self.cgroup)?;
        self.warnings.append(&mut self.program.warnings);
        Ok(())
    }

    pub(crate) fn connect(&mut self, network: Job) {
        self.network = Some(Box::new(network));
    }

    pub(crate) fn warn(&mut self, warnings: impl IntoIterator<Item = String>) {
        self.warnings.extend(warnings);
    }

    /// What could not be done as asked for.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Process id of the job's init.
    pub fn pid(&self) -> Pid {
        self.init
    }

    /// Becomes readable when the job's init has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The job's own program.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// The job's cgroup: to be written down, so that whoever comes after a crash can clean up.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// What the job has used up to now.
    pub fn usage(&self) -> Usage {
        self.cgroup.usage()
    }

    /// Sends a signal to the job's own program; `SIGKILL` ends the whole job.
    ///
    /// # Errors
    /// The job has ended.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        wire::send(&self.control, &Command::Signal(signal), &[])
    }

    /// Kills every process of the job, and waits for none of them.
    ///
    /// # Errors
    /// The job has ended.
    pub fn kill(&self) -> io::Result<()> {
        self.cgroup.kill();
        if !self.own_pids {
            // Nobody but the init knows which processes are the job's, so it has to kill them.
            rustix::net::shutdown(&self.control, Shutdown::Both).ok();
            return Ok(());
        }
        self.kill_init()
    }

    /// Kills the init itself. One without a process namespace kills what it started, when told by [`Job::kill`], unless it
    /// is killed before.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill_init(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Stops all processes of the job where they are.
    ///
    /// Where the job has no cgroup that can do it, as for ordinary users on most hosts, by `SIGSTOP`.
    ///
    /// # Errors
    /// The job has neither a cgroup nor a process namespace of its own, or has ended.
    pub fn pause(&self) -> io::Result<()> {
        self.freeze(true)
    }

    /// Lets a paused job go on.
    ///
    /// # Errors
    /// As for [`Job::pause`].
    pub fn unpause(&self) -> io::Result<()> {
        self.freeze(false)
    }

    fn freeze(&self, frozen: bool) -> io::Result<()> {
        match self.cgroup.freeze(frozen) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported && self.own_pids => {
                wire::send(&self.control, &Command::Freeze(frozen), &[])
            }
            result => result,
        }
    }

    /// Starts a further program in the job: the same namespaces, cgroup, filter and rights. Waits until it runs, as long as
    /// that takes: [`Job::entrance`] does it elsewhere.
    ///
    /// # Errors
    /// It could not be started.
    pub fn exec(&self, spec: &ExecSpec, stdio: Stdio) -> Result<Program, LaunchError> {
        self.entrance(0).map_err(LaunchError::Talk)?.exec(spec, stdio)
    }

    /// Kills the program that was started by the entrance of this number, and what it started, running or still starting.
    ///
    /// # Errors
    /// The job has ended.
    pub fn end(&self, number: u64) -> io::Result<()> {
        wire::send(&self.control, &Command::End(number), &[])
    }

    /// What starts a program in the job, from any thread. The program is called by this `number` then.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn entrance(&self, number: u64) -> io::Result<Entrance> {
        Ok(Entrance {
            number,
            init: self.init,
            control: self.control.try_clone()?,
            cgroup: self.cgroup.clone(),
            process: self.process.clone(),
            root: self.root.clone(),
            ids: self.ids.clone(),
        })
    }

    /// Lets go of a job that doesn't die although it was killed: a process of it is stuck in the kernel. What it used so far,
    /// and an ending by `SIGKILL`; the cgroup is left for [`crate::cleanup`].
    pub fn abandon(mut self) -> Exit {
        self.kill_init().ok();
        self.reaped = true;
        Exit {
            ending: Ending::Killed(libc::SIGKILL),
            oom_killed: false,
            usage: self.cgroup.usage(),
        }
    }

    /// How the job ended and what it used, if it has ended; its cgroup is removed then.
    ///
    /// # Errors
    /// The init can't be waited for.
    pub fn try_wait(&mut self) -> io::Result<Option<Exit>> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Waits for the job's end, and removes its cgroup.
    ///
    /// # Errors
    /// The init can't be waited for.
    pub fn wait(&mut self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.wait_timeout(Duration::from_secs(3600))? {
                return Ok(exit);
            }
        }
    }

    /// Waits for the job's end, but not for longer than this.
    ///
    /// # Errors
    /// The init can't be waited for.
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<Exit>> {
        if !self.reaped {
            if !self.ended(timeout)? {
                return Ok(None);
            }
            self.reap()?;
        }
        // The init reports before it ends. A process that hangs in the kernel may keep the socket open without it.
        let ending = self.program.try_wait()?.unwrap_or(Ending::Killed(libc::SIGKILL));
        let usage = self.usage.clone().unwrap_or_default();
        Ok(Some(Exit { ending, oom_killed: usage.oom_kills.is_some_and(|kills| kills > 0), usage }))
    }

    /// Waits for the init's end, but not for longer than this. True if it has ended.
    fn ended(&self, timeout: Duration) -> io::Result<bool> {
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut fds, Some(&timeout)))? > 0)
    }

    /// Collects the init, which has ended, reads the usage and removes the cgroup.
    fn reap(&mut self) -> io::Result<()> {
        retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED))?;
        self.reaped = true;
        self.usage = Some(self.cgroup.usage());
        self.cgroup.kill();
        self.cgroup.remove();
        self.network = None;
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.reaped {
            // Nothing more can be done about a failure here; `cleanup` comes back to it.
            self.kill().ok();
            if !self.ended(DYING).unwrap_or(false) {
                self.kill_init().ok();
            }
            if self.ended(DYING / 2).unwrap_or(false) {
                self.reap().ok();
            }
        }
    }
}
