//! Health checks: a command that runs in the job now and then.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use mica_launcher::{Ending, ExecSpec, Job, LaunchError, Program, Stdio};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::config::HealthCheck;
use crate::status::{Health, HealthState};
use crate::task::{Task, Waker};

/// Of what a check prints, so much is kept.
const KEPT_OUTPUT: usize = 4 << 10;

/// The checks of a running job.
pub(crate) struct Monitor {
    check: HealthCheck,
    waker: Waker,
    started: Instant,
    health: Health,
    /// When the next check begins, or the running one has taken too long.
    due: Instant,
    running: Option<Running>,
    /// By which the job's init calls the next check.
    number: u64,
}

struct Running {
    /// By which the job's init calls it.
    number: u64,
    program: State,
    output: Option<File>,
    /// What it printed, as far as it is kept.
    printed: Vec<u8>,
}

enum State {
    Starting(Task<Result<Program, LaunchError>>),
    Runs(Program),
}

impl Monitor {
    /// Checks are called by numbers from `number` on.
    pub(crate) fn new(check: HealthCheck, number: u64, waker: &Waker) -> Self {
        let started = Instant::now();
        let due = started + Duration::from_millis(check.interval_ms);
        let (health, waker) = (Health::default(), waker.clone());
        Self { check, waker, started, health, due, running: None, number }
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// When [`Monitor::tick`] wants to be called.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// What becomes readable when a check has ended, and when it has printed something.
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let output = self.running.as_ref().and_then(|running| running.output.as_ref());
        let program = self.running.as_ref().and_then(|running| match &running.program {
            State::Runs(program) => Some(program.as_fd()),
            State::Starting(_) => None,
        });
        program.into_iter().chain(output.map(AsFd::as_fd))
    }

    /// Begins a check, ends one that takes too long, collects one that has ended. True if the job's health is another now.
    pub(crate) fn tick(&mut self, job: &Job) -> bool {
        let late = Instant::now() >= self.due;
        let Some(running) = &mut self.running else {
            return late && self.begin(job);
        };
        running.drain();
        match running.ended() {
            Some(Ok(ending)) => {
                running.drain();
                let text = String::from_utf8_lossy(&running.printed).into_owned();
                self.settle(ending == Ending::Exited(0), text)
            }
            Some(Err(error)) => self.settle(false, error),
            None if late => {
                // With all that it started; a job that has ended already is as good.
                job.end(running.number).ok();
                let text = format!("the check took more than {} ms", self.check.timeout_ms);
                self.settle(false, text)
            }
            None => false,
        }
    }

    fn begin(&mut self, job: &Job) -> bool {
        self.number += 1;
        match start(&self.check, job, self.number, &self.waker) {
            Ok(running) => {
                self.running = Some(running);
                self.due = Instant::now() + Duration::from_millis(self.check.timeout_ms);
                false
            }
            Err(error) => self.settle(false, error.to_string()),
        }
    }

    fn settle(&mut self, passed: bool, output: String) -> bool {
        self.running = None;
        self.due = Instant::now() + Duration::from_millis(self.check.interval_ms);
        let young = self.started.elapsed() < Duration::from_millis(self.check.start_period_ms);
        let next = after(&self.health, &self.check, passed, young, output);
        let changed = next != self.health;
        self.health = next;
        changed
    }
}

fn start(check: &HealthCheck, job: &Job, number: u64, waker: &Waker) -> io::Result<Running> {
    let argv = check.command.iter().map(Into::into).collect();
    let spec = ExecSpec { argv, ..ExecSpec::default() };
    let (stdio, output) = streams()?;
    let entrance = job.entrance(number)?;
    let task = Task::start("mica-health", waker, move || entrance.exec(&spec, stdio))?;
    let program = State::Starting(task);
    Ok(Running { number, program, output: Some(output), printed: Vec::new() })
}

fn streams() -> io::Result<(Stdio, File)> {
    let (output, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&output, rustix::fs::OFlags::NONBLOCK)?;
    let stderr = stdout.try_clone()?;
    let stdin = OwnedFd::from(File::open("/dev/null")?);
    Ok((Stdio::Streams { stdin, stdout, stderr }, output.into()))
}

impl Running {
    /// How it ended, if it has, or why it didn't begin.
    fn ended(&mut self) -> Option<Result<Ending, String>> {
        if let State::Starting(task) = &self.program {
            match task.poll()? {
                Ok(Ok(program)) => self.program = State::Runs(program),
                Ok(Err(error)) => return Some(Err(error.to_string())),
                Err(panicked) => return Some(Err(io::Error::from(panicked).to_string())),
            }
        }
        let State::Runs(program) = &mut self.program else { return None };
        Some(Ok(program.try_wait().ok()??))
    }

    /// Takes what was printed, so that the check need not wait; the beginning is kept.
    fn drain(&mut self) {
        let Some(output) = &mut self.output else { return };
        let mut buffer = [0; 16 << 10];
        // As much as there is, but not for ever: the loop has other things to do.
        for _ in 0..16 {
            match output.read(&mut buffer) {
                Ok(count @ 1..) => {
                    let room = KEPT_OUTPUT - self.printed.len();
                    self.printed.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => return self.output = None,
            }
        }
    }
}
/// A job's health after one more check.
fn after(
    health: &Health,
    check: &HealthCheck,
    passed: bool,
    young: bool,
    output: String,
) -> Health {
    if passed {
        return Health { state: HealthState::Healthy, failing_streak: 0, output };
    }
    if young && health.state == HealthState::Starting {
        return Health { output, ..health.clone() };
    }
    let failing_streak = health.failing_streak.saturating_add(1);
    let state =
        if failing_streak >= check.retries.max(1) { HealthState::Unhealthy } else { health.state };
    Health { state, failing_streak, output }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_in_a_row_and_not_at_the_start() {
        let check = HealthCheck {
            command: vec!["true".into()],
            interval_ms: 1,
            timeout_ms: 1,
            start_period_ms: 1,
            retries: 2,
        };
        let step =
            |health: &Health, passed, young| after(health, &check, passed, young, "x".into());
        let young = step(&Health::default(), false, true);
        assert_eq!((young.state, young.failing_streak), (HealthState::Starting, 0));
        let healthy = step(&young, true, true);
        assert_eq!(healthy.state, HealthState::Healthy);
        let once = step(&healthy, false, false);
        assert_eq!((once.state, once.failing_streak), (HealthState::Healthy, 1));
        assert_eq!(step(&once, false, false).state, HealthState::Unhealthy);
        assert_eq!(step(&once, true, false).failing_streak, 0);
    }
}
