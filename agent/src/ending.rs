//! Ending a job from outside, whether its supervisor answers or not.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM};

use crate::control::{ControlError, Remote};
use crate::job::JobDir;
use crate::reconcile;
use crate::restarts;

/// A supervisor that serves answers at once.
const ANSWER: Duration = Duration::from_secs(1);
/// Also one on a busy machine, where nobody is in a hurry.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a job that is killed nothing is left after so long; the supervisor gives up what it can't kill before.
const KILLED: Duration = Duration::from_millis(2800);
/// A job that is stopped in its time may complete what it wrote.
const LEAVING: Duration = Duration::from_secs(20);
/// How long killed processes may take to be gone.
const DYING: Duration = Duration::from_millis(600);

/// Asks the job to end, makes it after `timeout` seconds, and returns when nothing of it is left. What is `None` is as the
/// job was told when it was started; one that has ended isn't started again by its restart policy. A supervisor that doesn't answer, or doesn't come to an end, is killed, and the job
/// with it.
///
/// # Errors
/// The job doesn't run; a process of it hangs in the kernel, where nobody can kill it.
pub fn stop(job: &JobDir, signal: Option<i32>, timeout: Option<u64>) -> Result<(), ControlError> {
    let stopped = end(job, signal, timeout);
    if matches!(stopped, Ok(()) | Err(ControlError::NotRunning(_))) && job.path().exists() {
        restarts::forget(job)?;
    }
    stopped
}

fn end(job: &JobDir, signal: Option<i32>, timeout: Option<u64>) -> Result<(), ControlError> {
    let own = || Some(job.config().ok()?.stop_timeout);
    let given = Duration::from_secs(timeout.or_else(own).unwrap_or_default());
    let asked = Remote::connect_within(job, ANSWER).and_then(|job| job.stop(signal, timeout));
    match asked {
        Ok(()) => {
            let leaving = if given.is_zero() { KILLED } else { LEAVING };
            if job.wait_until_released(given.saturating_add(leaving)).is_ok() {
                return Ok(());
            }
        }
        Err(ControlError::Talk { .. }) => {}
        // Nobody listens although somebody has the job.
        Err(ControlError::NotRunning(_)) if job.path().exists() && job.is_owned() => {}
        Err(error) => return Err(error),
    }
    force(job)
}

/// Sends a signal to the job's own program; one that ends it while it is still being started ends the start. A supervisor
/// that doesn't answer is killed for a signal that can't be ignored, or that asks a program to end.
///
/// # Errors
/// The job has ended; it refuses; as of [`stop`].
pub fn signal(job: &JobDir, signal: i32) -> Result<(), ControlError> {
    match Remote::connect_within(job, PATIENCE).and_then(|job| job.signal(signal)) {
        Err(ControlError::Talk { .. })
            if [SIGKILL, SIGTERM, SIGINT, SIGQUIT, SIGHUP].contains(&signal) =>
        {
            force(job)?;
            Ok(restarts::forget(job)?)
        }
        result => result,
    }
}

/// Kills whoever has the job, and the job, and cleans up.
fn force(job: &JobDir) -> Result<(), ControlError> {
    let until = Instant::now() + DYING;
    // Before the supervisor is gone: then nobody else can have this number.
    let init = job.status().ok().flatten().and_then(|status| Pid::from_raw(status.pid?));
    let init = init.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let init = init.filter(|_| job.is_owned());
    loop {
        let holders = holders(&job.path().join("lock"));
        for pid in &holders {
            if let Ok(pidfd) = pidfd_open(*pid, PidfdFlags::empty()) {
                // One that has gone meanwhile is what we want.
                pidfd_send_signal(&pidfd, Signal::KILL).ok();
            }
        }
        if let Some(init) = &init {
            pidfd_send_signal(init, Signal::KILL).ok();
        }
        if job.wait_until_released(Duration::from_millis(50)).is_ok() {
            break;
        }
        if Instant::now() >= until {
            let pids = holders.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
            return Err(ControlError::Stuck { id: job.id().to_owned(), pids });
        }
    }
    if let Some(init) = init {
        await_end(&init, DYING);
    }
    let Some(lock) = job.try_lock()? else { return Ok(()) };
    if job.path().exists() {
        reconcile::end_one(job, &lock)?;
    }
    Ok(())
}

fn await_end(pidfd: &OwnedFd, limit: Duration) {
    let limit = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
    // Whether it ended in time shows when its control group is removed.
    let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit));
}

/// The processes that hold a lock, by what the kernel says of their descriptors; this one left out.
fn holders(lock: &Path) -> Vec<Pid> {
    let Ok(meta) = fs::metadata(lock) else { return Vec::new() };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| *pid != getpid() && holds(*pid, (meta.dev(), meta.ino()))).collect()
}

fn holds(pid: Pid, file: (u64, u64)) -> bool {
    let folder = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    // Other users' processes can't be looked at, and can't have the lock.
    let descriptors = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    let same = descriptors.filter(|entry| {
        fs::metadata(entry.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == file)
    });
    let mut infos = same.map(|entry| folder.join("fdinfo").join(entry.file_name()));
    // Who only asks whether the lock is free has the file open too.
    infos.any(|info| fs::read_to_string(info).is_ok_and(|text| is_locked(&text)))
}

/// By the text of a descriptor's `fdinfo` (proc(5)).
fn is_locked(info: &str) -> bool {
    info.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Lock;

    #[test]
    fn who_holds_a_lock_is_found_and_who_asks_for_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::exclusive(&path, Duration::ZERO).unwrap();
        // A child that has inherited the lock, as a supervisor has.
        let mut command = std::process::Command::new("sleep");
        let file = held.file().try_clone().unwrap();
        let mut child = command.arg("60").stdin(file).spawn().unwrap();
        let asks = fs::File::open(&path).unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").stdin(asks).spawn().unwrap();
        let found = holders(&path);
        child.kill().unwrap();
        other.kill().unwrap();
        assert_eq!(found, [Pid::from_child(&child)]);
        child.wait().unwrap();
        other.wait().unwrap();
    }
}
