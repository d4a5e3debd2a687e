//! What a supervisor waits for when no job runs: steps of its start and its end, and the rest of its output. It serves
//! meanwhile, and gives up what nobody wants any more.

use std::io;
use std::time::{Duration, Instant};

use crate::output::Output;
use crate::session::{Session, earlier};
use crate::task::{Panicked, Task};

/// A step that is to be given up may still end by itself for so long.
const GRACE: Duration = Duration::from_millis(300);
/// Output that doesn't move for so long doesn't move.
const STILL: Duration = Duration::from_secs(1);

/// Why a step was not waited for.
#[derive(Debug)]
pub(crate) enum Interrupted {
    /// Somebody wants the job to end, or the step took too long.
    Stopped,
    /// The loop can't wait.
    Poll(io::Error),
    /// There will be no result.
    Panicked(Panicked),
}

impl Session {
    /// Whether there will be a job in a moment.
    pub(super) fn job_is_starting(&self) -> bool {
        self.is_starting
    }

    /// Whether the job that is being started is to end.
    fn is_unwanted(&self) -> bool {
        self.wishes.stopped || self.interrupted.is_some()
    }

    /// By which signal the job is to end that is being started, if it is to.
    pub(crate) fn unwanted(&self) -> Option<i32> {
        let signal = self.interrupted.unwrap_or(self.wishes.signal);
        self.is_unwanted().then_some(signal)
    }

    /// Serves until a step of the start is done. It is given up when the job is to be stopped.
    pub(crate) fn during<T: Send + 'static>(&mut self, task: &Task<T>) -> Result<T, Interrupted> {
        self.is_starting = true;
        let done = self.wait_for(task, None, |session| session.is_unwanted());
        self.is_starting = false;
        done
    }

    /// Serves until a step of the end is done, which may take so long. It is given up when somebody is in a hurry.
    pub(crate) fn ending<T: Send + 'static>(
        &mut self,
        task: &Task<T>,
        limit: Duration,
    ) -> Result<T, Interrupted> {
        self.wait_for(task, Some(Instant::now() + limit), |session| session.wishes.hurry)
    }

    fn wait_for<T: Send + 'static>(
        &mut self,
        task: &Task<T>,
        until: Option<Instant>,
        unwanted: impl Fn(&Self) -> bool,
    ) -> Result<T, Interrupted> {
        let mut given_up = None;
        loop {
            if let Some(result) = task.poll() {
                return result.map_err(Interrupted::Panicked);
            }
            if given_up.is_none() && unwanted(self) {
                given_up = Some(Instant::now() + GRACE);
            }
            let until = earlier(until, given_up);
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(Interrupted::Stopped);
            }
            let ready = self.wait(None, until).map_err(Interrupted::Poll)?;
            self.serve(&ready, None);
        }
    }

    /// Serves until the job's output has been passed on. Whoever holds a stream of the job without using it, or doesn't read,
    /// is waited for only if it is the starting command.
    pub(crate) fn drain(&mut self, output: &Output) -> io::Result<()> {
        let mut moved = self.sinks.moved();
        let mut since = Instant::now();
        while !output.is_done() || !self.sinks.are_idle() {
            let patience = if self.wishes.stopped { GRACE } else { STILL };
            if self.sinks.moved() != moved {
                (moved, since) = (self.sinks.moved(), Instant::now());
            } else if since.elapsed() >= patience {
                if self.wishes.stopped || !self.sinks.starter_reads() {
                    output.stop();
                    self.sinks.remove_slow();
                }
                since = Instant::now();
            }
            let ready = self.wait(None, Some(since + patience))?;
            self.serve(&ready, None);
        }
        Ok(())
    }

    /// Serves without a job, until then or until it is not to be started any more.
    pub(crate) fn idle(&mut self, until: Instant) -> io::Result<()> {
        while !self.wishes.stopped && Instant::now() < until {
            let ready = self.wait(None, Some(until))?;
            self.serve(&ready, None);
        }
        Ok(())
    }
}
