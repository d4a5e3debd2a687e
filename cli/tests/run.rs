//! Jobs from packages and images: what people rely on from `mica run`, as root and as an ordinary user.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{USERS, User, World, need_fuse, wait_for};

/// A world with an image `app.xar` that holds `hello.txt` and the script `bin/say`.
fn world_with_image(user: common::User) -> World {
    need_fuse();
    let world = World::new(user);
    world.write("tree/hello.txt", "hello\n");
    world.write("tree/bin/say", "#!/bin/sh\necho said \"$@\"\n");
    let script = world.path("tree/bin/say");
    std::fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    world
}

const SH: [&str; 8] = ["run", "--rm", "--image", "app.xar", "--", "/bin/sh", "-c", ""];

fn sh(script: &str) -> [&str; 8] {
    let mut args = SH;
    args[7] = script;
    args
}

#[test]
fn an_image_runs_below_packages_over_the_hosts_root() {
    for user in USERS {
        let world = world_with_image(user);
        let ran = world.ok(&["run", "--rm", "--image", "app.xar", "--", "say", "a b", "--c"]);
        assert_eq!(ran.stdout, "said a b --c\n", "a program is found in the stack by its name");
        assert_eq!(world.ok(&sh("pwd; cat hello.txt")).stdout, "/packages/app\nhello\n");
        let said = world.run(&sh("echo x > /usr/x")).stderr;
        assert!(said.contains("Read-only"), "the host's root is read-only: {said}");
        world.ends_clean();
    }
}

#[test]
fn the_upper_is_writable_and_private_unless_read_only() {
    for user in USERS {
        let world = world_with_image(user);
        assert_eq!(world.ok(&sh("echo more >> hello.txt; cat hello.txt")).stdout, "hello\nmore\n");
        assert_eq!(world.ok(&sh("cat hello.txt")).stdout, "hello\n");
        let mut args = vec!["run", "--read-only"];
        args.extend(&sh("echo more >> hello.txt")[1..]);
        assert_ne!(world.run(&args).code, Some(0));
    }
}

#[test]
fn the_job_has_namespaces_of_its_own() {
    for user in USERS {
        let world = world_with_image(user);
        let script = "for n in user mnt pid ipc uts cgroup; do readlink /proc/self/ns/$n; done; echo $$; id -u";
        let ran = world.ok(&sh(script));
        let lines: Vec<&str> = ran.stdout.lines().collect();
        for (line, name) in lines.iter().zip(["user", "mnt", "pid", "ipc", "uts", "cgroup"]) {
            let host = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            assert_ne!(*line, host.to_string_lossy(), "{name}");
        }
        let pid: u32 = lines[6].parse().unwrap();
        assert!(pid < 10, "a pid namespace starts at 1, this is {pid}");
        assert_eq!(lines[7], "0", "the caller is root in the job");
    }
}

#[test]
fn exit_codes_are_the_jobs_own_or_say_what_mica_could_not_do() {
    for user in USERS {
        let world = world_with_image(user);
        world.fails(7, &sh("exit 7"));
        world.fails(128 + 15, &sh("kill -TERM $$"));
        let run = |command| ["run", "--rm", "--image", "app.xar", "--", command];
        let said = world.fails(127, &run("no-such-program"));
        assert!(said.contains("no-such-program"), "{said}");
        let said = world.fails(126, &run("./hello.txt"));
        assert!(said.contains("hello.txt"), "{said}");
        world.fails(125, &["run", "--image", "missing.xar", "--", "true"]);
        assert_eq!(world.ok(&["ps", "-a", "-q"]).stdout, "", "nothing that failed to start stays");
    }
}

#[test]
fn streams_and_environment() {
    for user in USERS {
        let world = world_with_image(user);
        let mut child = world
            .mica(&[
                "run",
                "--rm",
                "-i",
                "--image",
                "app.xar",
                "-e",
                "A=1",
                "-e",
                "HOST",
                "--",
                "sh",
                "-c",
                "cat; echo $A $HOST $SECRET; echo e >&2",
            ])
            .env("HOST", "h")
            .env("SECRET", "s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"in\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "in\n1 h\n");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "e\n");
        assert_eq!(world.ok(&sh("read x || echo no input")).stdout, "no input\n");
    }
}

#[test]
fn a_reader_that_has_had_enough_ends_the_job_as_in_any_pipe() {
    for user in USERS {
        let world = world_with_image(user);
        let mica = world.binary();
        let script =
            "timeout 20 \"$0\" run --rm --image app.xar -- yes | head -n 1; echo ${PIPESTATUS[0]}";
        let ran: common::Ran =
            world.command("bash").args(["-c", script]).arg(mica).output().unwrap().into();
        assert_eq!(ran.stdout, "y\n141\n", "{ran:?}");
    }
}

