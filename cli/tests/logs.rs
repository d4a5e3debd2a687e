//! What jobs print is kept as far as it was asked for, in whole lines, and what is missing is told.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{User, World, need_fuse};

fn world() -> World {
    need_fuse();
    let world = World::new(User::Me);
    std::fs::create_dir_all(world.path("root/bin")).unwrap();
    let copied = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .any(|path| std::fs::copy(path, world.path("root/bin/busybox")).is_ok());
    assert!(copied, "busybox (static) is needed by the tests");
    for name in ["sh", "head", "tr", "echo", "seq", "sleep"] {
        std::os::unix::fs::symlink("busybox", world.path("root/bin").join(name)).unwrap();
    }
    world.ok(&["image", "pack", "root", "-o", "r.xar"]);
    world
}

fn run(world: &World, flags: &[&str], script: &str) {
    let start = ["run", "-d", "--name", "l", "--rootfs", "--image", "r.xar"];
    let words = [start.as_slice(), flags, &["--", "sh", "-c", script]].concat();
    world.ok(&words);
    assert_eq!(world.within(60, &["wait", "l"]).stdout, "0\n");
}

fn size(world: &World) -> u64 {
    let jobs = std::fs::read_dir(world.path("state/jobs")).unwrap();
    let job = jobs.flatten().next().unwrap().path();
    let logs = std::fs::read_dir(job).unwrap().flatten();
    let logs = logs.filter(|entry| entry.file_name().to_string_lossy().ends_with(".jsonl"));
    logs.map(|entry| entry.metadata().unwrap().len()).sum()
}

#[test]
fn logs_are_as_large_as_asked_for_and_say_what_was_dropped() {
    let world = world();
    run(&world, &["--log-opt", "max-size=100k", "--log-opt", "max-file=3"], "seq 1 20000");
    let ran = world.ok(&["logs", "l"]);
    assert!(ran.stderr.contains("of older output were dropped"), "{ran:?}");
    let lines: Vec<u32> = ran.stdout.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(*lines.last().unwrap(), 20_000);
    assert!(lines.windows(2).all(|pair| pair[0] + 1 == pair[1]), "the end of it, without a gap");
    assert!((200_000..=300 << 10).contains(&size(&world)), "{}", size(&world));
    // Who asks for the end hears nothing of the beginning.
    let tail = world.ok(&["logs", "-n", "2", "l"]);
    assert_eq!((tail.stdout.as_str(), tail.stderr.as_str()), ("19999\n20000\n", ""));
    world.ok(&["rm", "l"]);
    run(&world, &[], "seq 1 20000");
    let ran = world.ok(&["logs", "l"]);
    assert_eq!((ran.stdout.lines().count(), ran.stderr.as_str()), (20_000, ""));
    world.ok(&["rm", "l"]);
    // By the settings, which a flag overrules.
    world.write("home/.config/mica/config.toml", "log-max-size = \"50k\"\nlog-max-file = 1\n");
    run(&world, &[], "seq 1 20000");
    assert!(size(&world) <= 50 << 10, "{}", size(&world));
    world.ok(&["rm", "l"]);
    run(&world, &["--log-opt", "max-size=-1"], "seq 1 20000");
    assert_eq!(world.ok(&["logs", "l"]).stdout.lines().count(), 20_000);
    for bad in ["max-size=0", "max-file=0", "max-file=x", "colour=red", "max-size"] {
        let words = ["run", "--log-opt", bad, "--image", "r.xar", "--", "true"];
        assert!(world.run(&words).code != Some(0), "{bad}");
    }
}

#[test]
fn long_lines_are_one_line() {
    let world = world();
    run(&world, &[], "echo first; head -c 100000 /dev/zero | tr '\\0' x; echo; echo last");
    let long = "x".repeat(100_000);
    assert_eq!(world.ok(&["logs", "l"]).stdout, format!("first\n{long}\nlast\n"));
    assert_eq!(world.ok(&["logs", "-n", "2", "l"]).stdout, format!("{long}\nlast\n"));
    let timed = world.ok(&["logs", "-t", "l"]).stdout;
    let lines: Vec<&str> = timed.lines().collect();
    assert_eq!(lines.len(), 3);
    for (line, text) in lines.iter().zip(["first", &long, "last"]) {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && rest == text, "{time}");
    }
    // Two streams at once, each with a long line.
    world.ok(&["rm", "l"]);
    run(
        &world,
        &[],
        "for s in 1 2; do (head -c 60000 /dev/zero | tr '\\0' $s; echo) >&$s & done; wait",
    );
    let ran = world.ok(&["logs", "l"]);
    assert_eq!((ran.stdout, ran.stderr), ("1".repeat(60_000) + "\n", "2".repeat(60_000) + "\n"));
}

#[test]
fn other_drivers() {
    let world = world();
    run(&world, &["--log-driver", "none"], "echo printed");
    assert_eq!(size(&world), 0);
    let said = world.fails(1, &["logs", "l"]);
    assert!(said.contains("keeps no log"), "{said}");
    world.ok(&["rm", "l"]);
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        // What is sent to a journal is tested where a socket can be had: in the crate of the agent.
        let words =
            ["run", "--log-driver", "journald", "--image", "r.xar", "--rootfs", "--", "true"];
        let said = world.fails(125, &words);
        assert!(said.contains("cannot connect to the journal"), "{said}");
    }
}

/// A log that is written faster than it is read ends all the same, where it was when it was asked for.
#[test]
fn a_log_that_grows_is_shown_as_it_is() {
    let world = world();
    let script = "while :; do echo y; done";
    let start =
        ["run", "-d", "--name", "l", "--rootfs", "--image", "r.xar", "--", "sh", "-c", script];
    world.ok(&start);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let shown = world.within(30, &["logs", "-n", "1", "l"]).stdout;
    assert!(shown == "y\n", "{} bytes", shown.len());
    world.within(5, &["rm", "-f", "l"]);
}
