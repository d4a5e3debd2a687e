//! The runtimes of HTTP clients and servers.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::{Builder, Runtime};

static MADE: AtomicBool = AtomicBool::new(false);

/// Whether this process has made a runtime for HTTP.
///
/// A runtime keeps things for the whole life of its process (the pipe of its signal driver, the state of the TLS
/// provider), which go on in a forked copy neither as they are nor without their descriptors. Such a process may fork to
/// execute a program, but no copy of it may go on by itself.
pub fn made_a_runtime() -> bool {
    MADE.load(Ordering::Relaxed)
}

/// A runtime with two threads of this name.
///
/// # Errors
/// No more threads or descriptors.
pub(crate) fn build(name: &str) -> io::Result<Runtime> {
    MADE.store(true, Ordering::Relaxed);
    // The runtime panics if it gets no thread at all.
    let probe = std::thread::Builder::new().name(name.to_owned()).spawn(|| {})?;
    drop(probe.join());
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build()
}
