//! Ending what does not end by itself.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::config::JobConfig;
use crate::job::JobDir;
use crate::reconcile::{CGROUPS, find_cgroup};

/// Where the kernel's FUSE connections can be aborted.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How long killed children are waited for.
const DYING: Duration = Duration::from_millis(500);

/// Ends the job's mounts with an error for everybody who waits for them: also those who can't be killed while they do.
/// Called in the mount namespace of the job's supervisor. What can't be aborted is when the supervisor ends.
pub(crate) fn abort_mounts(job: &JobDir, config: &JobConfig) {
    let images = (0..config.images.len()).map(|index| job.image_tree(index));
    for tree in std::iter::once(job.tree()).chain(images) {
        if let Err(error) = abort(&tree) {
            tracing::debug!(%error, tree = %tree.display(), "cannot abort a mount");
        }
    }
}

/// By force where we are root outside too; else through the file that the kernel has for it, if that is mounted.
fn abort(tree: &Path) -> io::Result<()> {
    // Neither asks the file system: it may be the one that doesn't answer.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let minor = statx(CWD, tree, flags, StatxFlags::empty()).map(|stat| stat.stx_dev_minor);
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match unmount(tree, flags) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::INVAL) => return Ok(()), // nothing is mounted there
        Err(_) => {}
    }
    fs::write(Path::new(CONNECTIONS).join(minor?.to_string()).join("abort"), "1")
}

/// Kills what this process has started, and what is in the control groups of the job: when a start is given up, whatever
/// it was at.
pub(crate) fn end_start(job: &JobDir) {
    let until = Instant::now() + DYING;
    let mut left = true;
    while left && Instant::now() < until {
        let children = children();
        for pid in &children {
            // It may have ended by itself.
            kill_process(*pid, Signal::KILL).ok();
        }
        let alive = |pid: &Pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None));
        left = children.iter().filter(|pid| alive(pid)).count() > 0;
        std::thread::sleep(Duration::from_millis(2));
    }
    mica_launcher::cleanup(&find_cgroup(Path::new(CGROUPS), job.id()));
}

fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let texts = threads.filter_map(|entry| fs::read_to_string(entry.path().join("children")).ok());
    let pids: Vec<String> = texts
        .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    pids.iter().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}
