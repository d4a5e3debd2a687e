//! kill -9 of every process, at every time: the next command finds nothing that it doesn't clean up.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{USERS, User, World, need_fuse, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// Cgroups of mica's jobs that this world's jobs could have made.
fn cgroups(ids: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut stack = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if ids.iter().any(|id| name == format!("mica-{id}")) {
                    found.push(entry.path().to_string_lossy().into_owned());
                }
                stack.push(entry.path());
            }
        }
    }
    found
}

fn world() -> impl Fn(common::User) -> World {
    need_fuse();
    |user| {
        let world = World::new(user);
        world.write("tree/f", "hello\n");
        world.hand_over();
        world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
        world
    }
}

/// A number from the job's status.
fn status(world: &World, id: &str, key: &str) -> i32 {
    let text = world.ok(&["inspect", id]).stdout;
    // The status comes after the configuration, which has such words of its own.
    let line =
        text.lines().rev().find(|line| line.trim().starts_with(&format!("\"{key}\":"))).unwrap();
    line.split(':').nth(1).unwrap().trim().trim_end_matches(',').parse().unwrap()
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn is_alive(pid: i32) -> bool {
    // A zombie that its new parent has not reaped yet is dead.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

#[test]
fn a_killed_supervisor_takes_its_job_down_and_the_next_command_cleans_up() {
    let make = world();
    for user in USERS {
        let world = make(user);
        let args = [
            "run",
            "-d",
            "--best-effort-limits",
            "--memory",
            "64m",
            "--pids-limit",
            "20",
            "--image",
            "app.xar",
        ];
        let command = ["--", "sh", "-c", "sleep 1000 & sleep 1000"];
        let id = world.ok(&[&args[..], &command].concat()).stdout.trim().to_owned();
        let (supervisor, job) = (status(&world, &id, "supervisor"), status(&world, &id, "pid"));
        kill(supervisor);
        wait_for(|| !is_alive(job));
        let listed = world.ok(&["ps", "-a"]).stdout;
        assert!(listed.contains("failed (137)"), "{listed}");
        assert_eq!(cgroups(std::slice::from_ref(&id)), Vec::<String>::new());
        world.ends_clean();
        assert_eq!(world.ok(&["wait", &id]).stdout, "137\n");
        world.ok(&["rm", &id]);
    }
}

#[test]
fn a_killed_command_leaves_its_job_to_the_supervisor() {
    let make = world();
    for user in USERS {
        let world = make(user);
        let mut child = world
            .mica(&[
                "run",
                "--name",
                "job",
                "--image",
                "app.xar",
                "--",
                "sh",
                "-c",
                "echo started; sleep 0.5; echo done",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert_eq!(line, "started\n");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(world.ok(&["wait", "job"]).stdout, "0\n", "it ends as if nothing had happened");
        assert_eq!(world.ok(&["logs", "job"]).stdout, "started\ndone\n");
        world.ends_clean();
    }
}

#[test]
fn a_killed_init_ends_the_job() {
    let make = world();
    for user in USERS {
        let world = make(user);
        let id = world
            .ok(&["run", "-d", "--image", "app.xar", "--", "sleep", "1000"])
            .stdout
            .trim()
            .to_owned();
        kill(status(&world, &id, "pid"));
        assert_eq!(world.ok(&["wait", &id]).stdout, "137\n");
        world.ends_clean();
    }
}

/// The process that this world's job has as its supervisor, if one has been started.
fn supervisor(world: &World) -> Option<i32> {
    let line = world.leftovers().into_iter().find(|line| line.contains("supervise-job"))?;
    line.strip_prefix("process ")?.split(':').next()?.parse().ok()
}

#[test]
fn a_supervisor_killed_while_it_starts_a_job_leaves_nothing() {
    let make = world();
    for user in USERS {
        let world = make(user);
        for ms in 0..15 {
            let args = [
                "run",
                "--rm",
                "--best-effort-limits",
                "--memory",
                "64m",
                "--image",
                "app.xar",
                "--",
                "sleep",
                "60",
            ];
            let mut child = world.mica(&args).stderr(Stdio::null()).spawn().unwrap();
            let mut found = None;
            wait_for(|| {
                found = supervisor(&world);
                found.is_some()
            });
            std::thread::sleep(Duration::from_millis(ms));
            kill(found.unwrap());
            child.wait().unwrap();
            let ids = job_ids(&world.path("state"));
            wait_until_clean(&world, &ids);
        }
        assert_eq!(world.ok(&["ps", "-a", "-q"]).stdout, "");
    }
}

/// Waits until a command has left nothing of these jobs. The first may still find one owned: a job can live on for a few
/// milliseconds, and a killed process lets go of its locks only when the kernel has ended all its threads.
fn wait_until_clean(world: &World, ids: &[String]) {
    wait_for(|| {
        world.ok(&["ps"]);
        world.leftovers().is_empty() && cgroups(ids).is_empty()
    });
}

/// Ids of jobs whose folders exist.
fn job_ids(state: &Path) -> Vec<String> {
    let names = std::fs::read_dir(state.join("jobs")).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_demo_killed_anywhere_is_cleaned_up_and_works_the_next_time() {
    need_fuse();
    for user in USERS {
        let world = World::new(user);
        // Steps of the demo, from before its first folder to its last job.
        for ms in [5, 30, 80, 150, 250, 400, 600, 900] {
            let mut child =
                world.mica(&["demo"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(ms));
            child.kill().unwrap();
            child.wait().unwrap();
            let ids = job_ids(&world.path("state"));
            wait_until_clean(&world, &ids);
        }
        for _ in 0..2 {
            let ran = world.ok(&["demo"]);
            assert!(ran.stdout.contains("hello from A (second edition)"), "{ran:?}");
        }
        // Nothing but the lock of the folders for a time.
        assert_eq!(std::fs::read_dir(world.path("state/tmp")).unwrap().count(), 1);
        assert_eq!(world.ok(&["ps", "-a", "-q"]).stdout, "");
    }
}

#[test]
fn scratch_folders_of_killed_commands_go_with_the_next_one() {
    let world = World::new(User::Me);
    world.write("data/file", "x\n");
    let graph = r#"{"modules": [{"label": "//:m", "outputs": [{"path": "", "source": "data"}]}]}"#;
    world.write("graph.json", graph);
    // As a command leaves it that is killed: outside of a workspace packing keeps nothing for long.
    let below = format!("mica-{}/tmp", rustix::process::geteuid());
    world.write(&format!("{below}/12345-0/lock"), "");
    world.write(&format!("{below}/12345-0/image.xar"), "large");
    let folder = world.path(below.split('/').next().unwrap());
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    world.ok(&["pack", "--graph", "graph.json", "--target", "//:m", "--version", "v1"]);
    let left: Vec<_> = std::fs::read_dir(world.path(&below)).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| entry.file_name() == "lock"), "{left:?}");
}
