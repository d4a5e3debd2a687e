//! The commands that get a job's output.
//!
//! Each has a bounded queue for each of its streams, and a thread that empties it: what a command does with its output, or
//! doesn't, is nothing to the job, its log and the others. Two kinds of readers:
//!
//! - the command that started the job reads as the next program of a pipeline does: when its queue is full the job waits,
//!   as long as that command is there;
//! - others that read too slowly miss some, and are told how much.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::logs::Stream;
use crate::task::{Waker, thread};

/// The sink of the command that started the job.
pub(crate) const STARTER: u64 = 0;

/// Bytes that wait for a reader.
const QUEUED: usize = 1 << 20;

/// A command that gets the job's output.
struct Sink {
    /// Under which it is removed.
    id: u64,
    stdout: Arc<Outlet>,
    stderr: Arc<Outlet>,
    /// Of the starting command: a pipe that it reads while it is there.
    starter: Option<OwnedFd>,
}

/// One stream of a command.
struct Outlet {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A piece is being written.
    busy: bool,
    /// Bytes that found no place since the reader was last told.
    missed: u64,
    /// Why nothing more is taken.
    closed: Option<Closed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    /// Nobody reads it any more.
    Broken,
    /// It can't be written, or was removed.
    Gone,
}

/// The commands that are attached.
#[derive(Clone)]
pub(crate) struct Sinks(Arc<All>);

struct All {
    sinks: Mutex<Vec<Arc<Sink>>>,
    waker: Waker,
    /// Whoever reads what the starting command prints has had enough.
    unwanted: AtomicBool,
    /// Counts what has moved.
    moved: AtomicU64,
    /// To be woken when the output is unwanted.
    pumps: Mutex<Vec<Waker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sinks {
    /// No sinks yet; `waker` is woken when something becomes of them.
    pub(crate) fn new(waker: &Waker) -> Self {
        Self(Arc::new(All {
            sinks: Mutex::default(),
            waker: waker.clone(),
            unwanted: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            pumps: Mutex::default(),
        }))
    }

    /// Passes the job's output on to these. `starter` is a pipe that the command which started the job reads while it is there.
    pub(crate) fn add(
        &self,
        id: u64,
        [stdout, stderr]: [OwnedFd; 2],
        starter: Option<OwnedFd>,
    ) -> io::Result<()> {
        let outlet = || Arc::new(Outlet { queue: Mutex::default(), changed: Condvar::new() });
        let sink = Arc::new(Sink { id, stdout: outlet(), stderr: outlet(), starter });
        for (file, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            let (all, of_thread) = (Arc::clone(&self.0), Arc::clone(&sink));
            let started = thread("mica-output", move || all.empty(&of_thread, stream, file.into()));
            if let Err(error) = started {
                sink.close();
                return Err(error);
            }
        }
        lock(&self.0.sinks).push(sink);
        Ok(())
    }

    /// Lets go of a command, whatever still waits for it.
    pub(crate) fn remove(&self, id: u64) {
        lock(&self.0.sinks).retain(|sink| {
            if sink.id == id {
                sink.close();
            }
            sink.id != id
        });
    }

    /// Lets go of those who read slowly.
    pub(crate) fn remove_slow(&self) {
        lock(&self.0.sinks).retain(|sink| {
            if !sink.is_idle() {
                sink.close();
            }
            sink.is_idle()
        });
    }

    /// Whether the starting command still has something to read, and is there.
    pub(crate) fn starter_reads(&self) -> bool {
        lock(&self.0.sinks).iter().any(|sink| sink.id == STARTER && !sink.is_idle())
    }

    /// Whether everything has been passed on.
    pub(crate) fn are_idle(&self) -> bool {
        lock(&self.0.sinks).iter().all(|sink| sink.is_idle())
    }

    /// Whether whoever reads what the starting command prints has had enough, while that command is there: then the job's
    /// output is closed, as it would be in the command's place.
    pub(crate) fn are_unwanted(&self) -> bool {
        self.0.unwanted.load(Ordering::Relaxed)
    }

    /// Something that grows with each byte read from the job or written to a command.
    pub(crate) fn moved(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }

    /// Those who read from the job: woken when its output is unwanted.
    pub(crate) fn set_pumps(&self, wakers: Vec<Waker>) {
        *lock(&self.0.pumps) = wakers;
    }

    /// Passes bytes on to all. Nothing is locked while one of them is waited for.
    pub(crate) fn write(&self, stream: Stream, bytes: &[u8]) {
        self.0.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let sinks = lock(&self.0.sinks).clone();
        for sink in sinks {
            let outlet = sink.outlet(stream);
            if !outlet.push(bytes, sink.starter.is_some()) {
                sink.tell_of_missed(outlet);
            }
        }
    }
}

impl All {
    /// Writes what comes into a queue, until it is closed and empty or nobody reads it.
    fn empty(&self, sink: &Sink, stream: Stream, mut file: File) {
        let outlet = sink.outlet(stream);
        while let Some(piece) = outlet.next() {
            let written = write_all(&file, &piece).and_then(|()| file.flush());
            self.moved.fetch_add(1, Ordering::Relaxed);
            let broken = written.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
            outlet.wrote(match &written {
                Ok(()) => None,
                Err(_) if broken => Some(Closed::Broken),
                Err(_) => Some(Closed::Gone),
            });
            if broken && sink.starter.as_ref().is_some_and(has_reader) {
                self.unwanted.store(true, Ordering::Relaxed);
                lock(&self.pumps).iter().for_each(Waker::wake);
                self.waker.wake();
            }
            if sink.is_idle() {
                self.waker.wake();
            }
        }
    }
}

impl Sink {
    fn outlet(&self, stream: Stream) -> &Arc<Outlet> {
        if stream == Stream::Stdout { &self.stdout } else { &self.stderr }
    }

