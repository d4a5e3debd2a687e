//! Jobs with a restart policy whose supervisor is killed, or whose machine is restarted: `mica start --all-restartable`.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use common::{USERS, User, World, need_fuse, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    world.write("tree/hello.txt", "hello\n");
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    world
}

fn run(world: &World, name: &str, policy: &str, script: &str) {
    let flags = ["run", "-d", "--name", name, "--restart", policy, "--image", "app.xar"];
    world.ok(&[&flags[..], &["--", "/bin/sh", "-c", script]].concat());
}

/// A job that runs until it is ended, and notes each of its lives.
const STAYS: &str = "echo life >> lives; cat lives; exec sleep 1000";

fn record(world: &World, name: &str) -> PathBuf {
    let filter = format!("name={name}");
    let id = world.ok(&["ps", "-a", "-q", "--no-trunc", "--filter", &filter]).stdout;
    world.path("state/jobs").join(id.trim()).join("status.json")
}

fn status(world: &World, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(record(world, name)).unwrap()).unwrap()
}

fn phase(world: &World, name: &str) -> String {
    status(world, name)["phase"].as_str().unwrap().to_owned()
}

/// Sends the job's supervisor a signal, and waits until nobody runs the job.
fn end_supervisor(world: &World, name: &str, signal: Signal) {
    let supervisor = status(world, name)["supervisor"].as_i64().unwrap();
    kill_process(Pid::from_raw(supervisor.try_into().unwrap()).unwrap(), signal).unwrap();
    wait_for(|| ["exited", "failed"].contains(&&*phase(world, name)));
}

/// As if what is known of the job had been written before the machine was restarted.
fn restart_machine(world: &World, name: &str) {
    let path = record(world, name);
    let mut status = status(world, name);
    status["boot"] = "00000000-0000-0000-0000-000000000000".into();
    std::fs::write(path, status.to_string()).unwrap();
}

/// What `mica ps -a` says of a job.
fn line(world: &World, name: &str) -> String {
    let all = world.ok(&["ps", "-a"]).stdout;
    all.lines().find(|line| line.contains(name)).unwrap().to_owned()
}

fn is_pending(world: &World, name: &str) -> bool {
    let line = line(world, name);
    assert!(!line.contains("pending") || line.contains("exited ("), "{line}");
    line.contains("restart pending")
}

fn lives(world: &World, name: &str) -> usize {
    world.ok(&["exec", name, "cat", "lives"]).stdout.lines().count()
}

#[test]
fn a_job_whose_supervisor_was_killed_can_be_started_again_with_the_others() {
    for user in USERS {
        let world = world(user);
        let policies = [
            ("first", "always"),
            ("second", "unless-stopped"),
            ("third", "on-failure"),
            ("fourth", "no"),
            ("fifth", "always"),
        ];
        for (name, policy) in policies {
            run(&world, name, policy, STAYS);
        }
        world.ok(&["stop", "-t", "1", "fifth"]);
        for name in ["first", "second", "third", "fourth"] {
            end_supervisor(&world, name, Signal::KILL);
        }
        assert_eq!(phase(&world, "fourth"), "failed");
        let pending = |world: &World| policies.map(|(name, _)| is_pending(world, name));
        assert_eq!(pending(&world), [true, true, true, false, false]);
        // Reading starts nothing.
        assert_eq!(world.ok(&["ps", "-q"]).stdout, "");
        let started = world.ok(&["start", "--all-restartable"]).stdout;
        assert_eq!(started.lines().count(), 3, "{started}");
        assert_eq!(pending(&world), [false; 5]);
        for name in ["first", "second", "third"] {
            assert_eq!(phase(&world, name), "running", "{name}");
            wait_for(|| lives(&world, name) == 2);
            assert_eq!(status(&world, name)["restarts"], 1, "{name}");
        }
        assert_eq!(world.ok(&["start", "--all-restartable"]).stdout, "", "they run");

        // Whoever stops a job that waits for its restart has stopped it.
        end_supervisor(&world, "first", Signal::KILL);
        assert!(is_pending(&world, "first"));
        world.ok(&["stop", "first"]);
        assert!(!is_pending(&world, "first"));
        // And whoever stops one that runs.
        world.ok(&["stop", "-t", "1", "second"]);
        world.ok(&["kill", "third"]);
        world.ok(&["wait", "third"]);
        assert_eq!(pending(&world), [false; 5]);
        assert_eq!(world.ok(&["start", "--all-restartable"]).stdout, "");
        for (name, _) in policies {
            world.ok(&["rm", "-f", name]);
        }
        world.ends_clean();
    }
}

/// Also when its supervisor doesn't live to say so.
#[test]
fn a_wish_to_stop_survives_the_supervisor() {
    for user in USERS {
        let world = world(user);
        run(&world, "deaf", "always", "trap '' TERM; echo up; while :; do sleep 0.1; done");
        wait_for(|| world.ok(&["logs", "deaf"]).stdout.contains("up"));
        let mut stop = world.mica(&["stop", "-t", "60", "deaf"]);
        let mut stop = stop.stdout(Stdio::null()).spawn().unwrap();
        wait_for(|| status(&world, "deaf")["stopped"] == "person");
        end_supervisor(&world, "deaf", Signal::KILL);
        stop.wait().unwrap();
        assert!(!is_pending(&world, "deaf"), "{}", line(&world, "deaf"));
        assert_eq!(world.ok(&["start", "--all-restartable"]).stdout, "");
        // One that doesn't answer is killed by the command.
        run(&world, "stuck", "always", STAYS);
        let supervisor = status(&world, "stuck")["supervisor"].as_i64().unwrap();
        let supervisor = Pid::from_raw(supervisor.try_into().unwrap()).unwrap();
        kill_process(supervisor, Signal::STOP).unwrap();
        assert_eq!(world.within(10, &["stop", "-t", "1", "stuck"]).code, Some(0));
        assert!(!is_pending(&world, "stuck"), "{}", line(&world, "stuck"));
        world.ok(&["rm", "deaf", "stuck"]);
        world.ends_clean();
    }
}

