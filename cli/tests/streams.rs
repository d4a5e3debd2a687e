//! What of the caller's gets into a job: the bytes of its streams, and no descriptor.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use common::{Ran, USERS, User, World, need_fuse, wait_for};

fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    world.write("tree/hello.txt", "hello\n");
    world.write("secret", "secret\n");
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    assert!(world.command("mkfifo").args(["-m", "600", "fifo"]).status().unwrap().success());
    world
}

/// `mica` started by somebody who has many descriptors open, none of them close-on-exec.
fn careless(world: &World, args: &[&str], redirected: &str) -> Command {
    let open = "exec 5<secret 6>>secret 7<>fifo 8</etc/passwd 9<.";
    let mut command = world.command("bash");
    command.args([
        "-c",
        &format!("{open}; exec 33<secret 200<.; exec \"$@\" {redirected}"),
        "bash",
    ]);
    command.arg(world.binary()).args(args);
    command
}

fn ran(command: &mut Command) -> Ran {
    command.output().unwrap().into()
}

/// Asks for each, as a list of them takes a descriptor itself.
const LIST: &str =
    "l=; n=0; while [ $n -lt 300 ]; do [ -e /proc/$$/fd/$n ] && l=$l,$n; n=$((n+1)); done; echo $l";

#[test]
fn a_job_has_three_descriptors_whatever_its_caller_has() {
    for user in USERS {
        let world = world(user);
        let run = ["--image", "app.xar", "--", "sh", "-c"];
        for flags in [&["run", "--rm"][..], &["run", "--rm", "-i"]] {
            let ran = ran(&mut careless(&world, &[flags, &run, &[LIST]].concat(), ""));
            assert_eq!(ran.stdout, ",0,1,2\n", "{ran:?}");
        }
        let check = format!("{LIST} > /tmp/checked");
        let flags =
            ["run", "-d", "--name", "job", "--health-interval=100ms", "--health-cmd", &check];
        let script = format!("{LIST}; exec sleep 1000");
        let started = ran(&mut careless(&world, &[&flags[..], &run, &[&script]].concat(), ""));
        assert_eq!(started.code, Some(0), "{started:?}");
        wait_for(|| world.ok(&["logs", "job"]).stdout == ",0,1,2\n");
        let exec = ["exec", "-i", "job", "sh", "-c", LIST];
        for redirected in ["", "<fifo"] {
            let ran = ran(&mut careless(&world, &exec, redirected));
            assert_eq!(ran.stdout, ",0,1,2\n", "{ran:?}");
        }
        let ended = ran(&mut careless(&world, &exec, ">printed"));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(std::fs::read_to_string(world.path("printed")).unwrap(), ",0,1,2\n");
        helper_of_a_copy(&world);
        world.ok(&["exec", "-d", "job", "sh", "-c", &format!("{LIST} > /tmp/detached")]);
        for file in ["/tmp/checked", "/tmp/detached"] {
            wait_for(|| world.run(&["exec", "job", "cat", file]).stdout == ",0,1,2\n");
        }
        world.ok(&["rm", "-f", "job"]);
        world.ends_clean();
    }
}

/// The process that goes into the job's namespaces for `cp` takes nothing along.
fn helper_of_a_copy(world: &World) {
    let mut command = careless(world, &["cp", "-", "job:/tmp"], "");
    let mut copy = command.stdin(Stdio::piped()).spawn().unwrap();
    let here = world.dir.path().to_str().unwrap();
    let opened = |entry: &std::fs::DirEntry| -> Option<Vec<String>> {
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if !words.contains("copy-job-files write") || !words.contains(here) {
            return None;
        }
        let descriptors = entry.path().join("fd").read_dir().ok()?.flatten();
        let to = |fd: std::fs::DirEntry| Some(fd.path().read_link().ok()?.display().to_string());
        Some(descriptors.filter_map(to).collect())
    };
    let mut found = None;
    wait_for(|| {
        found = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| opened(&entry));
        // It is there when it has begun to read.
        found.as_ref().is_some_and(|found| !found.is_empty())
    });
    drop(copy.stdin.take());
    copy.wait().unwrap();
    let found = found.unwrap();
    let foreign = |to: &&String| {
        ["secret", "fifo", "passwd"].iter().any(|name| to.ends_with(name)) || to.as_str() == here
    };
    assert_eq!(found.iter().filter(foreign).count(), 0, "{found:?}");
}

/// What the job sees as its streams, and what it makes of them.
const TRY: &str = "for n in 0 1 2; do readlink /proc/self/fd/$n; chmod 777 /proc/self/fd/$n; done; \
    test -t 0 && echo terminal; echo done";

