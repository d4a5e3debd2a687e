//! The few system calls that need `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Moves the calling thread into new namespaces.
pub(crate) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only CLONE_FILES (which we never pass) could take descriptors away from other owners.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Whether this process has one thread.
pub(crate) fn has_one_thread() -> bool {
    // One link for each thread, and two as every folder has.
    rustix::fs::stat("/proc/self/task").is_ok_and(|stat| stat.st_nlink == 3)
}

/// Forks a process that does `work` and ends with the code it returns.
///
/// # Errors
/// No more processes; `Errno::BUSY` if this one has several threads, as their locks would never be let go in the copy.
pub(crate) fn fork(work: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    if !has_one_thread() {
        return Err(Errno::BUSY);
    }
    // SAFETY: with one thread, nobody holds a lock in the child's copy, so that it may run any code.
    match unsafe { libc::fork() } {
        0 => {
            // A panic must not get out into what is the parent's.
            let code = catch_unwind(AssertUnwindSafe(work)).unwrap_or(101);
            // SAFETY: no preconditions; destructors and buffers are the parent's.
            unsafe { libc::_exit(code.into()) }
        }
        -1 => Err(Errno::AGAIN),
        pid => Pid::from_raw(pid).ok_or(Errno::AGAIN),
    }
}

/// Keeps what the caller has left open beside the three standard streams from the programs that this one starts: they get
/// what they are given.
pub fn keep_descriptors() {
    // SAFETY: plain integers; descriptors are marked, none is closed. Without the system call (Linux 5.11) they stay as they are.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// Closes every descriptor above the standard ones but these.
///
/// Only for a forked child that never comes back to the code which owns them.
pub(crate) fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<libc::c_uint> = keep.iter().map(|&fd| fd as libc::c_uint).collect();
    keep.sort_unstable();
    let mut first = 3;
    for end in keep.into_iter().chain([libc::c_uint::MAX]) {
        if first < end {
            // SAFETY: plain integers. What owns them is on frames that this process never returns to.
            if unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

/// Closes everything but this descriptor, and puts `/dev/null` in the place of the standard ones.
///
/// Only for a forked child that never comes back to the code which owns them.
pub(crate) fn let_go_of_all_but(keep: RawFd) -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    // Closed with the others.
    std::mem::forget(null);
    close_all_but(&[keep])
}

/// Lets `/proc` and `ps` show this command line, of words that end with a NUL each, for this process.
///
/// Where the kernel can't (it takes `CONFIG_CHECKPOINT_RESTORE`), they show what the process was started with.
pub(crate) fn set_command_line(words: Vec<u8>) -> io::Result<()> {
    /// The kernel's `struct prctl_mm_map`.
    #[repr(C)]
    struct Map {
        addresses: [u64; 11],
        auxv: u64,
        auxv_size: u32,
        executable: i32,
    }
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // proc(5): the name, in brackets, may hold anything; the next field is the third.
    let fields = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let fields: Vec<u64> =
        fields.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    // For as long as the process lives.
    let words: &'static [u8] = words.leak();
    let start = words.as_ptr() as u64;
    // SAFETY: a request for no more memory, which only returns the present end.
    let end_of_heap = unsafe { libc::sbrk(0) } as u64;
    let [code, code_end, stack] = [26, 27, 28].map(field);
    let [data, data_end, heap] = [45, 46, 47].map(field);
    let [environment, environment_end] = [50, 51].map(field);
    let (arguments, arguments_end) = (start, start + words.len() as u64);
    let map = Map {
        addresses: [
            code,
            code_end,
            data,
            data_end,
            heap,
            end_of_heap,
            stack,
            arguments,
            arguments_end,
            environment,
            environment_end,
        ],
        auxv: 0,
        auxv_size: 0,
        executable: -1,
    };
    let size = size_of::<Map>();
    // SAFETY: a live structure of the kernel's layout and its size. All addresses but two are what they were; those two are
    // the bounds of memory that is never freed.
    let result = unsafe {
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, std::ptr::from_ref(&map), size, 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the heap of a process small that has several threads and little to do: two arenas, not one for each thread, and
/// large buffers go back to the kernel when they are freed (mallopt(3): else the largest ever freed sets the limit).
pub(crate) fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain integers; nobody allocates meanwhile, as the process has one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// Gives back to the kernel what only starting took: free memory of the heap, and the pages of this binary's code. Those that
/// are needed again come from the page cache.
///
/// What can't be given back stays.
pub(crate) fn shrink() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
    let here = shrink as *const () as usize;
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let code = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        ((start..end).contains(&here) && rest.starts_with("r-xp")).then_some((start, end))
    });
    let Some((start, end)) = code else { return };
    // SAFETY: the mapping that this function lies in, of a file and never written to: a page that is dropped is read from
    // the file when it is next touched, this one included.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
    }
}

/// Holds all signals back, or takes them again, those included that came meanwhile.
pub(crate) fn hold_signals(hold: bool) {
    // SAFETY: sigset_t is plain data, which one of the two functions initialises; no old set is asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        if hold {
            libc::sigfillset(&raw mut set)
        } else {
            libc::sigemptyset(&raw mut set)
        };
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Takes over a descriptor that the parent process left open for this one, named by its number on the
/// command line, and marks it close-on-exec; `None` if there is no such descriptor.
pub(crate) fn adopt_fd(number: RawFd) -> Option<OwnedFd> {
    // 0 to 2 belong to the standard library's handles.
    if number <= 2 {
        return None;
    }
    // SAFETY: the number is only looked at by fcntl, which fails with EBADF if nothing is open there.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open (just checked), the parent opened it for us alone, and the hidden command that
    // names it calls this once a number.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether this process ignores a signal.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: plain data, which the call fills.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a live structure; no new action is given.
    let known = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) } == 0;
    known && action.sa_sigaction == libc::SIG_IGN
}

/// Ignores a signal, or gives it its default action. One that can't be changed stays.
pub(crate) fn set_ignored(signal: i32, ignored: bool) {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(signal, if ignored { libc::SIG_IGN } else { libc::SIG_DFL }) };
}

/// Lets programs that this process starts inherit the standard descriptors only. What can't be marked stays.
pub(crate) fn hand_on_nothing() {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: marks descriptors; no memory is involved.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
}
