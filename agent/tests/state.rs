//! The state directory, when it is damaged, newer, shared, or used by several processes at once.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mica_agent::{CreateError, JobConfig, JobDir, Lock, StackConfig, StateDir, reconcile, remove};
use mica_launcher::{Root, Spec};
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// A job that was made and not started: nobody owns it.
fn job(state: &StateDir, name: &str, remove: bool) -> JobDir {
    let (job, lock) = state
        .create::<CreateError>(|job| {
            Ok(JobConfig {
                name: Some(name.to_owned()),
                stack: StackConfig { source: "A@1".into(), ..StackConfig::default() },
                images: Vec::new(),
                spec: Spec::new(job.id(), Root::Tree(job.tree()), ["app/A"]),
                remove,
                stop_signal: 15,
                stop_timeout: 10,
                labels: Default::default(),
                created_ms: mica_agent::now_ms(),
                terminal: false,
                open_stdin: false,
                restart: Default::default(),
                health: None,
                network: None,
                log: Default::default(),
            })
        })
        .unwrap();
    drop(lock);
    job
}

const EXITED: &str = r#"{"phase":"exited","supervisor":1,"pid":null,"cgroup":null,
    "exit_code":0,"error":null,"started_ms":1,"finished_ms":2}"#;

/// A job that has run and written something.
fn ended(state: &StateDir, name: &str) -> JobDir {
    let job = job(state, name, false);
    fs::write(job.path().join("status.json"), EXITED).unwrap();
    fs::create_dir(job.path().join("upper")).unwrap();
    fs::write(job.path().join("upper/work"), "of a week").unwrap();
    job
}

fn state() -> (tempfile::TempDir, StateDir) {
    let dir =
        tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    (dir, state)
}

/// What may stand where a document should be: after a crash, of a newer version, or put there by somebody.
fn put(kind: &str, path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    fs::remove_file(path).unwrap();
    match kind {
        "empty" => fs::write(path, "").unwrap(),
        "half" => fs::write(path, &text[..text.len() / 2]).unwrap(),
        "zeros" => fs::write(path, [0_u8; 700]).unwrap(),
        "newer" => {
            let newer = text
                .replace(r#""phase":"exited""#, r#""phase":"hibernated""#)
                .replace(r#""restart": "no""#, r#""restart": "when-it-rains""#);
            assert_ne!(newer, text);
            fs::write(path, newer).unwrap();
        }
        "fifo" => mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "link" => symlink("/dev/zero", path).unwrap(),
        "folder" => fs::create_dir(path).unwrap(),
        "huge" => fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
        _ => panic!("{kind}"),
    }
}

const KINDS: [&str; 9] =
    ["empty", "half", "zeros", "newer", "fifo", "socket", "link", "folder", "huge"];

#[test]
fn nothing_unreadable_is_removed_but_when_told() {
    let (_dir, state) = state();
    for file in ["config.json", "status.json"] {
        for kind in KINDS {
            let job = ended(&state, &format!("{kind}-{file}"));
            put(kind, &job.path().join(file));
            let begun = Instant::now();
            for _ in 0..2 {
                assert!(reconcile(&state).unwrap().is_empty(), "{kind} {file}");
            }
            let kept = job.path().join("upper/work");
            assert_eq!(fs::read_to_string(&kept).unwrap(), "of a week", "{kind} {file}");
            assert!(job.config().and_then(|_| job.status()).is_err(), "{kind} {file}");
            // It is found by its id, and by its name where that can be read.
            assert_eq!(state.find(job.id()).unwrap().id(), job.id());
            if file == "status.json" || kind == "newer" {
                assert_eq!(state.find(&format!("{kind}-{file}")).unwrap().id(), job.id());
            }
            remove(&job).unwrap();
            assert!(!job.path().exists(), "{kind} {file}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{kind} {file}: it hung");
        }
    }
    assert!(state.jobs().unwrap().is_empty());
}

#[test]
fn a_lock_that_is_none_neither_hangs_nor_keeps_the_job() {
    let (_dir, state) = state();
    for kind in ["fifo", "socket", "link", "folder"] {
        let job = ended(&state, kind);
        put(kind, &job.path().join("lock"));
        reconcile(&state).unwrap();
        assert!(!job.is_owned() && job.path().exists());
        remove(&job).unwrap();
        assert!(!job.path().exists(), "{kind}");
    }
}

#[test]
fn a_job_that_lost_its_status_keeps_what_it_wrote() {
    let (_dir, state) = state();
    let (lost, never) = (ended(&state, "lost"), job(&state, "never", false));
    fs::remove_file(lost.path().join("status.json")).unwrap();
    reconcile(&state).unwrap();
    assert!(lost.path().join("upper/work").exists());
    assert!(lost.status().unwrap().unwrap().is_final());
    assert!(!never.path().exists(), "it never began");
}

#[test]
fn jobs_are_removed_beside_any_number_of_readers() {
    let (dir, state) = state();
    let jobs: Vec<JobDir> = (0..60).map(|n| ended(&state, &format!("job{n}"))).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let state = StateDir::open(dir.path()).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    assert!(reconcile(&state).unwrap().is_empty());
                    for job in state.jobs().unwrap() {
                        let _ = (job.config(), job.status(), job.is_owned());
                    }
                }
            });
        }
        for (index, job) in jobs.iter().enumerate() {
            if index % 2 == 0 {
                let lock = state.take(job).unwrap();
                assert!(lock.is_some(), "a reader keeps {} from being started", job.id());
            }
            remove(job).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(state.jobs().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
}

#[test]
fn a_reader_makes_no_locks() {
    let (_dir, state) = state();
    let job = ended(&state, "job");
    fs::remove_file(job.path().join("lock")).unwrap();
    reconcile(&state).unwrap();
    assert!(!job.is_owned());
    assert!(!job.path().join("lock").exists());
}

#[test]
fn a_job_is_seen_as_a_whole_or_not_at_all() {
    let (dir, state) = state();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for job in state.jobs().unwrap() {
                    assert!(job.config().is_ok() || !job.path().exists());
                }
            }
        });
        for n in 0..50 {
            job(&state, &format!("job{n}"), n % 2 == 0);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // As if its command had been killed.
    fs::create_dir(dir.path().join("jobs/.0123456789ab")).unwrap();
    reconcile(&state).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("jobs")).unwrap().count(), 0);
}

