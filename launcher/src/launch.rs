//! Starting a job: the launcher's half.
//!
//! ```text
//! launcher                                  child of clone3, in new namespaces
//! --------                                  ----------------------------------
//! facts, plan, cgroup, sockets, memory file
//! clone3(namespaces, into the cgroup) ----> enters v1 cgroups, waits for a byte
//! writes the id maps              
//! sends the byte -------------------------> opens its own binary on a read-only clone of its mount,
//!                                           lets only its own descriptors through, execveat
//!                                           = init: carries the steps out, forks
//! learns the pid <------------------------- program: takes its user, drops rights, installs the filter, execve
//! returns the Job <------------------------ init: the exec has happened, or why not
//! ```
//!
//! Why another exec of this binary: the caller has threads, so its child may not run ordinary code; a copy of its memory
//! (caches of the FUSE server) would stay with every job; and `/proc/1/exe` must not be a writable way to this binary.
//!
//! The thread that serves the job's root must not be the one that calls [`launch`]: the init reads from that root.

use std::cell::Cell;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{Pid, Uid};
use rustix::thread::CapabilitySet;

use crate::ahead::{self, Ahead};
use crate::bridge::{INNER, Link};
use crate::cgroup::{Cgroup, LimitError};
use crate::error::LaunchError;
use crate::facts::HostFacts;
use crate::ids::{self, IdMaps};
use crate::init;
use crate::job::{Job, Program};
use crate::links::Links;
use crate::network;
use crate::plan::{Plan, plan};
use crate::process::Process;
use crate::spec::{Namespace, Namespaces, Network, Root, Spec};
use crate::sys::{self, ChildPlan, EarlyStage, Executable};
use crate::volumes;
use crate::wire::{self, INIT_NAME, Start, Streams};

