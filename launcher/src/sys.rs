//! The raw system calls: what rustix does not wrap, and the few lines between `clone3` and `execveat`.
//!
//! The calling process has threads (its FUSE server), so the child of [`clone_init`] may only do what is safe in a
//! signal handler: no allocation, no locks, no Rust runtime. Everything it touches is prepared beforehand in a
//! [`ChildPlan`]; it makes raw system calls until it becomes a fresh copy of this binary, which is an ordinary
//! single-threaded program again.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// What a child failed at before it could run any Rust code; sent as one byte, followed by a detail and errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EarlyStage {
    Ids = 1,
    Capabilities = 2,
    OpenSelf = 3,
    SealSelf = 4,
    Descriptors = 5,
    Exec = 6,
    /// The detail is the index of the file.
    Cgroup = 7,
}

impl EarlyStage {
    /// Decodes the six bytes a child sends.
    pub(crate) fn decode(message: &[u8]) -> Option<(Self, u8, io::Error)> {
        let [stage, detail, errno @ ..] = message else { return None };
        let errno = i32::from_ne_bytes(errno.try_into().ok()?);
        let stage = match stage {
            1 => Self::Ids,
            2 => Self::Capabilities,
            3 => Self::OpenSelf,
            4 => Self::SealSelf,
            5 => Self::Descriptors,
            6 => Self::Exec,
            7 => Self::Cgroup,
            _ => return None,
        };
        Some((stage, *detail, io::Error::from_raw_os_error(errno)))
    }
}

/// The program the child becomes.
pub(crate) enum Executable<'a> {
    /// A path, opened in the child as a read-only clone of its mount.
    Path(CString),
    /// A file: a sealed copy in memory, or this binary itself where no job comes near it.
    File(BorrowedFd<'a>),
}

/// All that the child of [`clone_init`] needs, ready to be passed to system calls.
pub(crate) struct ChildPlan<'a> {
    /// The child waits for one byte from here; end of file means that the parent died.
    pub(crate) go: BorrowedFd<'a>,
    /// The launcher's end of the same socket. The child's copy must go, or the end of the launcher would not be seen.
    pub(crate) other_end: BorrowedFd<'a>,
    /// Where failures are written.
    pub(crate) report: BorrowedFd<'a>,
    pub(crate) executable: Executable<'a>,
    pub(crate) argv: Vec<CString>,
    /// `tasks` files of cgroups of version 1. A thread that moves itself doesn't take the lock which makes moving another
    /// process wait for every processor.
    pub(crate) tasks: Vec<RawFd>,
    /// Descriptors that survive the exec; every other one is closed by it.
    pub(crate) keep: Vec<RawFd>,
    /// User and group to take before the exec, where the current ones have no meaning in the new user namespace.
    pub(crate) ids: Option<(u32, u32)>,
    /// Keep capabilities across the exec although the user is not root in the namespace.
    pub(crate) ambient: bool,
}

const LAST_CAPABILITY: libc::c_ulong = 63;

/// Starts the init of a job in new namespaces. Returns its pid and a pidfd.
///
/// # Errors
/// The errno of `clone3`.
pub(crate) fn clone_init(
    plan: &ChildPlan<'_>,
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(Pid, OwnedFd)> {
    let mut argv: Vec<*const libc::c_char> = plan.argv.iter().map(|a| a.as_ptr()).collect();
    argv.push(std::ptr::null());
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers; all zero is the documented default of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let previous = block_signals()?;
    // SAFETY: args is a valid clone_args of the size given. No CLONE_VM: the child gets its own copy of the address
    // space and its only thread returns here; it then runs `become_init`, which makes system calls only.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&args), size_of::<libc::clone_args>())
    };
    if pid == 0 {
        // SAFETY: we are the only thread of the child; argv and envp are null-terminated arrays of live C strings.
        unsafe { become_init(plan, argv.as_ptr(), envp.as_ptr()) }
    }
    let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    restore_signals(&previous)?;
    let pid =
        Pid::from_raw(result? as i32).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))?;
    // SAFETY: the kernel stored a new descriptor there, as CLONE_PIDFD was given and the call succeeded.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid, pidfd))
}

