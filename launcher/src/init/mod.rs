//! The job's init: process 1 of the job.
//!
//! It is this same binary, started again by `launch` from a read-only clone of its own mount (or a sealed copy), so
//! `/proc/1/exe` cannot be written from inside the job whatever the job's rights, and nothing of the launcher's memory is
//! in its address space. It cannot be traced (not dumpable), has no descriptors but its sockets, and no thread but one.
//!
//! It builds the job's surroundings step by step, starts the program, reaps whatever ends, passes signals on, starts further
//! programs on demand (they inherit the job's namespaces, cgroup and filter without anybody having to enter them) and
//! ends with the job's own program; the kernel then kills the rest of the process namespace. When the launcher dies, the
//! control socket ends, and so does the init.

mod family;
mod hooks;
mod lock;
mod program;
mod setup;
mod targets;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, set_child_subreaper, set_dumpable_behavior,
    set_parent_process_death_signal, setsid, wait,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::process::Process;
use crate::spec::Seccomp;
use crate::sys;
use crate::wire::{self, Command, Failure, Message, Report, Start, Streams};
use program::{Running, Standard};

/// A step that failed, in words, with the kernel's reason.
pub(crate) struct Trouble {
    pub(crate) what: String,
    pub(crate) source: io::Error,
    pub(crate) exec: bool,
}

impl Trouble {
    pub(crate) fn new(what: impl ToString, source: impl Into<io::Error>) -> Self {
        Self { what: what.to_string(), source: source.into(), exec: false }
    }

    fn report(&self) -> Report {
        let errno = self.source.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        Report::Failed(Failure { what: self.what.clone(), errno, exec: self.exec })
    }
}

/// The descriptors that `launch` passes, by number.
pub(crate) struct Inherited {
    pub(crate) plan: OwnedFd,
    pub(crate) control: OwnedFd,
    pub(crate) report: OwnedFd,
    pub(crate) stdio: Option<[OwnedFd; 3]>,
}

impl Inherited {
    /// From the arguments after the name: plan, control, report and perhaps three streams.
    pub(crate) fn adopt(arguments: &[i32]) -> io::Result<Self> {
        let mut descriptors = arguments.iter().map(|&number| sys::adopt(number));
        let mut next = || descriptors.next().unwrap_or(Err(io::ErrorKind::InvalidInput.into()));
        let (plan, control, report) = (next()?, next()?, next()?);
        let stdio = if arguments.len() > 3 { Some([next()?, next()?, next()?]) } else { None };
        Ok(Self { plan, control, report, stdio })
    }
}

/// Tells the launcher why there will be no job; the exit code for that.
pub(crate) fn tell(report: &OwnedFd, trouble: &Trouble) -> i32 {
    // If the launcher is gone there is nobody to tell.
    wire::send(report, &trouble.report(), &[]).ok();
    1
}

/// Runs the init to its end and returns its exit code.
pub(crate) fn run(inherited: Inherited) -> i32 {
    let Inherited { plan, control, report, stdio } = inherited;
    let tell = |trouble: &Trouble| tell(&report, trouble);
    let start: Start = match wire::from_memory(plan) {
        Ok(start) => start,
        Err(source) => return tell(&Trouble::new("read the plan", source)),
    };
    let signals = match prepare(&start) {
        Ok(signals) => signals,
        Err(trouble) => return tell(&trouble),
    };
    let console = match setup::carry_out(&start.steps, start.stdio, &control, start.handed_over) {
        Ok(console) => console,
        Err(trouble) => return tell(&trouble),
    };
    if !start.steps.is_empty() {
        leave_streams();
    }
    let standard = match (stdio, console) {
        (_, Some(terminal)) => Standard::Terminal(terminal),
        (Some(streams), None) => Standard::Given(streams),
        (None, None) => return tell(&Trouble::new("find the standard streams", Errno::BADF)),
    };
    if let Err(trouble) = give_up_rights(&start.process) {
        return tell(&trouble);
    }
    let mut init = Init { control, signals, running: Vec::new(), own_pids: start.own_pids };
    match Running::start(start.process, standard, report) {
        Ok(main) => init.running.push(main),
        Err((trouble, report)) => return self::tell(&report, &trouble),
    }
    init.serve()
}

