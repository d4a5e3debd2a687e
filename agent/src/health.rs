//! Health checks: a command that runs in the job now and then.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use mica_launcher::{Ending, ExecSpec, Job, LaunchError, Program, Stdio};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::config::HealthCheck;
use crate::status::{Health, HealthState};

/// Of what a check prints, so much is kept.
const KEPT_OUTPUT: u64 = 4 << 10;

/// The checks of a running job.
pub(crate) struct Monitor {
    check: HealthCheck,
    started: Instant,
    health: Health,
    /// When the next check begins, or the running one has taken too long.
    due: Instant,
    running: Option<Running>,
}

struct Running {
    program: Program,
    output: File,
}

impl Monitor {
    pub(crate) fn new(check: HealthCheck) -> Self {
        let started = Instant::now();
        let due = started + Duration::from_millis(check.interval_ms);
        Self { check, started, health: Health::default(), due, running: None }
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// When [`Monitor::tick`] wants to be called.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// What becomes readable when a check has ended.
    pub(crate) fn running(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.program.as_fd())
    }

    /// Begins a check, ends one that takes too long, collects one that has ended. True if the job's health is another now.
    pub(crate) fn tick(&mut self, job: &Job) -> bool {
        let late = Instant::now() >= self.due;
        match &mut self.running {
            None if late => match start(&self.check, job) {
                Ok(running) => {
                    self.running = Some(running);
                    self.due = Instant::now() + Duration::from_millis(self.check.timeout_ms);
                    false
                }
                Err(error) => self.settle(false, error.to_string()),
            },
            None => false,
            Some(running) => match running.program.try_wait() {
                Ok(Some(ending)) => {
                    let text = running.printed();
                    self.settle(ending == Ending::Exited(0), text)
                }
                _ if late => {
                    // Gone already is as good.
                    running.program.signal(9).ok();
                    let text = format!("the check took more than {} ms", self.check.timeout_ms);
                    self.settle(false, text)
                }
                _ => false,
            },
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

fn start(check: &HealthCheck, job: &Job) -> Result<Running, LaunchError> {
    let spec =
        ExecSpec { argv: check.command.iter().map(Into::into).collect(), ..ExecSpec::default() };
    let (stdio, output) = streams().map_err(LaunchError::Talk)?;
    Ok(Running { program: job.exec(&spec, stdio)?, output })
}

fn streams() -> io::Result<(Stdio, File)> {
    let (output, stdout) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // The check shall wait for us, not fail, when it prints much.
    rustix::fs::fcntl_setfl(&stdout, rustix::fs::OFlags::empty())?;
    let stderr = stdout.try_clone()?;
    let stdin = OwnedFd::from(File::open("/dev/null")?);
    Ok((Stdio::Streams { stdin, stdout, stderr }, output.into()))
}

impl Running {
    fn printed(&mut self) -> String {
        let mut bytes = Vec::new();
        // It ends with "would block" if the check left a process with its output open.
        (&mut self.output).take(KEPT_OUTPUT).read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
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