#[test]
fn a_stack_of_images_shows_the_topmost_file() {
    for user in USERS {
        let world = world_with_image(user);
        world.write("top/hello.txt", "from the top\n");
        world.hand_over();
        world.ok(&["image", "pack", "top", "-o", "top.sqfs", "--no-header"]);
        let ran = world.ok(&[
            "run",
            "--rm",
            "--image",
            "top.sqfs",
            "--image",
            "app.xar",
            "--",
            "sh",
            "-c",
            "pwd; cat hello.txt; bin/say x",
        ]);
        assert_eq!(ran.stdout, "/packages/top\nfrom the top\nsaid x\n");
    }
}

#[test]
fn a_whole_system_becomes_the_root() {
    for user in USERS {
        let world = world_with_image(user);
        // A shell with its libraries, as the host has them, is the smallest system.
        let script = "mkdir -p root/bin root/etc && cp -L /bin/sh /bin/cat root/bin/ && \
            ldd /bin/sh /bin/cat | grep -o '/[^ :]*' | sort -u | while read f; do \
            mkdir -p root/$(dirname $f) && cp -Ln $f root/$f; done; echo alice:x:0:0::/:/bin/sh > root/etc/passwd";
        assert!(world.command("sh").args(["-c", script]).status().unwrap().success());
        world.ok(&["image", "pack", "root", "-o", "base.sqfs", "--no-header"]);
        let run = |flags: &[&str], script: &str| {
            let args = [
                &["run", "--rm", "--rootfs"],
                flags,
                &["--image", "base.sqfs", "--", "sh", "-c", script],
            ];
            world.run(&args.concat())
        };
        let ran = run(
            &["--hostname", "box"],
            "cat /etc/hostname; echo w > /w; cat /w; read x < /usr/bin/env || echo no host",
        );
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "box\nw\nno host\n"), "{ran:?}");
        let ran = run(
            &["--read-only", "-u", "alice"],
            "cat /etc/hosts > /dev/null && echo w > /tmp/w && echo w > /w",
        );
        assert!(ran.code == Some(2) && ran.stderr.contains("Read-only"), "{ran:?}");
        let ran = run(&["-u", "bob"], "true");
        assert!(ran.code == Some(125) && ran.stderr.contains("bob"), "{ran:?}");
    }
}

#[test]
fn volumes_and_tmpfs() {
    for user in USERS {
        let world = world_with_image(user);
        world.write("data/in", "given\n");
        world.hand_over();
        let ran = world.ok(&[
            "run",
            "--rm",
            "-v",
            "./data:/mnt",
            "--tmpfs",
            "/srv:size=1m",
            "--image",
            "app.xar",
            "--",
            "sh",
            "-c",
            "cat /mnt/in; echo back > /mnt/out; echo t > /srv/t; cat /srv/t",
        ]);
        assert_eq!(ran.stdout, "given\nt\n");
        assert_eq!(std::fs::read_to_string(world.path("data/out")).unwrap(), "back\n");
        let ran = world.run(&[
            "run",
            "--rm",
            "-v",
            "./data:/mnt:ro",
            "--image",
            "app.xar",
            "--",
            "sh",
            "-c",
            "echo x > /mnt/out",
        ]);
        assert_ne!(ran.code, Some(0), "{ran:?}");
    }
}

#[test]
fn a_detached_job_lives_by_its_files() {
    for user in USERS {
        let world = world_with_image(user);
        let id = world
            .ok(&[
                "run",
                "-d",
                "--name",
                "job",
                "--image",
                "app.xar",
                "--",
                "sh",
                "-c",
                "echo one; echo two >&2; exec sleep 60",
            ])
            .stdout;
        let id = id.trim();
        assert_eq!(world.ok(&["ps", "-q"]).stdout.trim(), id);
        let said = world.fails(125, &["run", "--name", "job", "--image", "app.xar", "--", "true"]);
        assert!(said.contains("in use"), "{said}");
        wait_for(|| world.ok(&["logs", "job"]).stdout == "one\n");
        wait_for(|| world.ok(&["logs", &id[..5]]).stderr == "two\n");
        world.fails(1, &["rm", "job"]);
        world.ok(&["stop", "--time", "5", "job"]);
        assert_eq!(world.ok(&["wait", "job"]).stdout, "143\n");
        assert!(world.ok(&["ps", "-a"]).stdout.contains("exited (143)"));
        world.ok(&["rm", "job"]);
        assert_eq!(world.ok(&["ps", "-a", "-q"]).stdout, "");
        world.ends_clean();
    }
}

