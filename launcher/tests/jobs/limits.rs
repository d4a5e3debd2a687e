//! Limits, for real: what is asked for holds, what can't be had is refused, nothing is left behind.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::*;
use mica_launcher::{Cgroup, LaunchError, Limits, Spec, Stdio, cleanup};

pub(crate) const TESTS: &[Test] = &[
    ("limits::memory", By::Root, memory),
    ("limits::pids", By::Root, pids),
    ("limits::cpus", By::Root, cpus),
    ("limits::cpuset", By::Root, cpuset),
    ("limits::usage", By::Root, usage),
    ("limits::pausing", By::Root, pausing),
    ("limits::nothing_is_left", By::Root, nothing_is_left),
    ("limits::cleaning_up", By::Root, cleaning_up),
    ("limits::too_little_memory_to_start", By::Root, too_little_memory_to_start),
    ("limits::refused", By::User, refused),
    ("limits::nonsense", By::Both, nonsense),
];

fn limited(tree: &std::path::Path, line: &str, limits: Limits) -> Spec {
    let mut spec = shell(tree, line);
    spec.limits = limits;
    spec
}

fn memory() {
    let tree = tree();
    let limits = Limits { memory: Some(32 << 20), ..Limits::default() };
    // Fills a buffer of 200 MB; killed on the way.
    let (exit, _) = output(&limited(
        tree.path(),
        "dd if=/dev/zero of=/dev/null bs=200M count=1",
        limits.clone(),
    ));
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!(exit.code(), 137);
    assert!(exit.usage.memory_peak.unwrap() <= 32 << 20);
    let (exit, _) =
        output(&limited(tree.path(), "dd if=/dev/zero of=/dev/null bs=8M count=1", limits));
    assert!(exit.code() == 0 && !exit.oom_killed, "{exit:?}");
}

fn pids() {
    let tree = tree();
    let limits = Limits { pids: Some(20), ..Limits::default() };
    let bomb = "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; echo all of them";
    let (exit, text) = output(&limited(tree.path(), bomb, limits));
    assert_ne!(exit.code(), 0);
    assert!(text.contains("fork") && !text.contains("all of them"), "{text}");
}

fn cpus() {
    let tree = tree();
    let limits = Limits { cpus: Some(0.3), ..Limits::default() };
    let spin = "end=$(($(date +%s%N) + 2000000000)); while [ $(date +%s%N) -lt $end ]; do :; done; cat /proc/self/cgroup";
    let before = Instant::now();
    let (exit, _) = output(&limited(tree.path(), spin, limits));
    // On a loaded machine it may get less; never more than a tenth above the quota.
    let share = exit.usage.cpu.unwrap().as_secs_f64() / before.elapsed().as_secs_f64();
    assert!(share < 0.33, "{share} of a processor: {exit:?}");
    assert!(exit.usage.throttled.unwrap() > Duration::ZERO);
}

fn cpuset() {
    let tree = tree();
    let limits = Limits { cpuset_cpus: Some("1".into()), ..Limits::default() };
    let (_, text) =
        output(&limited(tree.path(), "nproc; grep Cpus_allowed_list /proc/self/status", limits));
    assert_eq!(text, "1\nCpus_allowed_list:\t1\n");
}

fn usage() {
    let tree = tree();
    let limits = Limits { memory: Some(1 << 30), pids: Some(100), ..Limits::default() };
    let mut spec = spec(tree.path(), &["sleep", "1000"]);
    spec.limits = limits;
    let mut job = start(&spec, Stdio::null().unwrap());
    let usage = job.usage();
    assert_eq!(usage.pids, Some(2), "the init and the program: {usage:?}");
    assert!(usage.memory.unwrap() > 0);
    let more = Limits { memory: Some(2 << 30), pids: Some(7), ..Limits::default() };
    job.cgroup().update(&more).unwrap();
    let group = job.cgroup();
    let read = |file: &str| {
        let mut found =
            directories(group).into_iter().filter_map(|d| fs::read_to_string(d.join(file)).ok());
        found.next().map(|text| text.trim().to_owned())
    };
    assert_eq!(read("pids.max").as_deref(), Some("7"));
    assert!(read("memory.max").or(read("memory.limit_in_bytes")) == Some((2u64 << 30).to_string()));
    let set = Limits { cpuset_cpus: Some("999".into()), ..Limits::default() };
    assert!(job.cgroup().update(&set).is_err());
    job.kill().unwrap();
    assert!(!job.wait().unwrap().oom_killed);
}

