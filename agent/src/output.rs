//! The job's standard output and error: to the log and, where a command is attached, on to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    attached: bool,
    since: Instant,
    first: Arc<OnceLock<Duration>>,
}

impl Output {
    /// Reads both streams until they end. `since` is when the supervisor started.
    pub(crate) fn start(
        job: &JobDir,
        stdout: OwnedFd,
        stderr: OwnedFd,
        attached: bool,
        since: Instant,
    ) -> Result<Self, FileError> {
        let log = Arc::new(Mutex::new(LogWriter::open(job.path())?));
        let first = Arc::new(OnceLock::new());
        let threads = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)]
            .map(|(stream, pipe)| {
                let pump = Pump { stream, log: log.clone(), attached, since, first: first.clone() };
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
                    self.forward(&buffer[..count]);
                    self.record(|log, stream| lines.push(&buffer[..count], stream, log));
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

    /// To the command that waits, until it goes away.
    fn forward(&mut self, bytes: &[u8]) {
        if !self.attached {
            return;
        }
        let written = match self.stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Stream::Stderr => io::stderr().lock().write_all(bytes),
        };
        self.attached = written.is_ok();
    }

    /// A full disk costs lines of the log, never the job.
    fn record(&self, write: impl FnOnce(&mut LogWriter, Stream) -> io::Result<()>) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write(&mut log, self.stream) {
            tracing::error!(%error, "cannot write the job's log");
        }
    }
}