/// The child's way from `clone3` to `execveat`: system calls only.
///
/// # Safety
/// Only in a fresh single-threaded child; `argv` and `envp` must be null-terminated arrays of C strings.
unsafe fn become_init(
    plan: &ChildPlan<'_>,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
) -> ! {
    let report = plan.report.as_raw_fd();
    // SAFETY: plain integers. The launching thread can't end while it waits for us, so this means its process; nothing else
    // owns this copy of the descriptor.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::close(plan.other_end.as_raw_fd());
    }
    for (index, &tasks) in plan.tasks.iter().enumerate() {
        // SAFETY: writes one live byte; 0 stands for the writer.
        if unsafe { libc::write(tasks, b"0".as_ptr().cast(), 1) } != 1 {
            fail_with(report, EarlyStage::Cgroup, index as u8);
        }
    }
    let mut byte = 0u8;
    // SAFETY: reads one byte into a live byte.
    let got = unsafe { libc::read(plan.go.as_raw_fd(), std::ptr::from_mut(&mut byte).cast(), 1) };
    if got != 1 {
        exit(1);
    }
    take_ids(plan, report);
    let executable = open_executable(plan, report);
    // SAFETY: marks descriptors; no memory is involved.
    let mut failed =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) }
            != 0;
    for &fd in &plan.keep {
        // SAFETY: as above; the descriptors are those of the plan.
        failed |= unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0;
    }
    if failed {
        fail(report, EarlyStage::Descriptors);
    }
    // SAFETY: argv and envp as promised by the caller; the empty path with AT_EMPTY_PATH means the descriptor itself.
    unsafe {
        libc::syscall(libc::SYS_execveat, executable, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH)
    };
    fail(report, EarlyStage::Exec)
}

/// In the child: becomes whoever builds the job's surroundings, with all rights in its namespace.
fn take_ids(plan: &ChildPlan<'_>, report: RawFd) {
    if let Some((uid, gid)) = plan.ids {
        // SAFETY: plain integers. The raw calls change this thread, which is the only one.
        let failed = unsafe {
            libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0
        };
        if failed {
            fail(report, EarlyStage::Ids);
        }
    }
    if plan.ambient && !raise_ambient() {
        fail(report, EarlyStage::Capabilities);
    }
}

/// In the child: this binary in a form that can't be written through what the job sees of it.
fn open_executable(plan: &ChildPlan<'_>, report: RawFd) -> RawFd {
    match &plan.executable {
        Executable::File(fd) => fd.as_raw_fd(),
        Executable::Path(path) => {
            let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
            // SAFETY: path is a live C string.
            let fd =
                unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
            if fd < 0 {
                fail(report, EarlyStage::OpenSelf);
            }
            if mount_setattr_raw(fd as RawFd, libc::AT_EMPTY_PATH, MOUNT_ATTR_RDONLY, 0, 0, -1) != 0
            {
                fail(report, EarlyStage::SealSelf);
            }
            fd as RawFd
        }
    }
}

/// Makes the permitted capabilities inheritable and ambient, so that they survive an exec as an ordinary user.
fn raise_ambient() -> bool {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let mut sets = [[0u32; 3]; 2]; // effective, permitted, inheritable; low words, then high words
    // SAFETY: version 3 of the interface reads the header and writes two triples of words.
    if unsafe { libc::syscall(libc::SYS_capget, std::ptr::from_ref(&header), sets.as_mut_ptr()) }
        != 0
    {
        return false;
    }
    for triple in &mut sets {
        triple[2] = triple[1];
    }
    // SAFETY: as above, reading.
    if unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), sets.as_ptr()) } != 0 {
        return false;
    }
    for capability in 0..LAST_CAPABILITY {
        let word = sets[capability as usize / 32][1];
        if word & (1 << (capability % 32)) != 0 {
            // SAFETY: plain integers.
            let raised = unsafe {
                libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0)
            };
            if raised != 0 {
                return false;
            }
        }
    }
    true
}

fn fail(report: RawFd, stage: EarlyStage) -> ! {
    fail_with(report, stage, 0)
}

fn fail_with(report: RawFd, stage: EarlyStage, detail: u8) -> ! {
    // SAFETY: errno of this thread.
    let errno = unsafe { *libc::__errno_location() }.to_ne_bytes();
    let message = [stage as u8, detail, errno[0], errno[1], errno[2], errno[3]];
    // SAFETY: a live buffer of that length. If it cannot be written the parent still sees the end of file.
    unsafe { libc::write(report, message.as_ptr().cast(), message.len()) };
    exit(1)
}

/// Ends the process at once: no destructors, no buffers, as is right between fork and exec and for an init.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is plain data, and sigfillset initialises it before use.
    let (mut all, mut previous): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both point to live sets.
    let result = unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut previous)
    };
    if result == 0 { Ok(previous) } else { Err(io::Error::from_raw_os_error(result)) }
}

