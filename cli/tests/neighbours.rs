//! What other accounts of the machine can do to mica's folders.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{USERS, World, need_fuse, noise};
use mica_graph::Digest;
use mica_squashfs::chunks::ChunkTable;

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
        for umask in ["0", "077", "777"] {
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

/// Changes a byte of an image's header that means nothing, in a folder of images; and lets its chunk table fit again, if that is told.
fn spoil(cache: &Path, manifest: &serde_json::Value, with_table: bool) {
    let layer = &manifest["layers"][0];
    let file = |digest: &serde_json::Value| {
        cache.join("blobs").join(digest.as_str().unwrap().trim_start_matches("blake3:"))
    };
    let (image, table) = (file(&layer["digest"]), file(&layer["chunks"]["digest"]));
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[4000] ^= 0x20;
    replace(&image, &bytes);
    if with_table {
        let old = ChunkTable::parse(&std::fs::read(&table).unwrap()).unwrap();
        let mut new = ChunkTable::default();
        for chunk in old.chunks() {
            let range = chunk.offset as usize..chunk.end() as usize;
            new.push(chunk.length, *Digest::of(&bytes[range]).as_bytes());
        }
        assert_ne!(old, new);
        replace(&table, &new.encode());
    }
}

fn replace(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Between the check of a signature and the mount the owner of a shared cache can change any file: here between two starts.
#[test]
fn what_the_owner_of_a_shared_cache_changes_is_not_run() {
    need_fuse();
    let root = rustix::process::geteuid().is_root();
    for (with_table, verify) in [(true, "first-read"), (true, "never"), (false, "never")] {
        if verify == "never" && !root {
            // A cache of one's own may be used without looking; only root can make one of somebody else.
            continue;
        }
        let world = World::new(USERS[0]);
        let workspace = world.workspace("monorepo");
        // Long enough for a chunk table.
        let source = workspace.join("app/A.sh");
        let comment: String = noise(1 << 20).iter().map(|byte| format!("{byte:02x}")).collect();
        let text = std::fs::read_to_string(&source).unwrap();
        std::fs::write(&source, format!("{text}# {comment}\n")).unwrap();
        world.commit(&workspace, "long");
        world.ok(&["pack", "--workspace", "monorepo", "--target", "//app:A"]);
        world.ok(&["pull", "A"]);
        let shared = world.path("shared");
        std::fs::rename(world.path("cache"), &shared).unwrap();
        if root {
            for path in all(&shared) {
                std::os::unix::fs::lchown(path, Some(23_456), Some(23_456)).unwrap();
            }
        }
        let mica = |args: &[&str]| {
            let mut command = world.mica(args);
            command.env("MICA_SHARED_CACHE", &shared);
            let output = command.output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let ran = mica(&["run", "-d", "--name", "a", "--verify", verify, "A"]);
        assert!(ran.0, "{ran:?}");
        assert!(mica(&["wait", "a"]).0);
        let manifests = shared.join("manifests").read_dir().unwrap();
        let manifest = manifests.map(|entry| entry.unwrap().path()).next().unwrap();
        let manifest = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        spoil(&shared, &manifest, with_table);
        let (started, said) = mica(&["start", "a"]);
        assert!(!started, "with its table: {with_table}, {verify}: {said}");
        let expected = if with_table { "the manifest says" } else { "damaged" };
        assert!(said.contains(expected), "with its table: {with_table}, {verify}: {said}");
        mica(&["rm", "-f", "a"]);
    }
}
