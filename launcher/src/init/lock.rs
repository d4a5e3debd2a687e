//! Locks the job's mounts: what hides or protects something can't be taken off, moved or made writable, not with
//! `CAP_SYS_ADMIN` either.
//!
//! The kernel locks all mounts of a namespace that is copied for another user namespace (mount_namespaces(7)). So a child
//! copies ours for a user namespace of its own, and we copy that one back for ours, with its locks:
//!
//! ```text
//! init                                      child
//! ----                                      -----
//! fork -----------------------------------> unshare(users, mounts): the copies are locked
//! setns(mounts of the child) <------------- says so, waits
//! unshare(mounts): ours, the locks stay
//! lets it go ------------------------------> exits
//! ```
//!
//! All other namespaces of the job stay its own user namespace's, so its capabilities count in them as before. What is
//! mounted later can be unmounted. With the masks locked, the kernel refuses a fresh `/proc` as well, as that would show
//! what they hide.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, WaitOptions, pidfd_open, waitpid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::sys;

/// Locks everything that is mounted; the root must be that of the namespace.
pub(super) fn mounts() -> io::Result<()> {
    let (said, say) = pipe_with(PipeFlags::CLOEXEC)?;
    let (wait, let_go) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some(child) = sys::fork_single_threaded()? else {
        drop((said, let_go));
        copy(&say, &wait);
        sys::exit(0)
    };
    drop((say, wait));
    let result = enter(&said, || pidfd_open(child, PidfdFlags::empty()));
    drop(let_go);
    retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()))?;
    result
}

/// The child: makes the copy, says how that went, and waits until it has been taken.
fn copy(say: &OwnedFd, wait: &OwnedFd) {
    let result = sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS);
    let errno = result.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
    if rustix::io::write(say, &errno.to_ne_bytes()).is_ok() {
        // The end of the pipe: of the init, or that it is done.
        let _ = retry_on_intr(|| rustix::io::read(wait, &mut [0_u8; 1]));
    }
}

fn enter(said: &OwnedFd, child: impl Fn() -> rustix::io::Result<OwnedFd>) -> io::Result<()> {
    let mut errno = [0; 4];
    if retry_on_intr(|| rustix::io::read(said, &mut errno))? != errno.len() {
        return Err(Errno::CHILD.into());
    }
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    move_into_thread_name_spaces(child()?.as_fd(), ThreadNameSpaceType::MOUNT)?;
    sys::unshare(libc::CLONE_NEWNS)?;
    Ok(rustix::process::chdir("/")?)
}
