//! Starting a program inside the job: the way from a fork of the init to the exec.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, Stat, accessat, fstat, major, minor, mkdirat,
    statat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Rlimit, Uid, chdir, getrlimit, setrlimit, setsid, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::Trouble;
use crate::process::Process;
use crate::wire::{self, Report};
use crate::{rlimits, seccomp, sys};

/// A new terminal: the end for the launcher, and the end for the program.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// Where a program's standard streams come from.
pub(crate) enum Standard {
    Given([OwnedFd; 3]),
    Terminal(Terminal),
}

/// A program that was started on request.
pub(crate) struct Running {
    /// By which the launcher calls it.
    pub(crate) number: u64,
    pid: Pid,
    report: OwnedFd,
    /// Open until the exec has succeeded or failed.
    exec_pipe: Option<OwnedFd>,
}

impl Running {
    /// Forks, and lets the child become the program. The report socket comes back if that is impossible.
    pub(crate) fn start(
        process: Process,
        standard: Standard,
        report: OwnedFd,
    ) -> Result<Self, (Trouble, OwnedFd)> {
        if let Standard::Terminal(terminal) = &standard
            && let Err(error) = wire::send(&report, &Report::Terminal, &[terminal.master.as_fd()])
        {
            return Err((Trouble::new("pass the terminal on", error), report));
        }
        let forked = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|(read, write)| Ok((read, write, sys::fork_single_threaded()?)));
        match forked {
            Err(error) => Err((Trouble::new("fork", error), report)),
            Ok((read, _, Some(pid))) => Ok(Self { number: 0, pid, report, exec_pipe: Some(read) }),
            Ok((read, write, None)) => {
                drop(read);
                become_program(&process, standard, &report, write)
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn exec_pipe(&self) -> Option<BorrowedFd<'_>> {
        self.exec_pipe.as_ref().map(AsFd::as_fd)
    }

    /// The child has executed its program, or said why it couldn't: tells the launcher, once.
    pub(crate) fn exec_settled(&mut self) {
        let Some(pipe) = self.exec_pipe.take() else { return };
        let mut said = Vec::new();
        // A report that was cut short counts as none: the end of the program follows.
        File::from(pipe).read_to_end(&mut said).ok();
        let report = if said.is_empty() {
            Report::Started
        } else {
            serde_json::from_slice(&said).unwrap_or(Report::Started)
        };
        self.tell(&report);
    }

    pub(crate) fn tell(&self, report: &Report) {
        // Nobody listens any more: the launcher has let go of this program.
        wire::send(&self.report, report, &[]).ok();
    }
}

/// In the child: never returns.
fn become_program(process: &Process, standard: Standard, report: &OwnedFd, pipe: OwnedFd) -> ! {
    let trouble = match attempt(process, standard, report) {
        Err(trouble) => trouble,
        Ok(never) => match never {},
    };
    let bytes = serde_json::to_vec(&trouble.report()).unwrap_or_default();
    File::from(pipe).write_all(&bytes).ok();
    sys::exit(if trouble.source.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 })
}

fn attempt(
    process: &Process,
    standard: Standard,
    report: &OwnedFd,
) -> Result<std::convert::Infallible, Trouble> {
    wire::send(report, &Report::Born, &[])
        .map_err(|e| Trouble::new("report to the launcher", e))?;
    streams(standard).map_err(|e| Trouble::new("set up the standard streams", e))?;
    sys::default_signals();
    for limit in &process.rlimits {
        let clamped = rlimit(limit, process.clamp_rlimits)
            .map_err(|e| Trouble::new(format_args!("set the ulimit {}", limit.resource), e))?;
        if clamped {
            let text = format!(
                "the ulimit {} is as high as the host allows, not as high as asked for",
                limit.resource
            );
            wire::send(report, &Report::Warning(text), &[]).ok();
        }
    }
    umask(Mode::from_raw_mode(process.umask));
    confine(process)?;
    chdir(&process.cwd).map_err(|e| {
        Trouble::new(format_args!("change to the directory {}", process.cwd.display()), e)
    })?;
    let home = if process.own_home { other_home(process) } else { None };
    Err(execute(process, home.as_deref()))
}

