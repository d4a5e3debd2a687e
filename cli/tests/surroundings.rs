//! What a batch system, a service manager, cron or su make of a process: signals ignored or blocked, limits lowered, folders
//! gone. mica works all the same, or says in one line what it lacks.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{USERS, User, World, need_fuse, within};

/// A world with a root file system of busybox.
fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    std::fs::create_dir_all(world.path("root/bin")).unwrap();
    let copied = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .any(|path| std::fs::copy(path, world.path("root/bin/busybox")).is_ok());
    assert!(copied, "busybox (static) is needed by the tests");
    for name in ["sh", "sleep", "head", "tr", "yes", "cat", "echo", "true", "kill", "seq", "grep"] {
        std::os::unix::fs::symlink("busybox", world.path("root/bin").join(name)).unwrap();
    }
    world.hand_over();
    world.ok(&["image", "pack", "root", "-o", "r.xar"]);
    world
}

/// `mica`, started by a shell that does this first.
fn after(world: &World, first: &str, words: &[&str]) -> Command {
    let mica = world.binary();
    let words = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let mut command = world.command("bash");
    command.args(["-c", &format!("{first}; exec '{}' {words}", mica.display())]);
    command
}

const ECHO: [&str; 8] = ["run", "--rm", "--rootfs", "--image", "r.xar", "--", "echo", "ok"];

#[test]
fn signals_that_the_caller_ignores_or_blocks() {
    for user in USERS {
        let world = world(user);
        // dash and bash can't un-ignore what they were started with, so this one is told to ignore them itself.
        let ignored = "trap '' CHLD TERM USR1 PIPE ALRM XCPU";
        let ran = within(30, &mut after(&world, ignored, &ECHO));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "ok\n"), "{ran:?}");
        // Blocked in the caller: a job that is stopped by TERM shows that it is heard.
        let mut run = world.mica(&[
            "run",
            "--rm",
            "--rootfs",
            "--image",
            "r.xar",
            "--",
            "sh",
            "-c",
            "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done",
        ]);
        blocked(&mut run);
        let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert_eq!(line, "up\n");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        common::wait_for(|| child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(5));
        world.ends_clean();
    }
}

/// Blocks all signals in the program.
#[allow(unsafe_code)]
fn blocked(command: &mut Command) {
    let block = || {
        // SAFETY: a live set, in a child that has one thread.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(block) };
}

#[test]
fn a_hang_up_that_is_ignored_does_not_reach_the_job() {
    let world = world(User::Me);
    let script = "trap 'exit 9' HUP; echo up; i=0; while [ $i -lt 20 ]; do sleep 0.1; i=$((i+1)); done; exit 4";
    let words = ["run", "--rm", "--rootfs", "--image", "r.xar", "--", "sh", "-c", script];
    let mut command = world.command("nohup");
    let mut child = command.arg(world.binary()).args(words).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let out = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    common::wait_for(|| child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn signals_that_run_passes_on() {
    let world = world(User::Me);
    let mut script = String::from(
        "for s in 24 27 26 29 30 16 14 34 37 50 64; do trap \"echo got $s\" $s; done; echo up; ",
    );
    script.push_str("while :; do sleep 0.05; done");
    let words = ["run", "--name", "s", "--rootfs", "--image", "r.xar", "--", "sh", "-c", &script];
    let mut child = world.mica(&words).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        line
    };
    assert_eq!(next(), "up\n");
    for signal in ["24", "27", "26", "29", "30", "16", "14", "34", "37", "50", "64"] {
        let sent =
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(sent.unwrap().success());
        assert_eq!(next(), format!("got {signal}\n"));
        assert!(child.try_wait().unwrap().is_none());
    }
    world.ok(&["kill", "-s", "RTMIN+3", "s"]);
    assert_eq!(next(), "got 37\n");
    world.ok(&["kill", "-s", "SIGPWR", "s"]);
    assert_eq!(next(), "got 30\n");
    world.within(5, &["rm", "-f", "s"]);
    child.wait().unwrap();
}

/// A job that prints more than a file may be large goes on, and its log says what is missing.
#[test]
fn files_may_not_grow() {
    for user in USERS {
        let world = world(user);
        let words = [
            "run",
            "-d",
            "--name",
            "f",
            "--rootfs",
            "--image",
            "r.xar",
            "--",
            "sh",
            "-c",
            "head -c 4000000 /dev/zero | tr \"\\0\" x; echo; echo end; exit 3",
        ];
        let ran = within(30, &mut after(&world, "ulimit -f 1024", &words));
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(world.within(30, &["wait", "f"]).stdout, "3\n");
        assert!(world.ok(&["logs", "f"]).stdout.ends_with("x\nend\n"));
        world.within(5, &["rm", "-f", "f"]);
    }
}

#[test]
fn a_working_directory_that_is_gone() {
    for user in USERS {
        let world = world(user);
        let image = world.path("r.xar");
        let words =
            ["run", "--rm", "--rootfs", "--image", image.to_str().unwrap(), "--", "echo", "ok"];
        let ran = within(30, &mut after(&world, "mkdir gone && cd gone && rmdir ../gone", &words));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "ok\n"), "{ran:?}");
        let ran = within(30, &mut after(&world, "mkdir gone && cd gone && rmdir ../gone", &["ps"]));
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

#[test]
fn standard_streams_that_are_closed() {
    for user in USERS {
        let world = world(user);
        let ran = within(30, &mut after(&world, "exec 0<&- 1>&- 2>&-", &ECHO));
        assert_eq!(ran.code, Some(0), "{ran:?}");
        world.ends_clean();
    }
}

/// A folder in /tmp that is removed before and after a test.
struct Cleaned(std::path::PathBuf);

impl Drop for Cleaned {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).or_else(|_| std::fs::remove_dir_all(&self.0)).ok();
    }
}