    fn close(&self) {
        self.stdout.close();
        self.stderr.close();
    }

    fn is_idle(&self) -> bool {
        self.stdout.is_idle() && self.stderr.is_idle()
    }

    /// Says on standard error what found no place on a stream, once there is place again.
    fn tell_of_missed(&self, outlet: &Arc<Outlet>) {
        let missed = outlet.take_missed();
        if missed > 0 {
            let text = format!("mica: {missed} bytes of output came too fast for this reader\r\n");
            self.stderr.push(text.as_bytes(), false);
        }
    }
}

impl Outlet {
    /// Adds bytes; false if there is something that the reader missed before, and could be told now.
    fn push(&self, bytes: &[u8], waits: bool) -> bool {
        let mut queue = lock(&self.queue);
        while waits && queue.closed.is_none() && queue.bytes >= QUEUED / 4 {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.closed.is_some() {
            return true;
        }
        // Once something was missed, a good part of the queue is emptied before it is filled again.
        let room = if queue.missed > 0 { QUEUED / 2 } else { QUEUED };
        if !waits && queue.bytes + bytes.len() > room {
            queue.missed += bytes.len() as u64;
            return true;
        }
        let told = queue.missed == 0;
        queue.bytes += bytes.len();
        queue.pieces.push_back(bytes.to_vec());
        self.changed.notify_all();
        told
    }

    fn take_missed(&self) -> u64 {
        std::mem::take(&mut lock(&self.queue).missed)
    }

    /// The next piece to be written; `None` when there will be none.
    fn next(&self) -> Option<Vec<u8>> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed.is_some() {
                return None;
            }
            if let Some(piece) = queue.pieces.pop_front() {
                queue.bytes -= piece.len();
                queue.busy = true;
                return Some(piece);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wrote(&self, closed: Option<Closed>) {
        let mut queue = lock(&self.queue);
        queue.busy = false;
        queue.closed = queue.closed.or(closed);
        if queue.closed.is_some() {
            queue.pieces.clear();
            queue.bytes = 0;
        }
        self.changed.notify_all();
    }

    fn close(&self) {
        lock(&self.queue).closed.get_or_insert(Closed::Gone);
        self.changed.notify_all();
    }

    fn is_idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.closed.is_some() || (queue.pieces.is_empty() && !queue.busy)
    }
}

/// Writes everything, also to a descriptor that somebody has made non-blocking.
pub(crate) fn write_all(mut to: &File, mut bytes: &[u8]) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::{Duration, Instant};

