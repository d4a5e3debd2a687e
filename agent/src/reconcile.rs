//! Cleaning up after a supervisor that was killed: what every command does first.
//!
//! The job's mount is gone with the supervisor's namespace, and the job's init dies with the supervisor
//! (PR_SET_PDEATHSIG), which takes its pid namespace down. Left are control groups, the record, and the folder
//! of a job that was to be removed.

use std::fs;
use std::path::Path;

use mica_launcher::Cgroup;
use mica_launcher::cgroup::Directory;

use crate::events;
use crate::files::{FileError, Lock};
use crate::state::{JobDir, StateDir, now_ms};
use crate::status::{Failure, Phase, Status, boot_id};

/// Ends the jobs whose supervisor died and returns their ids.
pub fn reconcile(state: &StateDir) -> Result<Vec<String>, FileError> {
    let mut ended = Vec::new();
    for job in state.jobs()? {
        let Some(lock) = job.try_lock()? else { continue };
        if end(state, &job, &lock)? {
            ended.push(job.id().to_owned());
        }
    }
    if let Err(error) = state.empty_trash() {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot remove an ended job");
    }
    if let Err(error) = state.networks().reconcile() {
        // Jobs that have nothing to do with it go on.
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot clean up networks");
    }
    Ok(ended)
}

/// Ends one job that nobody owns; says whether there was anything to end.
fn end(state: &StateDir, job: &JobDir, lock: &Lock) -> Result<bool, FileError> {
    let Ok(config) = job.config() else {
        // A command is making this folder right now, or was killed when it did: only one of them holds the names.
        let Some(_names) = state.try_names()? else { return Ok(false) };
        if job.config().is_err() {
            job.remove(lock)?;
        }
        return Ok(false);
    };
    // An unreadable status (a power failure in the middle) says as little as none.
    let status = job.status().ok().flatten();
    match status {
        Some(status) if status.is_final() => {
            let left = status.cgroup.as_ref().filter(|group| !mica_launcher::cleanup(group));
            if left.is_none() && config.remove {
                job.remove(lock)?;
            } else if left.is_none() && status.cgroup.is_some() {
                job.write_status(&Status { cgroup: None, ..status })?;
            }
            Ok(false)
        }
        None => job.remove(lock).map(|()| false),
        Some(status) => {
            // Killed before it could write them down, a supervisor may have made groups all the same.
            let cgroup = status.cgroup.clone();
            let cgroup = cgroup.unwrap_or_else(|| find_cgroup(Path::new(CGROUPS), job.id()));
            let left = Some(cgroup).filter(|group| !mica_launcher::cleanup(group));
            events::record(job, &config, "die", &[("exitCode", (128 + 9).to_string())]);
            let removable = config.remove && left.is_none();
            job.write_status(&orphaned(status, left, &boot_id()))?;
            if removable {
                job.remove(lock)?;
            }
            Ok(true)
        }
    }
}

/// Where cgroup hierarchies are mounted (cgroups(7)).
const CGROUPS: &str = "/sys/fs/cgroup";

/// The groups that the launcher made for a job, found by their name below `root`.
fn find_cgroup(root: &Path, id: &str) -> Cgroup {
    let name = format!("mica-{id}");
    let mut found = Cgroup::default();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_str() == Some(&name) {
                found.v1.push(Directory { path: entry.path(), controllers: Vec::new() });
            } else {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// The record of a job that nobody supervises. What is `left` of its control group stays in it, for the next command to
/// try again.
fn orphaned(status: Status, left: Option<Cgroup>, boot: &str) -> Status {
    let reason = if status.boot == boot {
        "the job's supervisor was killed, and the job with it"
    } else {
        "the machine was restarted while the job ran"
    };
    let failure = Failure { chain: vec![reason.to_owned()], hint: None, exit_code: 128 + 9 };
    Status {
        phase: Phase::Failed,
        exit_code: Some(128 + 9),
        finished_ms: Some(now_ms()),
        error: Some(failure),
        cgroup: left,
        ..status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_the_jobs_name() {
        let root = tempfile::tempdir().unwrap();
        for path in ["memory/user/mica-0123", "pids/mica-0123", "pids/mica-0124"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let mut found: Vec<_> =
            find_cgroup(root.path(), "0123").v1.into_iter().map(|dir| dir.path).collect();
        found.sort();
        assert_eq!(
            found,
            ["memory/user/mica-0123", "pids/mica-0123"].map(|path| root.path().join(path))
        );
    }

    #[test]
    fn a_job_of_another_boot_is_no_ghost() {
        let running = Status { phase: Phase::Running, boot: "one".into(), ..Status::starting() };
        let after = |boot| orphaned(running.clone(), None, boot);
        assert!(after("two").is_final());
        assert!(after("two").error.unwrap().chain[0].contains("restarted"));
        assert!(after("one").error.unwrap().chain[0].contains("killed"));
    }
}
