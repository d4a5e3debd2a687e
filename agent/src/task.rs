//! Work beside the supervisor's loop, which never waits itself: what may hang in a file system, a network or a helper is
//! done by a thread, and wakes the loop when it is done.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use rustix::event::{EventfdFlags, eventfd};

/// Makes a poll(2) return: a descriptor that is readable from [`Waker::wake`] to [`Waker::clear`].
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub(crate) fn wake(&self) {
        // A full counter is readable too.
        rustix::io::write(&*self.0, &1_u64.to_ne_bytes()).ok();
    }

    pub(crate) fn clear(&self) {
        // Nothing to clear is as good.
        rustix::io::read(&*self.0, &mut [0; 8]).ok();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Starts a thread, or says why there can be none; `std::thread::spawn` panics.
pub(crate) fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Something that is being done.
#[derive(Debug)]
pub(crate) struct Task<T>(Receiver<T>);

/// A task whose thread panicked.
#[derive(Debug)]
pub(crate) struct Panicked;

impl From<Panicked> for io::Error {
    fn from(Panicked: Panicked) -> Self {
        Self::other("a thread of the supervisor panicked")
    }
}

impl<T: Send + 'static> Task<T> {
    /// Does it on a thread of its own.
    pub(crate) fn start(
        name: &str,
        waker: &Waker,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let (task, job) = Self::new(waker, work);
        thread(name, job)?;
        Ok(task)
    }

    fn new(
        waker: &Waker,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> (Self, impl FnOnce() + Send + 'static) {
        let (told, hears) = channel();
        let waker = waker.clone();
        let job = move || {
            if let Ok(result) = catch_unwind(AssertUnwindSafe(work)) {
                // Nobody may be interested any more.
                told.send(result).ok();
            }
            drop(told);
            waker.wake();
        };
        (Self(hears), job)
    }

    /// What came of it, once, if it is done.
    pub(crate) fn poll(&self) -> Option<Result<T, Panicked>> {
        match self.0.try_recv() {
            Ok(result) => Some(Ok(result)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(Panicked)),
        }
    }
}

/// The thread that starts jobs. It lives as long as its process: the kernel kills a job's init when the thread ends that
/// cloned it.
pub(crate) struct Worker {
    work: Sender<Box<dyn FnOnce() + Send>>,
    waker: Waker,
}

impl Worker {
    pub(crate) fn start(waker: &Waker) -> io::Result<Self> {
        let (work, todo) = channel::<Box<dyn FnOnce() + Send>>();
        thread("mica-start", move || {
            mica_launcher::this_thread_stays();
            todo.into_iter().for_each(|work| work());
            // Without a sender the process is about to end.
            loop {
                std::thread::park();
            }
        })?;
        Ok(Self { work, waker: waker.clone() })
    }

    /// Does it after what was begun before.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        let (task, job) = Task::new(&self.waker, work);
        // It can't have ended; if it had, the task would say so.
        self.work.send(Box::new(job)).ok();
        task
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn wait<T: Send + 'static>(task: &Task<T>, waker: &Waker) -> Result<T, Panicked> {
        loop {
            if let Some(result) = task.poll() {
                return result;
            }
            poll(&mut [PollFd::new(waker, PollFlags::IN)], None).unwrap();
            waker.clear();
        }
    }

    #[test]
    fn the_loop_is_woken_also_by_a_panic() {
        let waker = Waker::new().unwrap();
        let worker = Worker::start(&waker).unwrap();
        let task = worker.begin(|| 3);
        assert_eq!(wait(&task, &waker).unwrap(), 3);
        let task = worker.begin(|| panic!("as expected"));
        assert!(wait(&task, &waker).is_err());
        let task = worker.begin(|| "goes on");
        assert_eq!(wait(&task, &waker).unwrap(), "goes on");
        let task = Task::start("test", &waker, || 4).unwrap();
        assert_eq!(wait(&task, &waker).unwrap(), 4);
    }
}