#[test]
fn what_runs_after_the_machine_was_restarted_follows_docker() {
    for user in USERS {
        let world = world(user);
        // Those that ran, and those that were stopped before.
        let jobs = [
            ("first", "always", true),
            ("second", "unless-stopped", true),
            ("third", "on-failure", false),
            ("fourth", "always", true),
            ("fifth", "unless-stopped", false),
            ("sixth", "unless-stopped", true),
        ];
        for (name, policy, _) in jobs {
            run(&world, name, policy, STAYS);
        }
        for name in ["fourth", "fifth"] {
            world.ok(&["stop", "-t", "1", name]);
        }
        // As an init does with everybody: nobody has stopped that job.
        end_supervisor(&world, "sixth", Signal::TERM);
        for name in ["first", "second", "third"] {
            end_supervisor(&world, name, Signal::KILL);
        }
        for (name, _, _) in jobs {
            restart_machine(&world, name);
        }
        for (name, policy, expected) in jobs {
            assert_eq!(is_pending(&world, name), expected, "{name} {policy}");
        }
        let started = world.ok(&["start", "--all-restartable"]).stdout;
        assert_eq!(started.lines().count(), 4, "{started}");
        for (name, policy, expected) in jobs {
            assert_eq!(phase(&world, name) == "running", expected, "{name} {policy}");
        }
        // `always` once a boot: it was stopped in this one.
        world.ok(&["stop", "-t", "1", "fourth"]);
        assert_eq!(world.ok(&["start", "--all-restartable"]).stdout, "");
        for (name, _, _) in jobs {
            world.ok(&["rm", "-f", name]);
        }
        world.ends_clean();
    }
}

#[test]
fn restarts_and_waits_are_counted_on() {
    for user in USERS {
        let world = world(user);
        run(&world, "job", "on-failure:50", "exit 3");
        wait_for(|| status(&world, "job")["restarts"].as_u64() >= Some(4));
        end_supervisor(&world, "job", Signal::KILL);
        let before = status(&world, "job");
        let count = |status: &Value, name: &str| status[name].as_u64().unwrap();
        assert!(count(&before, "next_delay_ms") >= 1600, "{before}");
        world.ok(&["start", "--all-restartable"]);
        wait_for(|| phase(&world, "job") == "restarting");
        let after = status(&world, "job");
        assert!(count(&after, "restarts") > count(&before, "restarts"), "{before} {after}");
        let doubled = count(&before, "next_delay_ms") * 2;
        assert!(count(&after, "next_delay_ms") >= doubled, "{before} {after}");
        // A person begins anew.
        world.ok(&["stop", "job"]);
        world.ok(&["start", "job"]);
        assert!(count(&status(&world, "job"), "restarts") < count(&before, "restarts"));
        world.ok(&["rm", "-f", "job"]);
        world.ends_clean();
    }
}

/// One whose start fails is told, and tried again.
#[test]
fn a_job_that_cannot_be_started_is_tried_again() {
    for user in USERS {
        let world = world(user);
        world.ok(&["image", "pack", "tree", "-o", "gone.xar"]);
        let flags = ["run", "-d", "--name", "broken", "--restart", "always"];
        let words = ["--image", "gone.xar", "--", "/bin/sh", "-c", STAYS];
        world.ok(&[&flags[..], &words].concat());
        run(&world, "whole", "always", STAYS);
        for name in ["broken", "whole"] {
            end_supervisor(&world, name, Signal::KILL);
        }
        std::fs::rename(world.path("gone.xar"), world.path("away.xar")).unwrap();
        let said = world.fails(1, &["start", "--all-restartable"]);
        assert!(said.contains("gone.xar"), "{said}");
        assert_eq!(phase(&world, "whole"), "running");
        std::fs::rename(world.path("away.xar"), world.path("gone.xar")).unwrap();
        world.ok(&["start", "--all-restartable"]);
        assert_eq!(phase(&world, "broken"), "running");
        world.ok(&["rm", "-f", "broken", "whole"]);
        world.ends_clean();
    }
}

/// A helper that never answers, as a registry might not.
#[test]
fn a_start_that_hangs_holds_up_no_other() {
    for user in USERS {
        let world = world(user);
        let flags = ["run", "-d", "--name", "hung", "--restart", "always", "--network", "private"];
        world.ok(&[&flags[..], &["--image", "app.xar", "--", "/bin/sh", "-c", STAYS]].concat());
        run(&world, "whole", "always", STAYS);
        for name in ["hung", "whole"] {
            end_supervisor(&world, name, Signal::KILL);
        }
        world.write("fake/pasta", "#!/bin/sh\nexec sleep 60\n");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(world.path("fake/pasta"), executable).unwrap();
        world.hand_over();
        let path = format!("{}:{}", world.path("fake").display(), std::env::var("PATH").unwrap());
        let mut starts = world.mica(&["start", "--all-restartable"]);
        let starts = starts.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null());
        let mut starts = starts.spawn().unwrap();
        wait_for(|| phase(&world, "whole") == "running");
        wait_for(|| phase(&world, "hung") == "starting");
        assert!(starts.try_wait().unwrap().is_none());
        assert_eq!(world.within(10, &["rm", "-f", "hung"]).code, Some(0));
        assert!(!starts.wait().unwrap().success(), "somebody ended a start");
        world.ok(&["rm", "-f", "whole"]);
        world.ends_clean();
    }
}