fn restore_signals(previous: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: a live set; no old set is asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, previous, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// Blocks all signals and returns a descriptor from which they are read instead.
pub(crate) fn signal_descriptor() -> io::Result<OwnedFd> {
    block_signals()?;
    // SAFETY: as in block_signals.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a live set, and -1 asks for a new descriptor.
    let fd = unsafe {
        libc::sigfillset(&raw mut all);
        libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The number of the next signal that waits in `descriptor`, if any.
pub(crate) fn next_signal(descriptor: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: plain integers.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: a live buffer of that size.
    let got =
        unsafe { libc::read(descriptor.as_raw_fd(), std::ptr::from_mut(&mut info).cast(), size) };
    (got == size as isize).then_some(info.ssi_signo as i32)
}

/// Gives every signal its default action again and unblocks all: what a new program expects.
pub(crate) fn default_signals() {
    // The kernel's own struct sigaction; all zero is SIG_DFL with no flags. Not by libc, which keeps two signals to itself.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: a live structure of the kernel's layout and mask size; KILL and STOP refuse, which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, 8) };
    }
    // SAFETY: as in block_signals.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a live set.
    unsafe {
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Sends any signal, by number, to a process, or to all that may be signalled but ourselves.
pub(crate) fn kill(pid: Option<Pid>, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::kill(pid.map_or(-1, |pid| pid.as_raw_nonzero().get()), signal) })
}

/// The same by pidfd, or to its process group.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32, group: bool) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    let (fd, flags) = (pidfd.as_raw_fd(), if group { SIGNAL_GROUP } else { 0 });
    // SAFETY: no information is passed along, which the null pointer means.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, flags) as _ })
}

/// Forks; `None` in the child.
///
/// Only for a process with one thread: the init of a job, which never starts another.
pub(crate) fn fork_single_threaded() -> io::Result<Option<Pid>> {
    // SAFETY: the init has one thread, so no lock can be held by another one in the child's copy.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Replaces this process by a program. Returns only the error.
pub(crate) fn execve(program: &CStr, argv: &[CString], envp: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: null-terminated arrays of live C strings.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Takes a descriptor that the parent left open for us at a known number.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; this tells whether the descriptor is open, and hides it from the programs we start.
    if fd < 3 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open, and the protocol between launch and init gives it to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `fd` the descriptor `number`, kept across exec.
pub(crate) fn place(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: plain integers.
        return check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) });
    }
    // SAFETY: plain integers; only 0, 1 and 2 are ever replaced, and no Rust value owns those.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
const SIGNAL_GROUP: libc::c_uint = 4;
pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn mount_setattr_raw(
    fd: RawFd,
    at: libc::c_int,
    set: u64,
    clear: u64,
    propagation: u64,
    userns: RawFd,
) -> libc::c_long {
    let userns_fd = if userns < 0 { 0 } else { userns as u64 };
    let attr = MountAttr { attr_set: set, attr_clr: clear, propagation, userns_fd };
    // SAFETY: the empty path means the descriptor itself; attr is a live mount_attr of the size given.
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            at,
            std::ptr::from_ref(&attr),
            size_of::<MountAttr>(),
        )
    }
}

/// Sets attributes on the mount at `fd`, and on all mounts below it if `recursive`.
pub(crate) fn mount_setattr(
    fd: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    propagation: u64,
) -> io::Result<()> {
    let at = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    check(mount_setattr_raw(fd.as_raw_fd(), at, set, 0, propagation, -1) as libc::c_int)
}

/// Lets the mount at `fd`, and those below it, show the owners of files as a user namespace maps them.
pub(crate) fn map_mount(fd: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    let at = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let (fd, users) = (fd.as_raw_fd(), users.as_raw_fd());
    check(mount_setattr_raw(fd, at, MOUNT_ATTR_IDMAP, 0, 0, users) as libc::c_int)
}

/// Installs a filter of system calls for this process and all that it starts.
pub(crate) fn install_filter(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        filter: *const seccompiler::sock_filter,
    }
    let len = program.len().try_into().map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = Program { len, filter: program.as_ptr() };
    // SAFETY: program points to `len` live instructions, and sock_filter has the kernel's layout.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            std::ptr::from_ref(&program),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Leaves the caller's session keyring (keyrings(7)) for one that is empty.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    let join = libc::KEYCTL_JOIN_SESSION_KEYRING;
    // SAFETY: without a name, plain integers.
    check(unsafe { libc::syscall(libc::SYS_keyctl, join, 0_u64) } as libc::c_int)
}

/// Starts namespaces of these kinds.
pub(crate) fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: namespaces have no effect on memory; that of descriptors, CLONE_FILES, is never passed.
    check(unsafe { libc::unshare(namespaces) })
}

/// Brings the interface `lo` up.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: plain data; all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        flags,
        None,
    )?;
    // SAFETY: the request takes an ifreq, and a live one is given.
    check(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, std::ptr::from_ref(&request))
    })
}