#[test]
fn a_state_directory_is_the_callers_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (top, path) = (dir.path(), dir.path().join("state"));
    StateDir::open(&path).unwrap();
    for name in [".", "jobs", "state.json"] {
        assert_eq!(fs::metadata(path.join(name)).unwrap().mode() & 0o077, 0, "{name}");
    }
    let chmod =
        |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    for (above, mode, fine) in [
        (0o755, 0o700, true),
        (0o755, 0o777, false),
        (0o755, 0o755, false),
        (0o755, 0o770, false),
        (0o777, 0o700, false),
        (0o1777, 0o700, true),
    ] {
        chmod(top, above);
        chmod(&path, mode);
        assert_eq!(StateDir::open(&path).is_ok(), fine, "{mode:o} in {above:o}");
    }
    chmod(top, 0o700);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert!(error.source.to_string().contains("belongs to user 12345"), "{}", error.source);
    }
}

#[test]
fn a_newer_state_directory_is_read_or_left_alone() {
    let (dir, state) = state();
    let job = ended(&state, "job");
    let features = dir.path().join("state.json");
    fs::write(&features, r#"{"version":1,"read-only-compatible":["tags"]}"#).unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    assert_eq!(state.jobs().unwrap().len(), 1);
    assert!(reconcile(&state).unwrap().is_empty());
    assert!(state.take(&job).unwrap_err().source.to_string().contains("tags"));
    assert!(state.rename(&job, "other").is_err());
    assert!(state.volumes().create(&"v".parse().unwrap()).is_err());
    fs::write(&features, r#"{"version":1,"incompatible":["tree-of-jobs"]}"#).unwrap();
    let error = StateDir::open(dir.path()).unwrap_err();
    assert!(error.source.to_string().contains("newer version of mica"), "{}", error.source);
}

#[test]
fn a_wait_for_a_job_names_who_keeps_it() {
    let (_dir, state) = state();
    let job = ended(&state, "job");
    let _held = Lock::try_exclusive(&job.path().join("lock")).unwrap().unwrap();
    let error = job.wait_until_released(Duration::from_millis(20)).unwrap_err();
    let process = format!("process {}", std::process::id());
    assert!(error.source.to_string().contains(&process), "{}", error.source);
}

#[test]
fn a_volume_of_a_job_that_cannot_be_read_stays() {
    let (_dir, state) = state();
    let name = "data".parse().unwrap();
    let data = state.volumes().create(&name).unwrap();
    let (newer, broken) = (ended(&state, "newer"), ended(&state, "broken"));
    let config = newer.path().join("config.json");
    let uses = format!(r#"{{"name":"newer","volumes":[{{"at":{data:?}}}]}}"#);
    fs::write(&config, uses).unwrap();
    fs::write(broken.path().join("config.json"), "{").unwrap();
    state.volumes().remove(&name).unwrap_err();
    remove(&newer).unwrap();
    state.volumes().remove(&name).unwrap_err();
    remove(&broken).unwrap();
    state.volumes().remove(&name).unwrap();
    assert!(!data.exists());
}

#[test]
fn trees_of_any_depth_are_removed() {
    let (_dir, state) = state();
    let name = "deep".parse().unwrap();
    let data = state.volumes().create(&name).unwrap();
    let job = ended(&state, "job");
    for top in [&data, &job.path().join("upper")] {
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let mut at = rustix::fs::open(top, flags, Mode::empty()).unwrap();
        for _ in 0..1500 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        }
    }
    state.volumes().remove(&name).unwrap();
    remove(&job).unwrap();
    assert!(!data.exists() && !job.path().exists());
}