/// A home for a user whose own is not there or can't be written: one in `/tmp`.
fn other_home(process: &Process) -> Option<OsString> {
    let usable = |path: &OsStr| {
        let inside = Path::new(path).join(".");
        accessat(CWD, inside, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok()
    };
    let (_, told) = process.env.iter().find(|(name, _)| name == "HOME")?;
    if usable(told) {
        return None;
    }
    let own = OsString::from(format!("/tmp/home-{}", process.uid));
    // Another program of the same user's may have made it; somebody else's is none.
    let made = mkdirat(CWD, &own, Mode::from_raw_mode(0o700));
    let is_ours = |stat: Stat| {
        stat.st_uid == process.uid
            && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && stat.st_mode & 0o022 == 0
    };
    let there = statat(CWD, &own, AtFlags::SYMLINK_NOFOLLOW);
    if matches!(made, Ok(()) | Err(Errno::EXIST)) && there.is_ok_and(is_ours) && usable(&own) {
        return Some(own);
    }
    usable(OsStr::new("/tmp")).then(|| "/tmp".into())
}

fn streams(standard: Standard) -> io::Result<()> {
    setsid()?;
    match standard {
        Standard::Given(streams) => {
            for (fd, number) in streams.iter().zip(0..) {
                match own_null(fd, number)? {
                    Some(null) => sys::place(null.as_fd(), number)?,
                    None => sys::place(fd.as_fd(), number)?,
                }
            }
        }
        Standard::Terminal(terminal) => {
            rustix::process::ioctl_tiocsctty(&terminal.slave)?;
            for number in 0..3 {
                sys::place(terminal.slave.as_fd(), number)?;
            }
        }
    }
    Ok(())
}

/// The job's own `/dev/null` in place of the host's: whoever has a descriptor of a node can change its rights.
///
/// Where a volume covers `/dev`, there is none, and a pipe that nobody writes to or reads from is as empty.
fn own_null(stream: &OwnedFd, number: i32) -> io::Result<Option<OwnedFd>> {
    let stat = fstat(stream)?;
    let is_null = |stat: &Stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3)
    };
    if !is_null(&stat) {
        return Ok(None);
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    if let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty())
        && is_null(&fstat(&null)?)
    {
        rustix::fs::fcntl_setfl(&null, OFlags::empty())?;
        return Ok(Some(null));
    }
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok(Some(if number == 0 { read } else { write }))
}

/// Sets a limit, never above what we have ourselves. True if it had to be clamped.
fn rlimit(wanted: &crate::spec::Rlimit, clamp: bool) -> io::Result<bool> {
    let resource = rlimits::resource(&wanted.resource).map_err(|_| Errno::INVAL)?;
    let ceiling = getrlimit(resource).maximum;
    let above = |value: Option<u64>| match (value, ceiling) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(value), Some(ceiling)) => value > ceiling,
    };
    let clamped = above(wanted.hard) || above(wanted.soft);
    if clamped && !clamp {
        return Err(Errno::PERM.into());
    }
    let cap = |value| if above(value) { ceiling } else { value };
    setrlimit(resource, Rlimit { current: cap(wanted.soft), maximum: cap(wanted.hard) })?;
    Ok(clamped)
}

