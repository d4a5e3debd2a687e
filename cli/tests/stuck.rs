//! Nothing hangs: readers that stall, starts that don't come to an end, supervisors that don't answer, file systems that
//! hang. Everything here has a deadline.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{USERS, User, World, need_fuse, wait_for, within};
use rustix::process::{Pid, Signal, kill_process};

/// A world with a root file system of busybox.
fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    std::fs::create_dir_all(world.path("root/bin")).unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| std::fs::copy(path, world.path("root/bin/busybox")).is_ok());
    assert!(busybox.is_some(), "busybox (static) is needed by the tests");
    for name in ["sh", "sleep", "head", "tr", "yes", "cat", "echo", "true", "seq", "ps", "grep"] {
        std::os::unix::fs::symlink("busybox", world.path("root/bin").join(name)).unwrap();
    }
    world.hand_over();
    world.ok(&["image", "pack", "root", "-o", "r.xar"]);
    world
}

const RUN: [&str; 4] = ["run", "--rootfs", "--image", "r.xar"];

fn run<'a>(words: &[&'a str]) -> Vec<&'a str> {
    RUN.iter().chain(words).copied().collect()
}

/// Runs `mica` with its output into a pipe whose reader takes the first line.
fn into_head(world: &World, args: &[&str]) -> Command {
    let mica = world.binary();
    let words = args.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let mut command = world.command("sh");
    command.args(["-c", &format!("'{}' {words} | head -n 1", mica.display())]);
    command
}

fn last_line(world: &World, job: &str) -> u64 {
    world.within(20, &["logs", "-n", "1", job]).stdout.trim().parse().unwrap_or(0)
}

#[test]
fn a_stalled_reader_of_attach_holds_up_neither_job_nor_log() {
    for user in USERS {
        let world = world(user);
        let count =
            "i=0; while :; do i=$((i+1)); echo $i; [ $((i%100)) -eq 0 ] && sleep 0.02; done";
        world.ok(&run(&["-d", "--name", "at", "--", "sh", "-c", count]));
        let mut attach = world.mica(&["attach", "--no-stdin", "at"]);
        // Nobody reads this.
        let mut attach = attach.stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        let before = last_line(&world, "at");
        wait_for(|| last_line(&world, "at") > before);
        attach.kill().unwrap();
        attach.wait().unwrap();
        // Its pipe is still open, and still nobody reads it.
        let before = last_line(&world, "at");
        wait_for(|| last_line(&world, "at") > before);
        assert_eq!(world.within(10, &["stop", "-t", "1", "at"]).code, Some(0));
        assert_eq!(world.within(5, &["rm", "-f", "at"]).code, Some(0));
        world.ends_clean();
    }
}

#[test]
fn a_reader_that_has_had_enough_ends_attach_and_a_job_with_a_terminal() {
    let world = world(User::Me);
    world.ok(&run(&["-d", "--name", "at", "--", "sh", "-c", "sleep 2; echo one; sleep 60"]));
    let ran = within(20, &mut into_head(&world, &["attach", "--no-stdin", "at"]));
    assert_eq!((ran.stdout.trim(), ran.stderr.as_str()), ("one", ""), "{ran:?}");
    world.within(5, &["rm", "-f", "at"]);
    let ran = within(20, &mut into_head(&world, &run(&["-t", "--rm", "--", "yes"])));
    assert_eq!((ran.stdout.trim(), ran.stderr.as_str()), ("y", ""), "{ran:?}");
    world.ok(&run(&["-d", "--name", "at", "--", "sh", "-c", "while :; do echo y; done"]));
    let ran = within(20, &mut into_head(&world, &["logs", "-f", "at"]));
    assert_eq!((ran.stdout.trim(), ran.stderr.as_str()), ("y", ""), "{ran:?}");
    world.within(5, &["rm", "-f", "at"]);
    world.ends_clean();
}

