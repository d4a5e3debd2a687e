//! Which ended jobs are to be started again although their supervisor, which else sees to that, is gone: it was killed, or
//! the machine was restarted. There is no daemon: `mica start --all-restartable` does it, at boot or whenever it is called.
//!
//! By docker's rules. A job that a person has stopped stays so; with the policy `always`, until the machine is restarted.
//! One with `on-failure` is started again after its supervisor was killed, but not because the machine was restarted.

use crate::config::{JobConfig, Restart};
use crate::files::{FileError, Lock};
use crate::job::JobDir;
use crate::state::StateDir;
use crate::status::{Phase, Status, StoppedBy, boot_id};

/// Whether `mica start --all-restartable` starts a job that is as `status` says.
pub fn restart_pending(config: &JobConfig, status: &Status) -> bool {
    status.is_final() && !config.remove && is_pending(config.restart, status, &boot_id())
}

fn is_pending(restart: Restart, status: &Status, boot: &str) -> bool {
    let restarted = status.boot != boot;
    let by_person = match status.stopped {
        Some(by) => by == StoppedBy::Person,
        // An earlier version didn't say: there, what a policy didn't start again was stopped.
        None => status.phase == Phase::Exited,
    };
    match restart {
        Restart::No => false,
        Restart::Always => restarted || !by_person,
        Restart::UnlessStopped => !by_person,
        Restart::OnFailure(_) => {
            let code = status.exit_code.unwrap_or_default();
            !restarted && !by_person && restart.again(code, status.restarts)
        }
    }
}

/// Writes down that a job is now started again, so that its supervisor goes on counting; false if it is not to be. The
/// caller holds its lock: if that is all that happens, the next command finds the job as it was.
///
/// # Errors
/// Its folder can't be read or written.
pub fn resume(job: &JobDir, _lock: &Lock) -> Result<bool, FileError> {
    let config = job.config()?;
    let Some(status) = job.status()?.filter(|status| restart_pending(&config, status)) else {
        return Ok(false);
    };
    let restarts = status.restarts.saturating_add(1);
    job.write_status(&Status {
        phase: Phase::Restarting,
        stopped: Some(StoppedBy::Nobody),
        boot: boot_id(),
        pid: None,
        restarts,
        ..status
    })?;
    Ok(true)
}

/// Writes down that a person doesn't want an ended job to be started again.
pub(crate) fn forget(job: &JobDir) -> Result<(), FileError> {
    // What can't be read is started by nobody.
    let pending = || -> Option<Status> {
        let status = job.status().ok().flatten()?;
        restart_pending(&job.config().ok()?, &status).then_some(status)
    };
    if pending().is_none() {
        return Ok(());
    }
    StateDir::open(job.root())?.writable()?;
    // Whoever has it now has started it again.
    let Some(_lock) = job.lock_ended()? else { return Ok(()) };
    match pending() {
        Some(status) => {
            let stopped = Some(StoppedBy::Person);
            job.write_status(&Status { stopped, boot: boot_id(), ..status })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;
    use crate::state::CreateError;

    fn ended(stopped: Option<StoppedBy>, code: i32, boot: &str) -> Status {
        let boot = boot.to_owned();
        let exit_code = Some(code);
        Status { phase: Phase::Exited, stopped, boot, exit_code, ..Status::starting() }
    }

    #[test]
    fn what_is_started_again_follows_docker() {
        let nobody = Some(StoppedBy::Nobody);
        let person = Some(StoppedBy::Person);
        let fails = Restart::OnFailure(None);
        // By whom it was stopped, its exit code, whether the machine was restarted, and whether it is started again under
        // `always`, `unless-stopped` and `on-failure`.
        let cases = [
            (nobody, 137, false, [true, true, true]),
            (nobody, 137, true, [true, true, false]),
            (nobody, 0, false, [true, true, false]),
            (person, 143, false, [false, false, false]),
            (person, 143, true, [true, false, false]),
            // An earlier version's.
            (None, 143, false, [false, false, false]),
            (None, 143, true, [true, false, false]),
        ];
        for (stopped, code, restarted, expected) in cases {
            let status = ended(stopped, code, if restarted { "before" } else { "now" });
            let found = [Restart::Always, Restart::UnlessStopped, fails]
                .map(|policy| is_pending(policy, &status, "now"));
            assert_eq!(found, expected, "{stopped:?} {code} {restarted}");
            assert!(!is_pending(Restart::No, &status, "now"));
        }
        let often = Status { restarts: 2, ..ended(nobody, 137, "now") };
        assert!(is_pending(Restart::OnFailure(Some(3)), &often, "now"));
        assert!(!is_pending(Restart::OnFailure(Some(2)), &often, "now"));
    }

    #[test]
    fn a_record_of_an_earlier_version_is_understood() {
        let mut text = serde_json::to_value(ended(None, 0, "now")).unwrap();
        let fields = text.as_object_mut().unwrap();
        fields.remove("stopped");
        fields.remove("next_delay_ms");
        let status: Status = serde_json::from_value(text).unwrap();
        assert_eq!((status.stopped, status.next_delay_ms), (None, None));
    }

    #[test]
    fn what_a_newer_version_alone_may_change_stays() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("state");
        let state = StateDir::open(&root).unwrap();
        let made = |_: &JobDir| Ok::<_, CreateError>(config(Restart::Always));
        let (job, lock) = state.create(made).unwrap();
        job.write_status(&ended(Some(StoppedBy::Nobody), 137, &boot_id())).unwrap();
        drop(lock);
        let features = r#"{ "version": 1, "read-only-compatible": ["later"] }"#;
        std::fs::write(root.join("state.json"), features).unwrap();
        let is_pending =
            || restart_pending(&job.config().unwrap(), &job.status().unwrap().unwrap());
        assert!(forget(&job).is_err() && is_pending());
        std::fs::remove_file(root.join("state.json")).unwrap();
        forget(&job).unwrap();
        assert!(!is_pending());
        // Not twice, and not with a lock that nobody gives back.
        forget(&job).unwrap();
        assert!(!resume(&job, &job.try_lock().unwrap().unwrap()).unwrap());
    }
}