/// Takes the job's user and gives up everything that the job may not have.
fn confine(process: &Process) -> Result<(), Trouble> {
    let held = capabilities(None).map_err(|e| Trouble::new("read capabilities", e))?.permitted;
    let wanted = CapabilitySet::from_bits_retain(process.capabilities.0);
    clear_ambient_capability_set().map_err(|e| Trouble::new("clear ambient capabilities", e))?;
    for capability in CapabilitySet::all().iter().filter(|c| !wanted.contains(*c)) {
        match remove_capability_from_bounding_set(capability) {
            // The kernel doesn't know it.
            Err(Errno::INVAL) | Ok(()) => {}
            Err(error) => return Err(Trouble::new("narrow the bounding set", error)),
        }
    }
    set_keep_capabilities(true).map_err(|e| Trouble::new("keep capabilities", e))?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    let groups: Vec<_> = process.groups.iter().map(|&g| Gid::from_raw(g)).collect();
    match set_thread_groups(&groups) {
        // Where the namespace has one group, the kernel forbids changing the list; then there is nothing to add either.
        Err(Errno::PERM) if groups.is_empty() => {}
        result => result.map_err(|e| Trouble::new("set the groups", e))?,
    }
    set_thread_res_gid(gid, gid, gid)
        .map_err(|e| Trouble::new(format_args!("become group {}", process.gid), e))?;
    set_thread_res_uid(uid, uid, uid)
        .map_err(|e| Trouble::new(format_args!("become user {}", process.uid), e))?;
    let programs = seccomp::programs(&process.seccomp, process.capabilities).map_err(|e| {
        Trouble::new(format_args!("build the system call filter ({e})"), Errno::INVAL)
    })?;
    let install = || programs.iter().try_for_each(|p| sys::install_filter(p));
    let failed = |e| Trouble::new("install the system call filter", e);
    if !process.no_new_privileges {
        // The filter may be installed by right of a capability only, which is about to go.
        raise(held)?;
        install().map_err(failed)?;
    }
    // An ordinary user's program has no capabilities, as everywhere; root's has those of the job.
    let effective = if process.uid == 0 { wanted & held } else { CapabilitySet::empty() };
    let sets =
        CapabilitySets { effective, permitted: effective, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(|e| Trouble::new("drop capabilities", e))?;
    if process.no_new_privileges {
        set_no_new_privs(true).map_err(|e| Trouble::new("forbid new privileges", e))?;
        install().map_err(failed)?;
    }
    Ok(())
}

/// Changing the user made the capabilities ineffective.
fn raise(held: CapabilitySet) -> Result<(), Trouble> {
    let sets =
        CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(|e| Trouble::new("keep capabilities", e))
}

/// Executes the program. Returns why it couldn't.
fn execute(process: &Process, home: Option<&OsStr>) -> Trouble {
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).unwrap_or_default();
    let argv: Vec<_> = process.argv.iter().map(|a| c_string(a)).collect();
    let envp: Vec<_> = process
        .env
        .iter()
        .map(|(name, value)| {
            let mut line = name.clone();
            line.push("=");
            line.push(home.filter(|_| name == "HOME").unwrap_or(value));
            c_string(&line)
        })
        .collect();
    let program = &process.argv[0];
    let mut refused = None;
    for candidate in candidates(program, &process.env) {
        let error = sys::execve(&c_string(&candidate), &argv, &envp);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) if !Path::new(&candidate).exists() => {}
            _ => {
                refused.get_or_insert((candidate, error));
            }
        }
    }
    let (what, source) = match refused {
        None => (format!("find {}", program.to_string_lossy()), Errno::NOENT.into()),
        // The file is there, so what is missing is the interpreter in its first line, or its loader.
        Some((path, error)) if error.raw_os_error() == Some(libc::ENOENT) => (
            format!("execute {}: its interpreter is missing", path.to_string_lossy()),
            Errno::NOEXEC.into(),
        ),
        Some((path, error)) => (format!("execute {}", path.to_string_lossy()), error),
    };
    Trouble { what, source, exec: true }
}

/// Where a program may be: itself if it has a slash, else in the directories of `PATH`.
fn candidates(program: &OsStr, env: &[(OsString, OsString)]) -> Vec<OsString> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_bytes());
    let path = path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(|&byte| byte == b':')
        .map(|directory| {
            let directory =
                if directory.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(directory) };
            Path::new(directory).join(program).into_os_string()
        })
        .collect()
}
