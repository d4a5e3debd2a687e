//! The job's output: to its log first, then to the commands that are attached; and what these type, to the job.
//!
//! Who reads the starting command's output may have had enough (`mica run … | head`). While that command is there, this is
//! passed on: the job's pipe is closed, and it gets SIGPIPE as it would in the command's place; a job with a terminal is
//! hung up. When a command is gone, the job writes to its log and to the others, and knows nothing of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::logs::{LineSplitter, LogWriter, Stream};
use crate::sinks::{Sinks, write_all};
use crate::task::{Waker, thread};

/// The way to the job's standard input: a pipe, or its terminal. A restarted job has a new one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Input(Arc<Mutex<Option<Arc<File>>>>);

impl Input {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lead_to(&self, job: Option<OwnedFd>) {
        *self.lock() = job.map(|fd| Arc::new(fd.into()));
    }

    /// Passes on what a command sends, until it is gone.
    pub(crate) fn pump(&self, from: OwnedFd) -> io::Result<()> {
        let input = self.clone();
        thread("mica-input", move || {
            let mut from = File::from(from);
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let to = input.lock().clone();
                // What is typed at a job that has just ended is lost, as on any terminal.
                if let Some(to) = to {
                    write_all(&to, &buffer[..count]).ok();
                }
            }
        })
    }
}

/// The threads that pass a job's output on, and the moment of its first byte.
pub(crate) struct Output {
    /// So many streams are still read.
    open: Arc<AtomicUsize>,
    /// Each thread's.
    stops: Vec<Waker>,
    first: Arc<OnceLock<Duration>>,
}

/// Where a stream's bytes go.
struct Pump {
    stream: Stream,
    log: Arc<Mutex<LogWriter>>,
    sinks: Sinks,
    since: Instant,
    first: Arc<OnceLock<Duration>>,
    /// Readable when nobody wants more.
    stop: Waker,
}

impl Output {
    /// Reads the streams until they end, and wakes `waker` then; `since` is when the supervisor started.
    pub(crate) fn start(
        log: LogWriter,
        streams: Vec<(Stream, OwnedFd)>,
        sinks: &Sinks,
        waker: &Waker,
        since: Instant,
    ) -> io::Result<Self> {
        let log = Arc::new(Mutex::new(log));
        let open = Arc::new(AtomicUsize::new(streams.len()));
        let mut output = Self { open, stops: Vec::new(), first: Arc::new(OnceLock::new()) };
        for (stream, pipe) in streams {
            let (log, first, sinks) = (log.clone(), output.first.clone(), sinks.clone());
            let stop = Waker::new()?;
            output.stops.push(stop.clone());
            let pump = Pump { stream, log, sinks, since, first, stop };
            let (open, waker) = (Arc::clone(&output.open), waker.clone());
            thread("mica-pump", move || {
                pump.run(pipe.into());
                open.fetch_sub(1, Ordering::AcqRel);
                waker.wake();
            })?;
        }
        sinks.set_pumps(output.stops.clone());
        Ok(output)
    }

    /// Whether all that the job printed has been taken.
    pub(crate) fn is_done(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// Reads no more: what is left is nobody's.
    pub(crate) fn stop(&self) {
        self.stops.iter().for_each(Waker::wake);
    }

    /// When the first byte came.
    pub(crate) fn first(&self) -> Option<Duration> {
        self.first.get().copied()
    }
}

impl Pump {
    fn run(self, mut pipe: File) {
        let mut lines = LineSplitter::default();
        let mut buffer = vec![0; 64 << 10];
        while self.wait(&pipe) {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.first.get_or_init(|| self.since.elapsed());
                    self.record(|log, stream| lines.push(&buffer[..count], stream, log));
                    self.sinks.write(self.stream, &buffer[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose last program has gone.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => break,
                Err(error) => {
                    tracing::error!(%error, "cannot read the job's output");
                    break;
                }
            }
        }
        self.record(|log, stream| lines.finish(stream, log));
    }

    /// Waits for output; false if nobody wants it.
    fn wait(&self, pipe: &File) -> bool {
        let mut fds = [PollFd::new(pipe, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                // Reading will say what is wrong.
                Err(_) => return true,
                Ok(_) => return fds[1].revents().is_empty(),
            }
        }
    }

    /// A full disk costs lines of the log, never the job.
    fn record(&self, write: impl FnOnce(&mut LogWriter, Stream) -> io::Result<()>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write(&mut log, self.stream) {
            tracing::error!(%error, "cannot write the job's log");
        }
    }
}