#[test]
fn logs_follow_until_the_job_ends() {
    let world = world_with_image(common::User::Me);
    world.ok(&[
        "run",
        "-d",
        "--name",
        "job",
        "--image",
        "app.xar",
        "--",
        "sh",
        "-c",
        "for i in 1 2 3; do echo $i; sleep 0.2; done",
    ]);
    assert_eq!(world.ok(&["logs", "-f", "job"]).stdout, "1\n2\n3\n");
    assert_eq!(world.ok(&["logs", "-n", "1", "job"]).stdout, "3\n");
}

#[test]
fn signals_are_passed_on() {
    for user in USERS {
        let world = world_with_image(user);
        let mut child = world
            .mica(&sh("trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.05; done"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "ready\n");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "got it\n");
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}

#[test]
fn limits_are_enforced_or_refused() {
    let world = world_with_image(common::User::Me);
    if rustix::process::geteuid().is_root() {
        let ran = world.run(&[
            "run",
            "--name",
            "hog",
            "--memory",
            "32m",
            "--image",
            "app.xar",
            "--",
            "sh",
            "-c",
            "head -c 200m /dev/zero | tail -c 100m >/dev/null",
        ]);
        assert!(
            ran.stderr.contains("memory"),
            "the memory hog is killed and mica says why: {ran:?}"
        );
        assert!(world.ok(&["inspect", "hog"]).stdout.contains("\"oom_killed\": true"));
        // One that lost a process and went well was not killed.
        let script = "head -c 200m /dev/zero | tail -c 100m | wc -c; exit 0";
        let well =
            ["run", "--rm", "--memory", "32m", "--image", "app.xar", "--", "sh", "-c", script];
        let ran = world.ok(&well);
        assert!(!ran.stderr.contains("the job was killed"), "{ran:?}");
        let said = world.fails(125, &["run", "-m", "1k", "--image", "app.xar", "--", "true"]);
        assert!(said.contains("the job's memory limit is too small to start it"), "{said}");
        let volume = format!("{}:/", world.dir.path().display());
        let said = world.fails(125, &["run", "-v", &volume, "--image", "app.xar", "--", "true"]);
        assert!(said.contains("nothing can be mounted at / itself"), "{said}");
        let tmpfs = "/m:size=50%,mode=700,uid=7,gid=8,nr_inodes=10,noatime";
        let script = "stat -c '%a %u %g' /m; df -i /m | tail -1 | xargs | cut -d' ' -f2";
        let ran = world
            .ok(&["run", "--rm", "--tmpfs", tmpfs, "--image", "app.xar", "--", "sh", "-c", script]);
        assert_eq!(ran.stdout, "700 7 8\n10\n");
        let ran = world.run(&[
            "run",
            "--rm",
            "--pids-limit",
            "8",
            "--image",
            "app.xar",
            "--",
            "sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait",
        ]);
        assert!(ran.stderr.to_lowercase().contains("fork"), "{ran:?}");
    }
    let world = world_with_image(common::User::Ordinary);
    let limited = ["run", "--rm", "--memory", "64m", "--image", "app.xar", "--", "echo", "ran"];
    let ran = world.run(&limited);
    match ran.code {
        Some(0) => assert_eq!(ran.stdout, "ran\n", "this host delegates cgroups to users"),
        code => {
            assert_eq!(code, Some(125), "{ran:?}");
            assert!(ran.stderr.contains("memory") && ran.stderr.contains("hint:"), "{ran:?}");
            let mut args = vec!["run", "--best-effort-limits"];
            args.extend(&limited[1..]);
            let ran = world.ok(&args);
            assert!(ran.stderr.contains("warning:") && ran.stdout == "ran\n", "{ran:?}");
        }
    }
}

#[test]
fn each_namespace_is_shared_or_private_as_asked() {
    need_fuse();
    for user in USERS {
        let world = World::new(user);
        world.write("tree/hello.txt", "hello\n");
        world.hand_over();
        world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
        // By the flag, its value and the namespace's file.
        for (flag, ns) in [
            ("--pid", "pid"),
            ("--ipc", "ipc"),
            ("--uts", "uts"),
            ("--userns", "user"),
            ("--cgroupns", "cgroup"),
            ("--timens", "time"),
            ("--network", "net"),
        ] {
            let file = format!("/proc/self/ns/{ns}");
            let host = std::fs::read_link(&file).unwrap();
            let inside = |value| {
                let run =
                    ["run", "--rm", flag, value, "--image", "app.xar", "--", "readlink", &file];
                world.ok(&run).stdout.trim().to_owned()
            };
            // An ordinary user's supervisor has users of its own.
            if ns != "user" || user == User::Me {
                assert_eq!(inside("host"), host.to_string_lossy(), "{flag} as {user:?}");
            }
            assert_ne!(
                inside(if ns == "net" { "none" } else { "private" }),
                host.to_string_lossy()
            );
        }
    }
}