    fn pipe() -> (File, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        (read.into(), write)
    }

    fn wait(mut condition: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < until, "it did not come true in 20 seconds");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_reader_that_stalls_holds_nobody_up_and_is_told_what_it_missed() {
        let sinks = Sinks::new(&Waker::new().unwrap());
        let ((mut stalled, out), (mut told, err)) = (pipe(), pipe());
        sinks.add(1, [out, err], None).unwrap();
        let ((reads, out), (_, err)) = (pipe(), pipe());
        sinks.add(2, [out, err], None).unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            reads.take(4 << 20).read_to_end(&mut all).map(|_| all.len())
        });
        let (piece, mut sent) = (vec![b'x'; 64 << 10], 0);
        while sent < 4 << 20 {
            let before = sinks.moved();
            sinks.write(Stream::Stdout, &piece);
            sent += piece.len();
            wait(|| sinks.moved() > before + piece.len() as u64); // the other one reads it
        }
        assert_eq!(reader.join().unwrap().unwrap(), 4 << 20);
        let mut some = vec![0; 1 << 20];
        stalled.read_exact(&mut some).unwrap();
        wait(|| {
            sinks.write(Stream::Stdout, b"y");
            lock(&lock(&sinks.0.sinks)[0].stdout.queue).missed == 0
        });
        let mut text = vec![0; 200];
        let count = told.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..count]);
        assert!(text.starts_with("mica: ") && text.contains("bytes of output"), "{text}");
        sinks.remove(1);
        wait(|| sinks.are_idle());
    }

    #[test]
    fn the_starting_command_misses_nothing_and_is_waited_for_while_it_is_there() {
        let sinks = Sinks::new(&Waker::new().unwrap());
        let ((reads, out), (_e, err), (_alive, starter)) = (pipe(), pipe(), pipe());
        sinks.add(STARTER, [out, err], Some(starter)).unwrap();
        let writer = sinks.clone();
        let wrote = std::thread::spawn(move || {
            (0..64).for_each(|_| writer.write(Stream::Stdout, &vec![b'x'; 64 << 10]));
        });
        wait(|| sinks.starter_reads());
        let mut first = vec![0; 3 << 20];
        (&reads).read_exact(&mut first).unwrap();
        assert!(first.iter().all(|&byte| byte == b'x'));
        // It lets go: whoever waits for it goes on.
        sinks.remove(STARTER);
        wrote.join().unwrap();
        assert!(!sinks.starter_reads());
    }

    #[test]
    fn output_is_unwanted_when_the_starting_commands_reader_has_had_enough() {
        let sinks = Sinks::new(&Waker::new().unwrap());
        let ((reads, out), (_e, err), (alive, starter)) = (pipe(), pipe(), pipe());
        sinks.add(STARTER, [out, err], Some(starter)).unwrap();
        drop(reads);
        sinks.write(Stream::Stdout, b"x");
        wait(|| sinks.are_unwanted());
        // With the command itself gone, the job goes on.
        drop(alive);
        let sinks = Sinks::new(&Waker::new().unwrap());
        let ((reads, out), (_e, err), (alive, starter)) = (pipe(), pipe(), pipe());
        sinks.add(STARTER, [out, err], Some(starter)).unwrap();
        drop((reads, alive));
        sinks.write(Stream::Stdout, b"x");
        wait(|| sinks.are_idle());
        assert!(!sinks.are_unwanted());
    }
}
