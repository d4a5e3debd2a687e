//! What other accounts of the machine can do to mica's folders.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{USERS, World, need_fuse};

fn all(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in path.read_dir().unwrap() {
            found.extend(all(&entry.unwrap().path()));
        }
    }
    found
}

#[test]
fn whatever_the_umask_nobody_else_can_write_a_cache_or_a_registry() {
    for user in USERS {
        for umask in ["0", "077"] {
            let world = World::new(user);
            world.workspace("monorepo");
            let mica = world.binary();
            let script = format!(
                "umask {umask}; {0} pack --workspace monorepo --target //app:A && {0} pull A",
                mica.display()
            );
            let ran = world.command("sh").args(["-ec", &script]).output().unwrap();
            assert!(ran.status.success(), "{ran:?}");
            let below = ["cache", "registry"].map(|folder| all(&world.path(folder))).concat();
            assert!(below.len() > 20, "{below:#?}");
            for path in below {
                let mode = path.symlink_metadata().unwrap().mode();
                assert_eq!(mode & 0o022, 0, "{mode:o} {} with umask {umask}", path.display());
                let private = ["locks", "leases", "incoming"];
                if path
                    .components()
                    .any(|part| private.iter().any(|name| part.as_os_str() == *name))
                {
                    assert_eq!(mode & 0o077, 0, "{mode:o} {}", path.display());
                } else {
                    let readable = if path.is_dir() { 0o755 } else { 0o444 };
                    assert_eq!(mode & readable, readable, "{mode:o} {}", path.display());
                }
            }
        }
    }
}

/// A lock of the cache that some process of ours holds keeps a job from starting, but nobody from ending that.
#[test]
fn a_start_that_waits_for_a_lock_ends_on_a_signal() {
    need_fuse();
    for user in USERS {
        let world = World::new(user);
        world.workspace("monorepo");
        world.ok(&["pack", "--workspace", "monorepo", "--target", "//app:A"]);
        world.ok(&["pull", "A"]);
        let lock = std::fs::File::open(world.path("cache/locks/gc")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        for detached in [true, false] {
            let flags: &[&str] = if detached { &["run", "-d"] } else { &["run", "--rm"] };
            let mut run = world.mica(&[flags, &["A"]].concat()).spawn().unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            let pid = rustix::process::Pid::from_child(&run);
            // Again and again: whatever it waits for, none of it may swallow the signal for good.
            while run.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "{user:?}, detached: {detached}");
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        drop(lock);
        world.ends_clean();
    }
}
