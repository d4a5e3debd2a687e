//! Cleaning up after a supervisor that was killed: what every command does first.
//!
//! The job's mount is gone with the supervisor's namespace, and the job's init dies with the supervisor
//! (PR_SET_PDEATHSIG), which takes its pid namespace down. Left are control groups, the record, and the folder
//! of a job that was to be removed.

use std::fs;
use std::path::Path;

use mica_launcher::Cgroup;
use mica_launcher::cgroup::Directory;
use rustix::fs::FsWord;

use crate::config::JobConfig;
use crate::events;
use crate::files::{FileError, Lock};
use crate::job::JobDir;
use crate::restarts::restart_pending;
use crate::state::{StateDir, now_ms};
use crate::status::{Failure, Phase, Status, StoppedBy, boot_id};

/// Ends the jobs whose supervisor died and returns their ids. A job that can't be read is left as it is, and one that is
/// seen to be in order isn't touched: a command that only reads holds nobody up.
///
/// # Errors
/// The state directory can't be read or changed.
pub fn reconcile(state: &StateDir) -> Result<Vec<String>, FileError> {
    let mut ended = Vec::new();
    if state.writable().is_err() {
        return Ok(ended);
    }
    for job in state.jobs()? {
        if !matches!(look(&job), Some((config, status)) if is_abandoned(&config, status.as_ref())) {
            continue;
        }
        // Its supervisor lives, or somebody removes it.
        let Ok(Some(lock)) = job.try_lock() else { continue };
        // Looked at again: it may have been started and have ended meanwhile.
        if let Some((config, status)) = look(&job)
            && is_abandoned(&config, status.as_ref())
            && end(&job, &config, status, &lock)?
        {
            ended.push(job.id().to_owned());
        }
    }
    state.sweep();
    if let Err(error) = state.networks().reconcile() {
        // Jobs that have nothing to do with it go on.
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot clean up networks");
    }
    Ok(ended)
}

/// What is written about a job; `None` if it can't be understood.
fn look(job: &JobDir) -> Option<(JobConfig, Option<Status>)> {
    Some((job.config().ok()?, job.status().ok()?))
}

/// Whether there is something to do about a job if nobody owns it.
fn is_abandoned(config: &JobConfig, status: Option<&Status>) -> bool {
    status.is_none_or(|status| !status.is_final() || status.cgroup.is_some() || config.remove)
}

/// Ends one job whose supervisor is gone; the caller holds its lock.
pub(crate) fn end_one(job: &JobDir, lock: &Lock) -> Result<(), FileError> {
    match look(job) {
        Some((config, status)) if is_abandoned(&config, status.as_ref()) => {
            end(job, &config, status, lock).map(drop)
        }
        _ => Ok(()),
    }
}

/// Ends one job that nobody owns; says whether it ran.
fn end(
    job: &JobDir,
    config: &JobConfig,
    status: Option<Status>,
    lock: &Lock,
) -> Result<bool, FileError> {
    match status {
        Some(status) if status.is_final() => {
            let left = status.cgroup.as_ref().filter(|group| !clean_up(group, job.id()));
            if left.is_none() && config.remove {
                job.remove(lock)?;
            } else if left.is_none() && status.cgroup.is_some() {
                job.write_status(&Status { cgroup: None, ..status })?;
            }
            Ok(false)
        }
        // The command that made it died before its supervisor began.
        None if !job.has_written() => job.remove(lock).map(|()| false),
        status => {
            let status =
                status.unwrap_or_else(|| Status { boot: String::new(), ..Status::starting() });
            // Killed before it could write them down, a supervisor may have made groups all the same.
            let cgroup = status.cgroup.clone();
            let cgroup = cgroup.unwrap_or_else(|| find_cgroup(Path::new(CGROUPS), job.id()));
            let left = Some(cgroup).filter(|group| !clean_up(group, job.id()));
            events::record(job, config, "die", &[("exitCode", (128 + 9).to_string())]);
            let removable = config.remove && left.is_none();
            job.write_status(&orphaned(config, status, left, &boot_id()))?;
            if removable {
                job.remove(lock)?;
            }
            Ok(true)
        }
    }
}

/// Ends what is in a job's group and removes it. What a record says is believed of control groups that bear the job's name
/// only; true for anything else, about which there is nothing to do.
fn clean_up(group: &Cgroup, id: &str) -> bool {
    let name = format!("mica-{id}");
    let mut ours = group.clone();
    ours.v1.retain(|directory| is_group(&directory.path, &name));
    ours.v2 = ours.v2.filter(|directory| is_group(&directory.path, &name));
    mica_launcher::cleanup(&ours)
}

/// Whether this is a control group of that name: the kernel says which file system a folder is on.
fn is_group(path: &Path, name: &str) -> bool {
    const CGROUP: FsWord = 0x0027_e0eb;
    const CGROUP2: FsWord = 0x6367_7270;
    path.file_name().is_some_and(|last| last == name)
        && rustix::fs::statfs(path).is_ok_and(|stat| [CGROUP, CGROUP2].contains(&stat.f_type))
}

/// Where cgroup hierarchies are mounted (cgroups(7)).
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// The groups that the launcher made for a job, found by their name below `root`.
pub(crate) fn find_cgroup(root: &Path, id: &str) -> Cgroup {
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
fn orphaned(config: &JobConfig, status: Status, left: Option<Cgroup>, boot: &str) -> Status {
    let reason = if status.boot == boot {
        "the job's supervisor was killed, and the job with it"
    } else {
        "the machine was restarted while the job ran"
    };
    let failure = Failure { chain: vec![reason.to_owned()], hint: None, exit_code: 128 + 9 };
    let mut status = Status {
        phase: Phase::Failed,
        exit_code: Some(128 + 9),
        finished_ms: Some(now_ms()),
        error: Some(failure),
        cgroup: left,
        pid: None,
        stopped: Some(status.stopped.unwrap_or(StoppedBy::Nobody)),
        ..status
    };
    if restart_pending(config, &status) {
        status.phase = Phase::Exited;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Restart;
    use crate::config::tests::config;

    #[test]
    fn a_record_names_no_processes_of_others() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("mica-0123");
        fs::create_dir(&group).unwrap();
        let mut victim = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(group.join("cgroup.procs"), victim.id().to_string()).unwrap();
        let directory = Directory { path: group.clone(), controllers: Vec::new() };
        let record = Cgroup { v1: vec![directory.clone()], v2: Some(directory) };
        assert!(clean_up(&record, "0123"), "there is nothing to do about a folder");
        assert!(victim.try_wait().unwrap().is_none(), "a process of somebody else was killed");
        assert!(group.exists());
        victim.kill().unwrap();
        victim.wait().unwrap();
    }

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
        let config = config(Restart::No);
        let after = |boot| orphaned(&config, running.clone(), None, boot);
        assert_eq!(after("two").phase, Phase::Failed);
        assert!(after("two").is_final());
        assert!(after("two").error.unwrap().chain[0].contains("restarted"));
        assert!(after("one").error.unwrap().chain[0].contains("killed"));
    }
}
