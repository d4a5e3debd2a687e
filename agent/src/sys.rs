//! The few system calls that need `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Moves the calling thread into new namespaces.
pub(crate) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only CLONE_FILES (which we never pass) could take descriptors away from other owners.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Forks a process that does `work` and ends with the code it returns.
///
/// Only for a process with one thread.
pub(crate) fn fork(work: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    // SAFETY: with one thread, nobody holds a lock in the child's copy, so that it may run any code.
    match unsafe { libc::fork() } {
        0 => {
            let code = work();
            // SAFETY: no preconditions; destructors and buffers are the parent's.
            unsafe { libc::_exit(code.into()) }
        }
        pid => Pid::from_raw(pid).filter(|_| pid > 0).ok_or(Errno::AGAIN),
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
