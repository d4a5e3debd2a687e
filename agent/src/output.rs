//! The job's standard output and error: to the log and, where a command is attached, on to it.
//!
//! Who reads the command's output may have had enough (`mica run … | head`). While the command is there, that is passed
//! on: the job's pipe is closed, and it gets SIGPIPE as it would in the command's place. When the command is gone, the
//! job writes to its log alone and knows nothing of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::files::FileError;
use crate::logs::{LineSplitter, LogWriter, Stream};
use crate::state::JobDir;

/// The threads that pass a job's output on, and the moment of its first byte.
pub(crate) struct Output {
    threads: Vec<JoinHandle<()>>,
    first: Arc<OnceLock<Duration>>,
}

/// Where a stream's bytes go.
struct Pump {
    stream: Stream,
    log: Arc<Mutex<LogWriter>>,
    command: Option<Arc<OwnedFd>>,
    since: Instant,
    first: Arc<OnceLock<Duration>>,
}

impl Output {
    /// Reads both streams until they end. `command` is a pipe that the attached command reads, if one is attached;
    /// `since` is when the supervisor started.
    pub(crate) fn start(
        job: &JobDir,
        stdout: OwnedFd,
        stderr: OwnedFd,
        command: Option<OwnedFd>,
        since: Instant,
    ) -> Result<Self, FileError> {
        let log = Arc::new(Mutex::new(LogWriter::open(job.path())?));
        let first = Arc::new(OnceLock::new());
        let command = command.map(Arc::new);
        let threads = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)]
            .map(|(stream, pipe)| {
                let (log, first, command) = (log.clone(), first.clone(), command.clone());
                let pump = Pump { stream, log, command, since, first };
                std::thread::spawn(move || pump.run(File::from(pipe)))
            })
            .into();
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
    fn run(mut self, mut pipe: File) {
        let mut lines = LineSplitter::default();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.first.get_or_init(|| self.since.elapsed());
                    let wanted = self.forward(&buffer[..count]);
                    self.record(|log, stream| lines.push(&buffer[..count], stream, log));
                    if !wanted {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "cannot read the job's output");
                    break;
                }
            }
        }
        self.record(|log, stream| lines.finish(stream, log));
    }

    /// To the command's own streams. Says whether the job's output is still wanted.
    fn forward(&mut self, bytes: &[u8]) -> bool {
        let Some(command) = &self.command else { return true };
        let written = match self.stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Stream::Stderr => io::stderr().lock().write_all(bytes),
        };
        let Err(error) = written else { return true };
        let wanted = error.kind() != io::ErrorKind::BrokenPipe || !has_reader(command);
        self.command = None;
        wanted
    }

    /// A full disk costs lines of the log, never the job.
    fn record(&self, write: impl FnOnce(&mut LogWriter, Stream) -> io::Result<()>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write(&mut log, self.stream) {
            tracing::error!(%error, "cannot write the job's log");
        }
    }
}

/// Whether the other end of a pipe is open.
fn has_reader(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && !fds[0].revents().contains(PollFlags::ERR)
}
