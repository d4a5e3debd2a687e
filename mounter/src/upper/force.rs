//! Doing for an ordinary user what its modes forbid.
//!
//! The kernel asks the modes of the mount whether a caller may do what it asks for, and a plain directory goes by them no
//! further: who has a file open reads it whatever its mode has become, a file of a directory that nobody may write can
//! be changed itself. The server does the same in the upper: root's passes all modes, an ordinary user's gives itself
//! the right, for as long as nobody can look: all of it runs while the namespace is held exclusively.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::{Res, UpperDir, proc_path, statx_fd};

/// Whether modes don't hold for this process.
pub(super) fn passes_modes() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::DAC_OVERRIDE))
}

/// An inode whose owner may read, write and search it, until this is dropped.
struct Opened<'a> {
    inode: BorrowedFd<'a>,
    mode: u32,
}

impl<'a> Opened<'a> {
    fn new(inode: BorrowedFd<'a>) -> Res<Opened<'a>> {
        let mode = u32::from(statx_fd(inode)?.stx_mode) & 0o7777;
        rustix::fs::chmod(proc_path(&inode), Mode::from_raw_mode(mode | libc::S_IRWXU))?;
        Ok(Opened { inode, mode })
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let mode = Mode::from_raw_mode(self.mode);
        if let Err(error) = rustix::fs::chmod(proc_path(&self.inode), mode) {
            tracing::error!(%error, mode = self.mode, "cannot put back a mode of the upper");
        }
    }
}

impl UpperDir {
    /// While the namespace is held exclusively.
    pub(crate) fn set_forced(&self, forced: bool) {
        if !self.passes_modes {
            self.forced.store(forced, Ordering::Relaxed);
        }
    }

    /// Whether what modes forbid may be possible while the namespace is held exclusively.
    pub(crate) fn can_force(&self) -> bool {
        !self.passes_modes
    }

    fn forced(&self) -> bool {
        self.forced.load(Ordering::Relaxed)
    }

    /// Does what the mode of an inode may forbid.
    pub(crate) fn allowed<T>(&self, inode: impl AsFd, work: impl Fn() -> Res<T>) -> Res<T> {
        match work() {
            Err(Errno::ACCESS) if self.forced() => match Opened::new(inode.as_fd()) {
                Ok(_opened) => work(),
                Err(_) => Err(Errno::ACCESS),
            },
            result => result,
        }
    }

    /// Does what the modes of a directory and of what is under a name in it may forbid.
    pub(crate) fn allowed_at<T>(
        &self,
        dir: impl AsFd,
        name: &[u8],
        work: impl Fn() -> Res<T>,
    ) -> Res<T> {
        let dir = dir.as_fd();
        self.allowed(dir, || match work() {
            Err(Errno::ACCESS) if self.forced() => {
                let inode = self.open_path(dir, name)?;
                self.allowed(&inode, &work)
            }
            result => result,
        })
    }

    /// Gives itself every right to a directory that is about to be removed.
    pub(super) fn open_up(&self, dir: BorrowedFd<'_>, name: &[u8]) {
        if !self.passes_modes {
            // If it didn't help, the removal says so.
            let _ = rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty());
        }
    }
}
