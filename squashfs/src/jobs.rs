//! Work on several threads, handed out in order through a bounded queue.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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
        let work = || {
            loop {
                // The lock covers taking a job, not doing it.
                let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                match job {
                    Ok(job) => handle(job),
                    Err(_) => return,
                }
            }
        };
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        if (0..threads.max(1)).map_while(start).count() == 0 {
            // There can be no more threads.
            return produce(&handle);
        }
        // A send fails only if every thread is gone, which means that one panicked; the scope passes that on.
        let result = produce(&|job| drop(sender.send(job)));
        drop(sender);
        result
    })
}

/// How many blocks may be in flight: 16 MiB of them, so that no thread is idle, and a few of the largest.
pub(crate) fn window(block_size: u32) -> usize {
    ((16 << 20) / block_size as usize).clamp(16, 128)
}

/// Runs `handle` on as many threads as there are `states`, for all jobs that `next` gives; `done` gets the results on
/// this thread in the order of the jobs. At most `window` jobs are in flight. Ends with the first error.
pub(crate) fn ordered<S: Send, J: Send, R: Send, E>(
    states: Vec<S>,
    window: usize,
    handle: impl Fn(&mut S, J) -> R + Sync,
    mut next: impl FnMut() -> Result<Option<J>, E>,
    mut done: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let (sender, receiver) = sync_channel::<(J, SyncSender<R>)>(window);
    let receiver = Mutex::new(receiver);
    let wanted = states.len();
    let states = Mutex::new(states);
    let take = || states.lock().unwrap_or_else(PoisonError::into_inner).pop();
    thread::scope(|scope| {
        // Owned here, so that the threads end when this closure does, however it does.
        let sender = sender;
        let work = || {
            let Some(mut state) = take() else { return };
            loop {
                let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((job, reply)) = job else { return };
                // Nobody waits any more after an error.
                let _ = reply.send(handle(&mut state, job));
            }
        };
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        if (0..wanted).map_while(start).count() == 0 {
            // There can be no more threads.
            let Some(mut state) = take() else { return Ok(()) };
            while let Some(job) = next()? {
                done(handle(&mut state, job))?;
            }
            return Ok(());
        }
        let mut pending: VecDeque<Receiver<R>> = VecDeque::new();
        loop {
            while pending.len() < window {
                let Some(job) = next()? else { break };
                let (reply, result) = sync_channel(1);
                pending.push_back(result);
                drop(sender.send((job, reply)));
            }
            let Some(first) = pending.pop_front() else { return Ok(()) };
            // A result that never comes is a thread that panicked, which the scope passes on.
            let Ok(result) = first.recv() else { return Ok(()) };
            done(result)?;
        }
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

    #[test]
    fn results_come_in_the_order_of_the_jobs_until_one_fails() {
        let run = |stop: u64| {
            let mut jobs = 1..=1000_u64;
            let mut got = Vec::new();
            let result = ordered(
                vec![0_u64; 3],
                7,
                |count, job| {
                    *count += 1;
                    job * 2
                },
                || Ok(jobs.next()),
                |double| {
                    got.push(double);
                    if double == stop { Err(double) } else { Ok(()) }
                },
            );
            (result, got)
        };
        assert_eq!(run(0), (Ok(()), (1..=1000).map(|n| n * 2).collect()));
        assert_eq!(run(100), (Err(100), (1..=50).map(|n| n * 2).collect()));
    }
}