/// The standard streams of a program.
#[derive(Debug)]
pub enum Stdio {
    /// These descriptors.
    Streams {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A new terminal of this size, whose other end is [`Program::take_terminal`]; 0 leaves the size open.
    Terminal {
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
}

impl Stdio {
    /// The caller's own streams.
    ///
    /// # Errors
    /// One of them is closed, or there are too many open files.
    pub fn inherit() -> io::Result<Self> {
        Ok(Self::Streams {
            stdin: io::stdin().as_fd().try_clone_to_owned()?,
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }

    /// No input, and output to nowhere.
    ///
    /// # Errors
    /// `/dev/null` can't be opened.
    pub fn null() -> io::Result<Self> {
        let open = |write: bool| {
            fs::OpenOptions::new().read(!write).write(write).open("/dev/null").map(OwnedFd::from)
        };
        Ok(Self::Streams { stdin: open(false)?, stdout: open(true)?, stderr: open(true)? })
    }

    /// The same with descriptors that are in nobody's way in the init.
    fn above_two(self) -> io::Result<Self> {
        let move_up = |fd: OwnedFd| if fd.as_raw_fd() < 3 { fd.try_clone() } else { Ok(fd) };
        Ok(match self {
            Self::Streams { stdin, stdout, stderr } => Self::Streams {
                stdin: move_up(stdin)?,
                stdout: move_up(stdout)?,
                stderr: move_up(stderr)?,
            },
            terminal => terminal,
        })
    }

    /// A program may open its own streams anew (`/dev/stdout`), for which a pipe has to be its user's. Of files and
    /// terminals others may have a say; and where a user can't be given anything, all is as it was.
    pub(crate) fn give_pipes(&self, uid: u32, ids: Option<&IdMaps>) {
        let Some(outside) = ids.map_or(Some(uid), |ids| ids.outside(uid)) else { return };
        for stream in self.parts().1 {
            let is_pipe = rustix::fs::fstat(stream)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
            if is_pipe {
                rustix::fs::fchown(stream, Some(Uid::from_raw(outside)), None).ok();
            }
        }
    }

    pub(crate) fn parts(&self) -> (Streams, Vec<BorrowedFd<'_>>) {
        match self {
            Self::Streams { stdin, stdout, stderr } => {
                (Streams::Given, vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
            }
            Self::Terminal { rows, columns } => {
                (Streams::Terminal { rows: *rows, columns: *columns }, Vec::new())
            }
        }
    }
}

static HOOKED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static STAYS: Cell<bool> = const { Cell::new(false) };
}

/// Says that the calling thread ends with its process and not before, as the first thread does: jobs that it launches are
/// killed by the kernel when it ends.
pub fn this_thread_stays() {
    STAYS.set(true);
}

/// Whether a job may be bound to the life of the calling thread.
pub(crate) fn thread_stays() -> bool {
    STAYS.get() || rustix::thread::gettid() == rustix::process::getpid()
}

/// Becomes a job's init if this process was started as one, and never returns then.
///
/// Every binary that calls [`launch`] must call this first thing in `main`, before it starts a thread: a job's init is the
/// same binary, started again.
pub fn init_main() {
    HOOKED.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != INIT_NAME) {
        return;
    }
    let numbers: Option<Vec<i32>> = arguments.map(|a| a.to_str()?.parse().ok()).collect();
    let numbers = numbers.unwrap_or_default();
    let code = match ahead::adopt(&numbers) {
        Some(sockets) => sockets.map(ahead::run),
        None => init::Inherited::adopt(&numbers).map(init::run),
    };
    sys::exit(code.unwrap_or(125))
}

/// Starts a job.
///
/// Returns when its program runs. The job ends when its program does, when the [`Job`] is dropped, or when the process
/// that called this ends, however it ends.
///
/// # Errors
/// The job could not be started; nothing of it is left.
pub fn launch(spec: &Spec, stdio: Stdio) -> Result<Job, LaunchError> {
    check_hooked()?;
    let facts = HostFacts::read(spec)?;
    let plan = plan(spec, &facts)?;
    let mut unmet = Vec::new();
    let cgroup = make_cgroup(spec, &facts, &mut unmet)?;
    start(spec, plan, stdio, cgroup, None, unmet)
}

/// Whether this binary becomes a job's init when it is started as one.
pub(crate) fn check_hooked() -> Result<(), LaunchError> {
    if HOOKED.load(Ordering::Relaxed) { Ok(()) } else { Err(LaunchError::NoInit) }
}

/// The job's cgroup. Limits that can't be had, and needn't be, go to `unmet`.
pub(crate) fn make_cgroup(
    spec: &Spec,
    facts: &HostFacts,
    unmet: &mut Vec<LimitError>,
) -> Result<Cgroup, LimitError> {
    let unmet = spec.best_effort_limits.then_some(unmet);
    Cgroup::create(&facts.cgroups, &spec.id, &spec.limits, unmet)
}

/// Starts a job in its cgroup, by an init that was started ahead or by a new one.
pub(crate) fn start(
    spec: &Spec,
    plan: Plan,
    stdio: Stdio,
    cgroup: Cgroup,
    ahead: Option<Ahead>,
    unmet: Vec<LimitError>,
) -> Result<Job, LaunchError> {
    match start_init(spec, plan, stdio, cgroup.clone(), ahead) {
        Ok(mut job) => {
            job.warn(unmet.iter().map(limit_warning));
            Ok(job)
        }
        Err(error) => {
            // So little that not even what the kernel says of it can be relied on.
            let starved = spec.limits.memory.is_some_and(|bytes| bytes < FEW_BYTES)
                || cgroup.usage().oom_kills.is_some_and(|kills| kills > 0);
            cgroup.kill();
            cgroup.remove();
            let died = matches!(error, LaunchError::InitDied | LaunchError::Talk(_));
            Err(if died && starved { LaunchError::Memory } else { error })
        }
    }
}

/// With less memory a program may be gone before it was one.
const FEW_BYTES: u64 = 6 << 20;

fn limit_warning(error: &LimitError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn start_init(
    spec: &Spec,
    plan: Plan,
    stdio: Stdio,
    cgroup: Cgroup,
    ahead: Option<Ahead>,
) -> Result<Job, LaunchError> {
    let own_users = plan.ids.is_some();
    let (steps, all) = (plan.steps.clone(), plan.hands_over);
    let mut job = match ahead {
        Some(ahead) => adopt(&spec.root, plan, stdio, ahead)?,
        None => clone_job(&spec.namespaces, &spec.root, plan, stdio, cgroup)?,
    };
    if spec.namespaces.network == Network::Private {
        let helper = connect(network::program(job.pid(), own_users, &spec.ports, spec.host))?;
        job.connect(helper);
        job.warn(network::warning(spec));
    }
    if let Some(link) = &spec.link {
        let Link { name, bridge, address, .. } = link;
        Links::new()
            .and_then(|mut links| links.add_pair(name, bridge, INNER, address.addr(), job.pid()))
            .map_err(|source| LaunchError::Link { bridge: bridge.clone(), source })?;
    }
    let mounts = volumes::open(&steps, all, job.pid(), |ids| {
        // A process that only waits.
        let namespaces = Namespaces { user: Namespace::New, ..SHARED };
        let process = network::program(job.pid(), false, &[], true);
        let plan = Plan { steps: Vec::new(), hands_over: false, ids: Some(ids), process };
        let root = Root::Tree("/".into());
        let stdio = Stdio::null().map_err(LaunchError::Talk)?;
        let helper = clone_job(&namespaces, &root, plan, stdio, Cgroup::default())?;
        Ok((helper.pid(), helper))
    })?;
    job.release(&mounts)?;
    Ok(job)
}

/// All of the launcher's own.
const SHARED: Namespaces = Namespaces {
    user: Namespace::Host,
    pid: Namespace::Host,
    ipc: Namespace::Host,
    uts: Namespace::Host,
    cgroup: Namespace::Host,
    time: Namespace::Host,
    network: Network::Host,
};

/// Starts the helper that makes a private network, and waits until it works.
fn connect(program: Process) -> Result<Job, LaunchError> {
    // Without the right to a process namespace its init has to end it.
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    let pid = if may { Namespace::New } else { Namespace::Host };
    let namespaces = Namespaces { pid, ..SHARED };
    let plan = Plan { steps: Vec::new(), hands_over: false, ids: None, process: program };
    let (stdio, words) = network::streams().map_err(LaunchError::Talk)?;
    let mut helper =
        clone_job(&namespaces, &Root::Tree("/".into()), plan, stdio, Cgroup::default())?;
    helper.release(&[]).map_err(|error| match error {
        LaunchError::Exec { source, .. } => LaunchError::Network(source),
        other => other,
    })?;
    network::wait(words)?;
    Ok(helper)
}

/// Makes a job of an init that was started ahead; it waits to be released.
fn adopt(root: &Root, plan: Plan, stdio: Stdio, ahead: Ahead) -> Result<Job, LaunchError> {
    let Ahead { pid, pidfd, control, report, cgroup } = ahead;
    let stdio = stdio.above_two().map_err(LaunchError::Talk)?;
    stdio.give_pipes(plan.process.uid, plan.ids.as_ref());
    let start = Start::new(&plan, stdio.parts().0, true);
    let memory = wire::to_memory("mica-plan", &start);
    let mut job = Job::new(pid, pidfd, control, Program::new(report), cgroup, start, root.clone());
    job.begin_with(memory.map_err(LaunchError::Talk)?, stdio);
    Ok(job)
}

/// Makes the namespaces and a process in them that waits to be released.
fn clone_job(
    namespaces: &Namespaces,
    root: &Root,
    plan: Plan,
    stdio: Stdio,
    cgroup: Cgroup,
) -> Result<Job, LaunchError> {
    let talk = LaunchError::Talk;
    let stdio = stdio.above_two().map_err(talk)?;
    stdio.give_pipes(plan.process.uid, plan.ids.as_ref());
    let (streams, descriptors) = stdio.parts();
    let own_pids = namespaces.pid == Namespace::New;
    let start = Start::new(&plan, streams, own_pids);
    let memory = wire::to_memory("mica-plan", &start).map_err(talk)?;
    let (control, control_of_init) = wire::pair().map_err(talk)?;
    let (report, report_of_init) = wire::report_pair().map_err(talk)?;
    // A helper without surroundings of its own is no job.
    let for_job = !start.steps.is_empty();
    let executable = OwnExecutable::open(for_job, start.handed_over).map_err(LaunchError::Init)?;
    let keep: Vec<i32> = [memory.as_fd(), control_of_init.as_fd(), report_of_init.as_fd()]
        .iter()
        .chain(&descriptors)
        .map(AsRawFd::as_raw_fd)
        .collect();
    let entrances =
        cgroup.entrances().map_err(|(path, source)| LaunchError::EnterCgroup { path, source })?;
    let child = ChildPlan {
        go: control_of_init.as_fd(),
        other_end: control.as_fd(),
        report: report_of_init.as_fd(),
        executable: executable.as_ref(),
        argv: arguments(&keep),
        tasks: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
        keep,
        ids: plan.ids.as_ref().and_then(setup_ids),
        // Root keeps its capabilities across the exec anyway.
        ambient: plan.ids.is_some() || !rustix::process::geteuid().is_root(),
    };
    let birthplace = cgroup.birthplace();
    let (pid, pidfd) = sys::clone_init(
        &child,
        clone_flags(namespaces, for_job),
        birthplace.as_ref().map(AsFd::as_fd),
    )
    .map_err(LaunchError::Namespaces)?;
    let job = Job::new(pid, pidfd, control, Program::new(report), cgroup, start, root.clone());
    drop((control_of_init, report_of_init, stdio));
    if let Some(maps) = &plan.ids {
        write_maps(pid, maps).map_err(LaunchError::Ids)?;
    }
    Ok(job)
}

pub(crate) fn arguments(keep: &[i32]) -> Vec<CString> {
    let texts = std::iter::once(INIT_NAME.to_owned()).chain(keep.iter().map(i32::to_string));
    texts.map(|text| CString::new(text).unwrap_or_default()).collect()
}

/// Whom the child becomes before its exec. Root, where there is one: then its capabilities survive by themselves.
pub(crate) fn setup_ids(maps: &IdMaps) -> Option<(u32, u32)> {
    if maps.covers(0, 0) {
        return Some((0, 0));
    }
    Some((maps.uids.first()?.inside, maps.gids.first()?.inside))
}

pub(crate) fn clone_flags(namespaces: &Namespaces, mounts: bool) -> u64 {
    let new =
        |namespace: Namespace, flag: i32| if namespace == Namespace::New { flag as u64 } else { 0 };
    let mounts = if mounts { libc::CLONE_NEWNS as u64 } else { 0 };
    mounts
        | new(namespaces.user, libc::CLONE_NEWUSER)
        | new(namespaces.pid, libc::CLONE_NEWPID)
        | new(namespaces.ipc, libc::CLONE_NEWIPC)
        | new(namespaces.uts, libc::CLONE_NEWUTS)
        | new(namespaces.time, libc::CLONE_NEWTIME)
        | if namespaces.network == Network::Host { 0 } else { libc::CLONE_NEWNET as u64 }
}

pub(crate) fn write_maps(pid: Pid, maps: &IdMaps) -> io::Result<()> {
    let file = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
    if maps.deny_setgroups {
        fs::write(file("setgroups"), "deny")?;
    }
    fs::write(file("gid_map"), ids::map_text(&maps.gids))?;
    fs::write(file("uid_map"), ids::map_text(&maps.uids))
}

/// This binary, for the child to execute.
pub(crate) enum OwnExecutable {
    Path(CString),
    Sealed(&'static OwnedFd),
    Plain(OwnedFd),
}

impl OwnExecutable {
    /// Out of reach of a job, or as it is where there is none.
    fn open(for_job: bool, hands_over: bool) -> io::Result<Self> {
        if for_job {
            // Whoever the child becomes may not get there.
            return if hands_over { Self::sealed_off() } else { own_executable() };
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self::Plain(rustix::fs::open("/proc/self/exe", flags, Mode::empty())?))
    }

    /// On a read-only mount of its own, which the caller makes; or the sealed copy.
    pub(crate) fn sealed_off() -> io::Result<Self> {
        match own_executable()? {
            Self::Path(path) => {
                let path = Path::new(OsStr::from_bytes(path.as_bytes()));
                let mount = volumes::clone(path, false, false)?;
                sys::mount_setattr(mount.as_fd(), false, sys::MOUNT_ATTR_RDONLY, 0)?;
                Ok(Self::Plain(mount))
            }
            executable => Ok(executable),
        }
    }

    pub(crate) fn as_ref(&self) -> Executable<'_> {
        match self {
            Self::Path(path) => Executable::Path(path.clone()),
            Self::Sealed(fd) => Executable::File(fd.as_fd()),
            Self::Plain(fd) => Executable::File(fd.as_fd()),
        }
    }
}

/// By its path, if that still leads to the file we were started from; after an upgrade, by a sealed copy in memory.
fn own_executable() -> io::Result<OwnExecutable> {
    static SEALED: OnceLock<OwnedFd> = OnceLock::new();
    let link = "/proc/self/exe";
    let running = fs::metadata(link)?;
    let path = fs::read_link(link)?;
    if fs::metadata(&path)
        .is_ok_and(|there| (there.dev(), there.ino()) == (running.dev(), running.ino()))
    {
        return Ok(OwnExecutable::Path(CString::new(path.as_os_str().as_bytes())?));
    }
    if SEALED.get().is_none() {
        let copy =
            rustix::fs::memfd_create("mica", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut to = fs::File::from(copy);
        io::copy(&mut fs::File::open(link)?, &mut to)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&to, seals)?;
        // Two threads may come here at once; one copy is dropped.
        SEALED.get_or_init(|| to.into());
    }
    SEALED.get().map(OwnExecutable::Sealed).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What a child said that failed before it was an init.
pub(crate) fn early_error(message: &[u8], cgroup: &Cgroup) -> Option<LaunchError> {
    let (stage, detail, source) = EarlyStage::decode(message)?;
    Some(match stage {
        EarlyStage::Ids => LaunchError::Ids(source),
        EarlyStage::Cgroup => {
            let path = cgroup
                .v1
                .get(usize::from(detail))
                .map(|directory| directory.path.clone())
                .unwrap_or_default();
            LaunchError::EnterCgroup { path, source }
        }
        EarlyStage::OpenSelf
        | EarlyStage::SealSelf
        | EarlyStage::Capabilities
        | EarlyStage::Descriptors
        | EarlyStage::Exec => LaunchError::Init(source),
    })
}