/// A pipeline loses nothing, however slow it is.
#[test]
fn a_slow_reader_of_run_gets_everything() {
    let world = world(User::Me);
    let mica = world.binary();
    let line = format!(
        "'{}' run --rootfs --image r.xar --rm -- seq 1 400000 | (sleep 3; cat)",
        mica.display()
    );
    let ran = within(60, world.command("sh").args(["-c", &line]));
    let expected: String = (1..=400_000).map(|number| format!("{number}\n")).collect();
    assert!(ran.stdout == expected, "{} of {} bytes", ran.stdout.len(), expected.len());
}

/// A `pasta` that never answers, as a registry or a file system might not.
fn stuck_start(world: &World, name: &str) -> Child {
    world.write("fake/pasta", "#!/bin/sh\nexec sleep 60\n");
    let fake = world.path("fake/pasta");
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    world.hand_over();
    let path = format!("{}:{}", world.path("fake").display(), std::env::var("PATH").unwrap());
    let mut command =
        world.mica(&run(&["--name", name, "--network", "private", "--", "echo", "ok"]));
    let command = command.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    wait_for(|| world.run(&["ps", "-a", "-q"]).stdout.lines().count() == 1);
    std::thread::sleep(Duration::from_millis(500));
    child
}

/// Waits for a child, not for ever.
#[track_caller]
fn ends(child: &mut Child, seconds: u64) -> Option<i32> {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() >= until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the command still runs after {seconds} s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_start_that_hangs_can_be_ended() {
    for user in USERS {
        let world = world(user);
        let mut child = stuck_start(&world, "st");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(ends(&mut child, 5), Some(143));
        world.ends_clean();
        for end in [["stop", "-t", "1", "st"].as_slice(), &["rm", "-f", "st"], &["kill", "st"]] {
            let mut child = stuck_start(&world, "st");
            let ran = world.within(5, end);
            assert_eq!(ran.code, Some(0), "{end:?} {ran:?}");
            assert!(ends(&mut child, 5).is_some_and(|code| code > 128));
            world.ends_clean();
            assert_eq!(world.run(&["ps", "-a", "-q"]).stdout, "");
        }
    }
}

fn supervisor(world: &World) -> Pid {
    let id = world.ok(&["ps", "-a", "-q", "--no-trunc"]).stdout;
    let text =
        std::fs::read_to_string(world.path("state/jobs").join(id.trim()).join("status.json"));
    let status: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
    Pid::from_raw(status["supervisor"].as_i64().unwrap() as i32).unwrap()
}

#[test]
fn a_supervisor_that_does_not_answer_is_ended_with_its_job() {
    for user in USERS {
        let world = world(user);
        for end in [["stop", "-t", "1", "j"].as_slice(), &["rm", "-f", "j"]] {
            world.ok(&run(&["-d", "--name", "j", "--", "sleep", "60"]));
            kill_process(supervisor(&world), Signal::STOP).unwrap();
            let ran = world.within(5, end);
            assert_eq!(ran.code, Some(0), "{end:?} {ran:?}");
            world.within(5, &["rm", "-f", "j"]);
            world.ends_clean();
        }
    }
}

/// An exec, a check and the job itself in a file system that doesn't answer.
#[test]
fn a_volume_that_hangs_holds_up_nobody_but_its_users() {
    let world = world(User::Me);
    let point = world.path("v");
    std::fs::create_dir(&point).unwrap();
    world.ok(&["mount", "--image", "r.xar", "v"]);
    let server = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let ours = line.contains("serve-mount") && line.contains(world.path("runtime").to_str()?);
        ours.then(|| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))?
    });
    let server = server.unwrap();
    let volume = format!("{}:/mnt", point.display());
    let check = [
        "--health-cmd",
        "cat /mnt/bin/busybox",
        "--health-interval",
        "300ms",
        "--health-timeout",
        "300ms",
    ];
    let words =
        [&["-d", "--name", "j", "-v", &volume], check.as_slice(), &["--", "sleep", "60"]].concat();
    world.ok(&run(&words));
    kill_process(server, Signal::STOP).unwrap();
    let mut hangs = world.mica(&["exec", "-w", "/mnt/bin", "j", "/bin/echo", "never"]);
    let mut hangs = hangs.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let ran = world.within(5, &["exec", "j", "echo", "goes on"]);
    assert_eq!(ran.stdout, "goes on\n", "{ran:?}");
    kill_process(Pid::from_child(&hangs), Signal::TERM).unwrap();
    ends(&mut hangs, 5);
    let ran = world.within(5, &["rm", "-f", "j"]);
    kill_process(server, Signal::CONT).unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    world.within(20, &["umount", "v"]);
    world.ends_clean();
}

