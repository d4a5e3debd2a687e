//! The job's output: to the log and to the commands that are attached; and what these type, to the job.
//!
//! Who reads the starting command's output may have had enough (`mica run … | head`). While that command is there, this is
//! passed on: the job's pipe is closed, and it gets SIGPIPE as it would in the command's place. When a command is gone,
//! the job writes to its log and to the others, and knows nothing of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::files::FileError;
use crate::logs::{LineSplitter, LogWriter, Stream};
use crate::state::JobDir;

/// The sink of the command that started the job.
pub(crate) const STARTER: u64 = 0;

/// A command that gets the job's output.
#[derive(Debug)]
pub(crate) struct Sink {
    /// Under which it is removed.
    pub(crate) id: u64,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
    /// Of the starting command: a pipe that it reads while it is there.
    pub(crate) starter: Option<OwnedFd>,
}

/// The commands that are attached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sinks(Arc<Mutex<Vec<Arc<Sink>>>>);

impl Sinks {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Sink>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, sink: Sink) {
        self.lock().push(Arc::new(sink));
    }

    pub(crate) fn remove(&self, id: u64) {
        self.lock().retain(|sink| sink.id != id);
    }

    /// Passes bytes on to all. Says whether the job's output is still wanted. Nothing is locked while it is written.
    fn write(&self, stream: Stream, bytes: &[u8]) -> bool {
        let sinks = self.lock().clone();
        let mut wanted = true;
        for sink in sinks {
            let to = if stream == Stream::Stdout { &sink.stdout } else { &sink.stderr };
            let Err(error) = write_all(to, bytes) else { continue };
            if error.kind() == io::ErrorKind::BrokenPipe
                && sink.starter.as_ref().is_some_and(has_reader)
            {
                wanted = false;
            }
            self.remove(sink.id);
        }
        wanted
    }
}

/// Writes everything, also to a descriptor that somebody has made non-blocking.
fn write_all(mut to: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the other end of a pipe is open.
fn has_reader(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && !fds[0].revents().contains(PollFlags::ERR)
}

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
    pub(crate) fn pump(&self, from: OwnedFd) {
        let input = self.clone();
        std::thread::spawn(move || {
            let mut from = File::from(from);
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let to = input.lock().clone();
                // What is typed at a job that has just ended is lost, as on any terminal.
                if let Some(to) = to {
                    write_all(&to, &buffer[..count]).ok();
                }
            }
        });
    }
}

/// The threads that pass a job's output on, and the moment of its first byte.
pub(crate) struct Output {
    threads: Vec<JoinHandle<()>>,
    first: Arc<OnceLock<Duration>>,
}

/// Where a stream's bytes go.
struct Pump {
    stream: Stream,
    log: Arc<Mutex<LogWriter>>,
    sinks: Sinks,
    since: Instant,
    first: Arc<OnceLock<Duration>>,
}

impl Output {
    /// Reads the streams until they end; `since` is when the supervisor started.
    pub(crate) fn start(
        job: &JobDir,
        streams: impl IntoIterator<Item = (Stream, OwnedFd)>,
        sinks: &Sinks,
        since: Instant,
    ) -> Result<Self, FileError> {
        let log = Arc::new(Mutex::new(LogWriter::open(job.path())?));
        let first = Arc::new(OnceLock::new());
        let threads = streams
            .into_iter()
            .map(|(stream, pipe)| {
                let (log, first, sinks) = (log.clone(), first.clone(), sinks.clone());
                let pump = Pump { stream, log, sinks, since, first };
                std::thread::spawn(move || pump.run(File::from(pipe)))
            })
            .collect();
        Ok(Self { threads, first })
    }

    /// Waits until all output has been passed on; the job must have ended. Returns when the first byte came.
    pub(crate) fn finish(self) -> Option<Duration> {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread that passes output on has panicked");
            }
        }
        self.first.get().copied()
    }
}

impl Pump {
    fn run(self, mut pipe: File) {
        let mut lines = LineSplitter::default();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.first.get_or_init(|| self.since.elapsed());
                    let wanted = self.sinks.write(self.stream, &buffer[..count]);
                    self.record(|log, stream| lines.push(&buffer[..count], stream, log));
                    if !wanted {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose last program has gone.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
                {
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot read the job's output");
                    break;
                }
            }
        }
        self.record(|log, stream| lines.finish(stream, log));
    }

    /// A full disk costs lines of the log, never the job.
    fn record(&self, write: impl FnOnce(&mut LogWriter, Stream) -> io::Result<()>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write(&mut log, self.stream) {
            tracing::error!(%error, "cannot write the job's log");
        }
    }
}
