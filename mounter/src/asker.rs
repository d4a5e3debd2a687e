//! Who waits for the answer to the request at hand.
//!
//! The kernel tells a server that a caller was killed by `FUSE_INTERRUPT`, which fuser doesn't hand on; until it has its
//! answer the caller can't die. So what takes long looks now and then whether its asker has a deadly signal, and gives up.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// How often an asker is looked at.
pub(crate) const OFTEN: Duration = Duration::from_millis(100);

#[derive(Clone, Copy)]
struct Asker {
    /// The asking thread; 0 is one that cannot be seen from here.
    pid: u32,
    /// When to look at it next.
    next: Instant,
    gave_up: bool,
}

thread_local! {
    static ASKER: Cell<Option<Asker>> = const { Cell::new(None) };
}

/// Whom a request is from, to be taken along to another thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct From(u32);

impl From {
    pub(crate) fn pid(pid: u32) -> From {
        From(pid)
    }

    /// The asker of the request that this thread works on.
    pub(crate) fn current() -> From {
        From(ASKER.get().map_or(0, |asker| asker.pid))
    }

    /// Works on a request of this asker.
    pub(crate) fn run<T>(self, work: impl FnOnce() -> T) -> T {
        let asker = Asker { pid: self.0, next: Instant::now() + OFTEN, gave_up: false };
        let before = ASKER.replace((self.0 != 0).then_some(asker));
        let result = work();
        ASKER.set(before);
        result
    }
}

/// Whether nobody waits for what this thread does.
pub(crate) fn gave_up() -> bool {
    let Some(mut asker) = ASKER.get() else { return false };
    if !asker.gave_up && Instant::now() >= asker.next {
        asker.gave_up = is_dying(asker.pid);
        asker.next = Instant::now() + OFTEN;
        ASKER.set(Some(asker));
    }
    asker.gave_up
}

/// [`gave_up`] as an error.
pub(crate) fn check() -> Result<(), Errno> {
    if gave_up() { Err(Errno::INTR) } else { Ok(()) }
}

/// Whether a thread has a signal that it cannot survive: the kernel makes any of those SIGKILL.
#[allow(clippy::disallowed_methods)]
fn is_dying(pid: u32) -> bool {
    // Where it can't be read the asker is waited for.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    pending(&status) & (1 << (libc::SIGKILL - 1)) != 0
}

fn pending(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pending_signals_are_those_of_the_thread() {
        let status =
            "Name:\tx\nSigQ:\t0/95\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000001\n";
        assert_eq!(pending(status), 0x100);
        assert_eq!(pending(""), 0);
        assert!(!is_dying(std::process::id()));
    }

    #[test]
    fn a_request_without_a_known_asker_goes_on() {
        assert!(!gave_up());
        From::pid(0).run(|| assert!(!gave_up()));
        From::pid(std::process::id()).run(|| {
            std::thread::sleep(OFTEN * 2);
            assert!(check().is_ok());
            From::current().run(|| assert_eq!(From::current().0, std::process::id()));
        });
    }
}