/// Puts the job's own `/dev/null` in the place of the launcher's streams: a job that sees its init and may trace it finds no
/// node of the host's there, which it could change.
fn leave_streams() {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty()) {
        for number in 0..3 {
            // Nothing is read from or written to them.
            sys::place(null.as_fd(), number).ok();
        }
    }
}

/// Who may make any system call could read the keys of the caller's session. Under the usual filter nobody gets at keys, and
/// a keyring, of which each user has few, is saved.
fn leave_keys(seccomp: &Seccomp) -> Result<(), Trouble> {
    if *seccomp == Seccomp::Default {
        return Ok(());
    }
    match sys::new_session_keyring() {
        // No keys in this kernel, or none for whoever launches: then there are none for the job either.
        Err(error) if [Some(libc::ENOSYS), Some(libc::EPERM)].contains(&error.raw_os_error()) => {
            Ok(())
        }
        result => result.map_err(|e| Trouble::new("leave the caller's keys", e)),
    }
}

/// Makes this process fit to be an init.
fn prepare(start: &Start) -> Result<OwnedFd, Trouble> {
    if let Some(badness) = start.process.oom_score_adj {
        // Here, for all programs at once: an untraceable process of an ordinary user can't write its own file.
        std::fs::write("/proc/self/oom_score_adj", badness.to_string())
            .map_err(|e| Trouble::new("set the badness when memory runs out", e))?;
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| Trouble::new("forbid tracing the init", e))?;
    // It was set for the time up to here in any case.
    let signal = start.die_with_parent.then_some(Signal::KILL);
    set_parent_process_death_signal(signal)
        .map_err(|e| Trouble::new("die with the launcher", e))?;
    rustix::process::umask(rustix::fs::Mode::empty());
    leave_keys(&start.process.seccomp)?;
    // A session of our own: no terminal of the caller's can signal us, or be pushed input into.
    setsid().map_err(|e| Trouble::new("start a session", e))?;
    if !start.own_pids {
        set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| Trouble::new("adopt orphans", e))?;
    }
    rustix::thread::set_name(c"mica-init").map_err(|e| Trouble::new("name the init", e))?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())
        .map_err(|e| Trouble::new("open /dev/null", e))?;
    for number in 0..3 {
        sys::place(null.as_fd(), number)
            .map_err(|e| Trouble::new("detach the standard streams", e))?;
    }
    sys::signal_descriptor().map_err(|e| Trouble::new("watch signals", e))
}

/// Keeps only what starting the job's programs takes: their own rights, and to change user and to narrow what is held.
fn give_up_rights(process: &Process) -> Result<(), Trouble> {
    let held = capabilities(None).map_err(|e| Trouble::new("read capabilities", e))?.permitted;
    let mut needed = CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::SETPCAP
        | CapabilitySet::KILL;
    if !process.no_new_privileges {
        // To install the filter.
        needed |= CapabilitySet::SYS_ADMIN;
    }
    let kept = held & (needed | CapabilitySet::from_bits_retain(process.capabilities.0));
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(|e| Trouble::new("give up capabilities", e))
}

/// The state of a running init.
struct Init {
    control: OwnedFd,
    signals: OwnedFd,
    /// The programs that were started on request; the first is the job's own.
    running: Vec<Running>,
    own_pids: bool,
}

impl Init {
    /// Serves until the job's own program ends or the launcher is gone.
    fn serve(mut self) -> i32 {
        loop {
            let (control, signalled, starting) = match self.wait_for_events() {
                Ok(events) => events,
                Err(Errno::INTR) => continue,
                Err(_) => return self.finish(1),
            };
            for index in starting {
                self.running[index].exec_settled();
            }
            if signalled {
                while let Some(signal) = sys::next_signal(self.signals.as_fd()) {
                    if signal != libc::SIGCHLD {
                        self.pass_on(signal);
                    }
                }
                if let Some(code) = self.reap() {
                    return self.finish(code);
                }
            }
            if control && !self.obey() {
                return self.finish(1);
            }
        }
    }