fn pausing() {
    let tree = tree();
    let path = tree.path().join("count");
    let mut job = start(
        &shell(tree.path(), "while :; do echo x >> /count; sleep 0.005; done"),
        Stdio::null().unwrap(),
    );
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    job.pause().unwrap();
    let length = fs::metadata(&path).unwrap().len();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(fs::metadata(&path).unwrap().len(), length);
    job.unpause().unwrap();
    while fs::metadata(&path).unwrap().len() == length {
        std::thread::sleep(Duration::from_millis(1));
    }
    job.pause().unwrap();
    job.kill().unwrap();
    job.wait().unwrap();
}

fn directories(group: &Cgroup) -> Vec<std::path::PathBuf> {
    group.v2.iter().chain(&group.v1).map(|d| d.path.clone()).collect()
}

fn everything() -> Limits {
    Limits {
        memory: Some(1 << 30),
        pids: Some(100),
        cpus: Some(1.0),
        cpu_weight: Some(50),
        ..Limits::default()
    }
}

fn nothing_is_left() {
    let tree = tree();
    let mut job = start(
        &limited(tree.path(), "mkdir /sys/fs/cgroup/x; exit 0", everything()),
        Stdio::null().unwrap(),
    );
    let made = directories(job.cgroup());
    assert!(!made.is_empty() && made.iter().all(|d| d.exists()), "{made:?}");
    job.wait().unwrap();
    assert!(made.iter().all(|d| !d.exists()));
    // A launch that fails late cleans up as well.
    let mut spec = limited(tree.path(), "true", everything());
    spec.argv = vec!["missing".into()];
    assert_eq!(refusal(&spec).exit_code(), 127);
    let left = made.iter().map(|d| d.with_file_name(format!("mica-{}", spec.id)));
    assert!(left.into_iter().all(|d| !d.exists()));
}

fn cleaning_up() {
    let tree = tree();
    let mut job = start(&limited(tree.path(), "sleep 1000", everything()), Stdio::null().unwrap());
    // As the next command does it, from what the one that was killed had written down.
    let text = serde_json::to_string(job.cgroup()).unwrap();
    let group: Cgroup = serde_json::from_str(&text).unwrap();
    let child = directories(&group)[0].join("made-by-the-job");
    fs::create_dir(&child).unwrap();
    assert!(cleanup(&group));
    assert!(directories(&group).iter().all(|d| !d.exists()));
    assert_eq!(job.wait().unwrap().code(), 137);
    assert!(cleanup(&group), "again");
}

fn refused() {
    let tree = tree();
    let mut spec =
        limited(tree.path(), "echo ran", Limits { memory: Some(1 << 30), ..Limits::default() });
    let error = refusal(&spec);
    assert!(matches!(error, LaunchError::Limit(_)), "{error:?}");
    assert!(
        chain(&error).starts_with("a limit cannot be enforced: cannot limit memory: "),
        "{}",
        chain(&error)
    );
    assert!(error.hint().unwrap().contains("Delegate=yes"), "{:?}", error.hint());
    spec.best_effort_limits = true;
    let mut job = start(&spec, Stdio::null().unwrap());
    assert!(job.warnings()[0].starts_with("cannot limit memory: "), "{:?}", job.warnings());
    assert_eq!(job.wait().unwrap().code(), 0);
}

fn nonsense() {
    let tree = tree();
    for (limits, message) in [
        (Limits { memory: Some(0), ..Limits::default() }, "0 is no sensible limit for memory"),
        (
            Limits { cpus: Some(f64::NAN), ..Limits::default() },
            "NaN is no sensible limit for processor time",
        ),
        (
            Limits { cpus: Some(-1.0), ..Limits::default() },
            "-1 is no sensible limit for processor time",
        ),
    ] {
        let error = refusal(&limited(tree.path(), "true", limits));
        assert_eq!(chain(&error), format!("the job cannot be planned: {message}"));
    }
}

fn too_little_memory_to_start() {
    let tree = tree();
    let spec = limited(tree.path(), "true", Limits { memory: Some(1 << 10), ..Limits::default() });
    let error = refusal(&spec);
    assert_eq!(chain(&error), "the job's memory limit is too small to start it");
    assert!(error.hint().is_some() && error.exit_code() == 125);
}
