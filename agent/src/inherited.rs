//! What a process got from whoever started it, put right before anything else is done.
//!
//! A batch system, a service manager or a shell leaves signals ignored or blocked, and descriptors open. Ignored children
//! can't be waited for, a blocked SIGTERM is never heard, and a descriptor that a supervisor keeps holds up whoever waits for
//! its end.

use rustix::fs::Mode;

use crate::sys;

/// What ignoring means something for: a hang-up under nohup(1), keys at a terminal for a job in the background, stops.
const KEPT: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Puts this process right. To be called first thing, while it has one thread and has caught no signal.
///
/// - No signal is blocked, and none is ignored but those of `KEPT`, and SIGPIPE and SIGXFSZ: a pipe that nobody reads and a
///   file that may not grow are errors of what writes to them.
/// - What it makes, its owner may use, whatever the umask.
/// - Descriptors above the standard ones get into no program that this one starts, unless it is handed them. The standard
///   ones are open: the standard library saw to that.
pub fn put_process_right() {
    for signal in 1..=64 {
        if !KEPT.contains(&signal) && signal != libc::SIGPIPE && sys::is_ignored(signal) {
            sys::set_ignored(signal, false);
        }
    }
    sys::set_ignored(libc::SIGXFSZ, true);
    sys::hold_signals(false);
    sys::hand_on_nothing();
    // A file that its owner may not open is of no use to anybody: what is made with such a mask stays in the way.
    let umask = rustix::process::umask(Mode::empty());
    rustix::process::umask(umask & !Mode::RWXU);
}

/// Whether this process ignores a signal.
pub fn is_ignored(signal: i32) -> bool {
    sys::is_ignored(signal)
}