    fn wait_for_events(&self) -> Result<(bool, bool, Vec<usize>), Errno> {
        let mut fds = vec![
            PollFd::new(&self.control, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        let starting: Vec<usize> =
            (0..self.running.len()).filter(|&i| self.running[i].exec_pipe().is_some()).collect();
        fds.extend(
            starting
                .iter()
                .filter_map(|&i| self.running[i].exec_pipe())
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        poll(&mut fds, None)?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let settled = starting
            .into_iter()
            .zip(&ready[2..])
            .filter(|(_, ready)| **ready)
            .map(|(index, _)| index)
            .collect();
        Ok((ready[0], ready[1], settled))
    }

    fn pass_on(&self, signal: i32) {
        if let Some(main) = self.running.first() {
            // It may have ended already.
            sys::kill(Some(main.pid()), signal).ok();
        }
    }

    /// Collects whatever has ended. The exit code of the init if that was the job's own program.
    fn reap(&mut self) -> Option<i32> {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) | Err(_) => return None,
            };
            let Some(index) = self.running.iter().position(|program| program.pid() == pid) else {
                continue;
            };
            let report = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Report::Exited(code),
                (None, Some(signal)) => Report::Killed(signal),
                (None, None) => continue,
            };
            let mut program = self.running.remove(index);
            program.exec_settled();
            program.tell(&report);
            if index == 0 {
                return Some(0);
            }
        }
    }

    /// Reads one command. False if the launcher is gone.
    fn obey(&mut self) -> bool {
        let message = match wire::receive(&self.control, RecvFlags::empty()) {
            Ok(Some(message)) => message,
            Ok(None) | Err(_) => return false,
        };
        match serde_json::from_slice(&message.bytes) {
            Ok(Command::Signal(signal)) => self.pass_on(signal),
            Ok(Command::Exec(streams, number)) => self.exec(streams, number, message),
            Ok(Command::End(number)) => {
                if let Some(program) = self.running.iter().find(|other| other.number == number) {
                    family::kill(program.pid());
                }
            }
            // Of our own process namespace, all but ourselves: kill(2). With none there is nobody to stop.
            Ok(Command::Freeze(frozen)) if self.own_pids => {
                let signal = if frozen { libc::SIGSTOP } else { libc::SIGCONT };
                sys::kill(None, signal).ok();
            }
            Ok(Command::Freeze(_) | Command::Mount | Command::Begin) => {}
            // The other side is the same binary; whatever this was, nobody waits for an answer.
            Err(_) => {}
        }
        true
    }

    fn exec(&mut self, streams: Streams, number: u64, message: Message) {
        let mut descriptors = message.descriptors.into_iter();
        let (Some(process), Some(report)) = (descriptors.next(), descriptors.next()) else {
            return;
        };
        let standard = match streams {
            Streams::Given => match (descriptors.next(), descriptors.next(), descriptors.next()) {
                (Some(stdin), Some(stdout), Some(stderr)) => {
                    Ok(Standard::Given([stdin, stdout, stderr]))
                }
                _ => Err(Trouble::new("find the standard streams", Errno::BADF)),
            },
            Streams::Terminal { rows, columns } => {
                setup::terminal(rows, columns).map(Standard::Terminal)
            }
        };
        let process =
            wire::from_memory::<Process>(process).map_err(|e| Trouble::new("read the program", e));
        let started = match (standard, process) {
            (Ok(standard), Ok(process)) => Running::start(process, standard, report),
            (Err(trouble), _) | (_, Err(trouble)) => Err((trouble, report)),
        };
        match started {
            Ok(mut program) => {
                program.number = number;
                self.running.push(program);
            }
            Err((trouble, report)) => drop(wire::send(&report, &trouble.report(), &[])),
        }
    }

    /// Ends the job. In a process namespace of its own the kernel does that when we exit.
    fn finish(&self, code: i32) -> i32 {
        if !self.own_pids {
            kill_descendants();
        }
        code
    }
}

/// Kills all children, and what becomes our child when they die, until there are none.
fn kill_descendants() {
    loop {
        let me = rustix::process::getpid().as_raw_nonzero();
        let children =
            std::fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            sys::kill(Some(pid), libc::SIGKILL).ok();
        }
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