/// Neither the folder of a session that has ended, nor another user's HOME, nor none.
#[test]
fn folders_that_the_environment_names_in_vain() {
    let world = world(User::Ordinary);
    let me = if rustix::process::geteuid().is_root() {
        12_345
    } else {
        rustix::process::geteuid().as_raw()
    };
    let temporary = format!("/tmp/mica-{me}");
    // Of a test that was ended.
    drop(std::fs::remove_dir_all(&temporary));
    let _cleaned = Cleaned(temporary.clone().into());
    let closed = world.path("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&closed, Some(0), Some(0)).unwrap();
    }
    let run = |environment: &[(&str, &str)]| {
        let mut command = world.mica(&ECHO);
        for name in ["MICA_CACHE", "MICA_STATE", "MICA_RUNTIME", "MICA_REGISTRY", "HOME"] {
            command.env_remove(name);
        }
        let ran = within(30, command.envs(environment.iter().copied()));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "ok\n"), "{environment:?} {ran:?}");
    };
    let home = world.path("home");
    let home = home.to_str().unwrap();
    run(&[("HOME", home), ("XDG_RUNTIME_DIR", "/run/user/4242")]);
    assert!(!std::path::Path::new(&temporary).exists());
    run(&[("HOME", "/nonexistent"), ("XDG_RUNTIME_DIR", "/run/user/4242")]);
    run(&[("HOME", closed.to_str().unwrap())]);
    run(&[]);
    let mode = std::fs::metadata(&temporary).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    std::fs::remove_dir_all(&temporary).unwrap();
    // Somebody else was there first.
    std::os::unix::fs::symlink(world.path("home"), &temporary).unwrap();
    let mut command = world.mica(&ECHO);
    for name in ["MICA_CACHE", "MICA_STATE", "MICA_RUNTIME", "MICA_REGISTRY", "HOME"] {
        command.env_remove(name);
    }
    let ran = within(30, &mut command);
    std::fs::remove_file(&temporary).unwrap();
    assert!(ran.code != Some(0) && ran.stderr.contains(&temporary), "{ran:?}");
}

/// Few processes left, as a batch system may allow: one clear error, or it works; never a hang, a panic or a leftover.
#[test]
fn no_more_processes_or_threads() {
    // The limit is counted for all processes of a user: only one that has no others can be tested.
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root to become a user without processes"
    );
    let world = world(User::Me);
    let id = "23457";
    let home = world.path("lone");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(23_457), Some(23_457)).unwrap();
    std::fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let as_lone = |limit: u32, words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", id, "--regid", id, "--clear-groups", "--", "bash", "-c"]);
        let words = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let line = format!("ulimit -u {limit}; exec '{}' {words}", world.binary().display());
        command.arg(line).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", &home).current_dir(world.dir.path()).stdin(Stdio::null());
        within(40, &mut command)
    };
    let processes = || {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let own = |entry: &std::fs::DirEntry| {
            let text = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            text.lines().any(|line| line.starts_with("Uid:") && line.contains(id))
        };
        entries.filter(own).count()
    };
    let mut codes = Vec::new();
    for limit in [1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 14, 20] {
        let ran = as_lone(limit, &ECHO);
        match ran.code {
            Some(0) => {}
            Some(125) => assert!(
                ran.stderr.starts_with("error: ") && ran.stdout.is_empty(),
                "{limit}: {ran:?}"
            ),
            _ => panic!("{limit}: {ran:?}"),
        }
        assert!(!ran.stderr.contains("panicked"), "{limit}: {ran:?}");
        // Also what init has yet to reap counts.
        common::wait_for(|| processes() == 0);
        let left = as_lone(1000, &["ps", "-a", "-q"]);
        assert_eq!(left.stdout, "", "{limit}: {ran:?}");
        common::wait_for(|| processes() == 0);
        codes.push(ran.code);
    }
    assert!(codes.contains(&Some(0)) && codes.contains(&Some(125)), "{codes:?}");
}
