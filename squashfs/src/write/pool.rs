//! Worker threads that run jobs taken from one queue; each result is waited for where it is needed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::WriteError;
use super::reuse::Previous;

/// What a worker keeps between jobs.
pub(super) struct Worker {
    pub(super) compressor: crate::codec::Compressor,
    /// A buffer to read into.
    pub(super) raw: Vec<u8>,
    /// A buffer to compress into.
    pub(super) compressed: Vec<u8>,
    /// Hashes of blocks are wanted.
    pub(super) index: bool,
    /// Where compressed blocks may be taken from.
    pub(super) previous: Option<Arc<Previous>>,
}

type Job<'t> = Box<dyn FnOnce(&mut Worker) + Send + 't>;

/// The queue. It is unbounded; whoever submits keeps the number of jobs in flight bounded.
pub(super) struct Pool<'t> {
    queue: Mutex<Queue<'t>>,
    wake: Condvar,
    /// Large buffers that go back and forth between threads.
    spare: Mutex<Vec<Vec<u8>>>,
}

struct Queue<'t> {
    jobs: VecDeque<Job<'t>>,
    closed: bool,
}

/// A result that may still be under way.
pub(super) struct Pending<T>(Receiver<T>);

impl<T> Pending<T> {
    pub(super) fn wait(self) -> Result<T, WriteError> {
        self.0.recv().map_err(|_| WriteError::Worker)
    }
}

impl<'t> Pool<'t> {
    pub(super) fn new() -> Self {
        let queue = Queue { jobs: VecDeque::new(), closed: false };
        Self { queue: Mutex::new(queue), wake: Condvar::new(), spare: Mutex::default() }
    }

    pub(super) fn submit<T: Send + 't>(
        &self,
        job: impl FnOnce(&mut Worker) -> T + Send + 't,
    ) -> Pending<T> {
        let (sender, receiver): (SyncSender<T>, _) = sync_channel(1);
        let job: Job<'t> = Box::new(move |worker| {
            // Nobody waits any more when the whole operation has failed.
            let _ = sender.send(job(worker));
        });
        let mut queue = self.lock();
        // Nobody would do it any more: whoever waits for it is told at once.
        if !queue.closed {
            queue.jobs.push_back(job);
        }
        drop(queue);
        self.wake.notify_one();
        Pending(receiver)
    }

    /// A buffer that was [given back](Pool::give_back), with its old content, or an empty one.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Keeps a buffer for later.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() > 0 {
            self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }

    /// Runs jobs until the pool is closed and the queue is empty. A job that panics closes the pool: all that wait are told.
    pub(super) fn work(&self, mut worker: Worker) {
        loop {
            let mut queue = self.lock();
            let job = loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.closed {
                    return;
                }
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            // The worker is not used again, whatever state it is in.
            if catch_unwind(AssertUnwindSafe(|| job(&mut worker))).is_err() {
                return self.close();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue<'t>> {
        // Jobs run outside of the lock, so a panic cannot leave the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.jobs.clear();
        self.wake.notify_all();
    }
}

/// Closes the pool when the submitting side is done, also when it fails.
pub(super) struct CloseOnDrop<'p, 't>(pub(super) &'p Pool<'t>);

impl Drop for CloseOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_worker_leaves_nobody_waiting() {
        let (sender, receiver) = sync_channel(1);
        std::thread::spawn(move || {
            let pool = Pool::new();
            let worker = || Worker {
                compressor: crate::codec::Compressor::new(
                    crate::codec::Compression::Zstd,
                    None,
                    4096,
                )
                .unwrap(),
                raw: Vec::new(),
                compressed: Vec::new(),
                index: false,
                previous: None,
            };
            std::thread::scope(|scope| {
                let first = pool.submit(|_| panic!("a test"));
                let second = pool.submit(|_| ());
                scope.spawn(|| pool.work(worker()));
                let first: Result<(), _> = first.wait();
                assert!(matches!(first, Err(WriteError::Worker)));
                assert!(matches!(second.wait(), Err(WriteError::Worker)));
                assert!(matches!(pool.submit(|_| ()).wait(), Err(WriteError::Worker)));
            });
            sender.send(()).unwrap();
        });
        receiver.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
    }
}
