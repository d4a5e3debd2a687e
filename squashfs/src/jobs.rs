//! Work on several threads, handed out in order through a bounded queue.

use std::num::NonZero;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Jobs that may wait for a thread: enough that none is idle, few enough that what they hold stays small.
const QUEUE: usize = 32;

/// `wanted` threads, or as many as the machine has processors.
pub(crate) fn count(wanted: Option<NonZero<usize>>) -> usize {
    wanted.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get)
}

/// Runs `produce` on this thread, which submits jobs, and `handle` on `threads` others. Returns when all jobs are done.
pub(crate) fn run<J: Send, T>(
    threads: usize,
    handle: impl Fn(J) + Sync,
    produce: impl FnOnce(&dyn Fn(J)) -> T,
) -> T {
    let (sender, receiver) = sync_channel::<J>(QUEUE);
    let receiver = Mutex::new(receiver);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    // The lock covers taking a job, not doing it.
                    let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match job {
                        Ok(job) => handle(job),
                        Err(_) => return,
                    }
                }
            });
        }
        // A send fails only if every thread is gone, which means that one panicked; the scope passes that on.
        let result = produce(&|job| drop(sender.send(job)));
        drop(sender);
        result
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn all_jobs_are_done_when_it_returns() {
        let sum = AtomicU64::new(0);
        let made = run(
            3,
            |n: u64| {
                sum.fetch_add(n, Ordering::Relaxed);
            },
            |submit| {
                (1..=1000).for_each(submit);
                1000
            },
        );
        assert_eq!((made, sum.into_inner()), (1000, 500_500));
    }
}