#[test]
fn files_and_fifos_of_the_caller_stay_the_callers() {
    for user in USERS {
        let world = world(user);
        world.ok(&["run", "-d", "--name", "job", "--image", "app.xar", "--", "sleep", "1000"]);
        let jobs: [&[&str]; 3] = [
            &["run", "--rm", "-i", "--image", "app.xar", "--", "sh", "-c", TRY],
            &["run", "--rm", "-i", "-u", "0", "--image", "app.xar", "--", "sh", "-c", TRY],
            &["exec", "-i", "job", "sh", "-c", TRY],
        ];
        for job in jobs {
            for redirected in ["<fifo >out 2>err", "<secret >out 2>&1"] {
                for file in ["out", "err", "secret"] {
                    std::fs::write(world.path(file), "in\n").unwrap();
                    let mode = std::fs::Permissions::from_mode(0o600);
                    std::fs::set_permissions(world.path(file), mode).unwrap();
                }
                world.hand_over();
                let mut command = careless(&world, job, redirected);
                let mut child = command.stdin(Stdio::null()).spawn().unwrap();
                assert!(child.wait().unwrap().success(), "{job:?}");
                let out = std::fs::read_to_string(world.path("out")).unwrap();
                assert!(out.ends_with("done\n") && !out.contains("terminal"), "{out}");
                assert!(!out.contains(world.dir.path().to_str().unwrap()), "{out}");
                for file in ["out", "err", "secret", "fifo"] {
                    let mode = world.path(file).metadata().unwrap().mode() & 0o7777;
                    assert_eq!(mode, 0o600, "{file} {out}");
                }
            }
        }
        world.ok(&["rm", "-f", "job"]);
        world.ends_clean();
    }
}

#[test]
fn a_terminal_as_standard_input_is_passed_on_not_handed_over() {
    for user in USERS {
        let world = world(user);
        let script = format!(
            "stty -a <&0 >/dev/null 2>&1 && echo settings; {TRY}; exec 3<>/dev/tty && echo tty"
        );
        world.ok(&["run", "-d", "--name", "job", "--image", "app.xar", "--", "sleep", "1000"]);
        std::fs::write(world.path("script.sh"), &script).unwrap();
        world.hand_over();
        let mount = format!("{}:/script.sh:ro", world.path("script.sh").display());
        for line in [
            format!("run --rm -i -v {mount} --image app.xar -- sh /script.sh"),
            format!("run --rm -v {mount} --image app.xar -- sh /script.sh"),
            "exec -i job sh -c 'test -t 0 || test -t 1 || echo done'".to_owned(),
        ] {
            let line = format!(
                "{} {line}; echo code $?; stat -c 'mode %a' $(tty)",
                world.binary().display()
            );
            let mut command = world.command("timeout");
            command.args(["60", "script", "-qefc", &line, "/dev/null"]).stdin(Stdio::piped());
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            // Kept open: its end would be a key.
            let typed = child.stdin.take().unwrap();
            let ran: Ran = child.wait_with_output().unwrap().into();
            drop(typed);
            let text = ran.stdout.replace('\r', "");
            assert!(text.contains("done\n"), "{text}");
            assert!(!text.contains("settings") && !text.contains("terminal\n"), "{text}");
            assert!(!text.contains("/dev/pts/") && !text.contains("tty\n"), "{text}");
            assert!(text.contains("mode 620") || text.contains("mode 600"), "{text}");
        }
        world.ok(&["rm", "-f", "job"]);
        world.ends_clean();
    }
}

#[test]
fn the_hosts_dev_null_is_no_jobs_to_change() {
    let mode = || std::fs::metadata("/dev/null").unwrap().mode();
    let before = mode();
    for user in USERS {
        let world = world(user);
        // Another mode that harms nobody, if the job can set it.
        let script =
            "for n in 0 1 2; do chmod 667 /proc/self/fd/$n; done; readlink /proc/self/fd/0";
        let ran =
            world.run(&["run", "--rm", "-u", "0", "--image", "app.xar", "--", "sh", "-c", script]);
        assert_eq!(ran.stdout, "/dev/null\n", "{ran:?}");
        world.ok(&["run", "-d", "--name", "job", "--image", "app.xar", "--", "sleep", "1000"]);
        world.ok(&[
            "exec",
            "-d",
            "-u",
            "0",
            "job",
            "sh",
            "-c",
            &format!("{script}; touch /tmp/tried"),
        ]);
        wait_for(|| world.run(&["exec", "job", "test", "-e", "/tmp/tried"]).code == Some(0));
        world.ok(&["rm", "-f", "job"]);
        let after = mode();
        if after != before {
            std::fs::set_permissions("/dev/null", PermissionsExt::from_mode(before)).unwrap();
        }
        assert_eq!(after, before, "{user:?}");
        world.ends_clean();
    }
}

#[test]
fn a_program_that_reads_nothing_keeps_nobody_from_its_output() {
    for user in USERS {
        let world = world(user);
        world.ok(&["run", "-d", "--name", "job", "--image", "app.xar", "--", "sleep", "1000"]);
        // More of everything than pipes hold: who fed the program first would wait for ever.
        let script = "head -c 3000000 /dev/zero; cat | wc -c; head -c 3000000 /dev/zero";
        for job in [&["run", "--rm", "-i", "--image", "app.xar", "--"][..], &["exec", "-i", "job"]]
        {
            let mut command = world.command("timeout");
            command.arg("60").arg(world.binary()).args(job).args(["sh", "-c", script]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let feeder = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 2_000_000]));
            let output = child.wait_with_output().unwrap();
            feeder.join().unwrap().unwrap();
            assert!(output.status.success(), "{job:?}");
            assert_eq!(output.stdout.len(), 6_000_008, "{job:?}");
        }
        // Nor does one that ends early keep its caller waiting for more to say.
        let mut command = world.command("timeout");
        command
            .arg("60")
            .arg(world.binary())
            .args(["run", "--rm", "-i", "--image", "app.xar", "--", "true"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let open = child.stdin.take().unwrap();
        assert!(child.wait().unwrap().success());
        drop(open);
        world.ok(&["rm", "-f", "job"]);
        world.ends_clean();
    }
}