#[test]
fn checks_leave_nothing_behind_and_may_print_what_they_like() {
    for user in USERS {
        let world = world(user);
        let fast =
            ["--health-interval", "200ms", "--health-timeout", "300ms", "--health-retries", "2"];
        let words = [
            &["-d", "--name", "hc", "--health-cmd", "sleep 1000; true"],
            fast.as_slice(),
            &["--", "sleep", "60"],
        ];
        world.ok(&run(&words.concat()));
        wait_for(|| world.ok(&["ps"]).stdout.contains("(unhealthy)"));
        let left =
            world.ok(&["exec", "hc", "sh", "-c", "ps | grep -c 'sleep 100[0]'; true"]).stdout;
        let left: u32 = left.trim().parse().unwrap();
        // The one that is running just now, and its shell.
        assert!(left <= 2, "{left} processes of timed-out checks");
        world.within(5, &["rm", "-f", "hc"]);
        let prints = "head -c 300000 /dev/zero | tr '\\0' x";
        let slow = ["--health-interval", "200ms", "--health-timeout", "10s"];
        let words = [
            &["-d", "--name", "hc", "--health-cmd", prints],
            slow.as_slice(),
            &["--", "sleep", "60"],
        ];
        world.ok(&run(&words.concat()));
        wait_for(|| world.ok(&["ps"]).stdout.contains("(healthy)"));
        world.within(5, &["rm", "-f", "hc"]);
        world.ends_clean();
    }
}

/// As in a sandbox that lets nobody make user namespaces: the limit is used up, or is after the supervisor's own; and mica
/// may seem to be root there.
#[test]
fn a_start_without_user_namespaces_fails_and_leaves_nobody_with_the_callers_output() {
    let world = world(User::Ordinary);
    world.ok(&run(&["-d", "--name", "kept", "--", "true"]));
    world.ok(&["wait", "kept"]);
    let mica = world.binary();
    let line = |limit: u32, words: &str| {
        format!(
            "echo {limit} > /proc/sys/user/max_user_namespaces || exit 99
             exec setpriv --inh-caps=-all --ambient-caps=-all -- sh -c \
                 '( \"{}\" {words}; echo code $? ) 2>&1 | tail'",
            mica.display()
        )
    };
    let flags = ["", "--rm", "-d", "-i", "--network private", "--restart always"];
    let mut commands: Vec<_> =
        flags.map(|flags| (125, format!("run {flags} --rootfs --image r.xar -- echo ran"))).into();
    commands.extend([(1, "start kept".to_owned()), (1, "restart kept".to_owned())]);
    for (map, limit) in
        [("--map-root-user", 0), ("--map-current-user", 0), ("--map-current-user", 1)]
    {
        for (code, words) in &commands {
            let line = line(limit, words);
            let mut command = world.command("unshare");
            let ran = within(20, command.args(["-U", "--keep-caps", map, "sh", "-c", &line]));
            assert!(ran.stdout.contains(&format!("code {code}\n")), "{map} {words}: {ran:?}");
            assert!(ran.stdout.contains("max_user_namespaces"), "{map} {words}: {ran:?}");
            assert!(!ran.stdout.contains("ran\n"), "{map} {words}: {ran:?}");
            world.ends_clean();
        }
    }
    let left = world.ok(&["ps", "-a", "-q"]).stdout;
    assert_eq!(left.lines().count(), 1, "a job that never ran is no job: {left}");
}
