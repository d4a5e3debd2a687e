//! What a starting command leaves open for the process it starts: the lock it took, and a pipe to report to.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;

use crate::files::Lock;
use crate::sys;

/// The two descriptors, taken over.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) lock: Lock,
    pub(crate) pipe: OwnedFd,
}

impl Handover {
    /// Takes over the descriptors with these numbers; `None` if the words are not what a command of ours writes.
    pub(crate) fn adopt(lock: &OsString, pipe: &OsString) -> Option<Self> {
        let number = |word: &OsString| word.to_str()?.parse().ok();
        let (lock, pipe) = (number(lock)?, number(pipe)?);
        if lock == pipe {
            return None;
        }
        Some(Self {
            lock: Lock::adopted(File::from(sys::adopt_fd(lock)?)),
            pipe: sys::adopt_fd(pipe)?,
        })
    }
}
