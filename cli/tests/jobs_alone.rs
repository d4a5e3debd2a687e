//! What others on the node, and the jobs themselves, can't do to a user's jobs and files.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Ran, USERS, User, World, need_fuse};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// A world with an image `app.xar` that holds `hello.txt`.
fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    world.write("tree/hello.txt", "hello\n");
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    world
}

/// Starts a job with these flags; returns its id and the process id of its init.
fn start(world: &World, flags: &[&str]) -> (String, u32) {
    let args = [&["run", "-d"], flags, &["--image", "app.xar", "--", "/bin/sleep", "300"]].concat();
    let id = world.ok(&args).stdout.trim().to_owned();
    let status = std::fs::read_to_string(world.path("state/jobs").join(&id).join("status.json"));
    let pid = status.unwrap().lines().find_map(|line| {
        line.trim().strip_prefix("\"pid\": ")?.trim_end_matches(',').parse::<u32>().ok()
    });
    (id, pid.unwrap())
}

/// `mica`, run by way of another program.
fn by_way_of(world: &World, program: &str, flags: &[&str], words: &[&str]) -> Ran {
    let mut command = world.command(program);
    command.args(flags).arg(world.binary()).args(words).output().unwrap().into()
}

#[test]
fn no_process_of_a_job_controls_a_job() {
    for user in USERS {
        let world = world(user);
        start(&world, &["--name", "other"]);
        let (_, init) = start(&world, &["--name", "mine"]);
        // A process in the job's namespaces that sees the state directory all the same.
        let target = format!("--target={init}");
        let namespaces: &[&str] = if world.is_ordinary() {
            &["--user", "--preserve-credentials", "--pid"]
        } else {
            &["--pid"]
        };
        let flags = [&[target.as_str()], namespaces].concat();
        for words in [&["exec", "other", "/bin/true"][..], &["stop", "other"], &["kill", "mine"]] {
            let ran = by_way_of(&world, "nsenter", &flags, words);
            assert_ne!(ran.code, Some(0), "{words:?} {ran:?}");
            assert!(ran.stderr.contains("takes no requests"), "{words:?} {ran:?}");
        }
        // A mount namespace alone is what services and logins have.
        if !world.is_ordinary() {
            let ran = by_way_of(&world, "unshare", &["-m"], &["exec", "other", "/bin/true"]);
            assert_eq!(ran.code, Some(0), "{ran:?}");
            // With fewer capabilities as well it is what a job with the host's pid namespace is.
            let weaker = ["-m", "setpriv", "--bounding-set", "-sys_admin"];
            let ran = by_way_of(&world, "unshare", &weaker, &["exec", "other", "/bin/true"]);
            assert!(ran.stderr.contains("takes no requests"), "{ran:?}");
        }
        world.ok(&["exec", "other", "/bin/true"]);
        world.ok(&["rm", "-f", "other", "mine"]);
        world.ends_clean();
    }
}

/// A connection to a job's supervisor that says nothing.
fn silent(job: &Path) -> Option<OwnedFd> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    connect(&socket, &SocketAddrUnix::new(job.join("control")).unwrap()).ok()?;
    Some(socket)
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let world = world(User::Me);
    let (id, _) = start(&world, &["--name", "job"]);
    let job: PathBuf = world.path("state/jobs").join(id);
    let begun = Instant::now();
    let silent: Vec<_> = (0..300).map(|_| silent(&job)).collect();
    for _ in 0..5 {
        world.ok(&["exec", "job", "/bin/true"]);
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    drop(silent);
    world.ok(&["rm", "-f", "job"]);
}

/// Files and folders below a path that others can do something with, but for those whose names end so.
fn open_to_others(path: &Path, except: &[&str], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.path().symlink_metadata().unwrap());
        if meta.is_symlink() || except.iter().any(|end| path.ends_with(end)) {
            continue;
        }
        if meta.mode() & 0o077 != 0 {
            found.push(format!("{} {:o}", path.display(), meta.mode()));
        }
        if meta.is_dir() {
            open_to_others(&path, except, found);
        }
    }
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    for user in USERS {
        for umask in ["0", "077"] {
            let world = world(user);
            let run = |words: &[&str]| {
                let line = format!("umask {umask}; exec \"$0\" \"$@\"");
                let mut command = world.command("/bin/sh");
                command.args(["-c", &line]).arg(world.binary()).args(words);
                let ran = Ran::from(command.output().unwrap());
                assert_eq!(ran.code, Some(0), "{words:?} {ran:?}");
                ran
            };
            run(&["volume", "create", "data"]);
            let script = "echo said; : > /packages/app/written; umask";
            run(&[
                "run",
                "--name",
                "job",
                "-v",
                "data:/data",
                "--image",
                "app.xar",
                "--",
                "/bin/sh",
                "-c",
                script,
            ]);
            // fusermount3 knows users by name, and the ordinary one of these tests has none.
            let mount =
                (!world.is_ordinary()).then(|| run(&["mount", "--image", "app.xar"]).stdout);
            for top in ["state", "runtime"] {
                assert_eq!(world.path(top).metadata().unwrap().mode() & 0o777, 0o700, "{top}");
                let mut found = Vec::new();
                // What jobs write, and what they see, is theirs.
                open_to_others(
                    &world.path(top),
                    &["data", "upper", "work", "tree", "control"],
                    &mut found,
                );
                assert!(found.is_empty(), "umask {umask} as {user:?}: {found:#?}");
            }
            let data = world.path("state/volumes/data/data").metadata().unwrap();
            assert_eq!(data.mode() & 0o777, 0o755, "a job may run as any user");
            if let Some(mount) = mount {
                run(&["umount", mount.trim()]);
            }
            run(&["rm", "job"]);
        }
    }
}

#[test]
fn jobs_that_cannot_be_read_are_listed_and_kept() {
    let world = world(User::Me);
    let (id, _) = start(&world, &["--name", "newer"]);
    world.ok(&["stop", "-t", "0", "newer"]);
    let status = world.path("state/jobs").join(&id).join("status.json");
    let text = std::fs::read_to_string(&status).unwrap();
    for wrong in [text.replace("\"exited\"", "\"hibernated\""), String::new()] {
        std::fs::write(&status, &wrong).unwrap();
        for _ in 0..2 {
            let listed = world.ok(&["ps"]).stdout;
            assert!(listed.contains(&id) && listed.contains("unreadable: "), "{listed}");
        }
        assert!(listed_as_json(&world, &id));
        let error = world.fails(1, &["rm", "newer"]);
        assert!(error.contains("rm --force"), "{error}");
        assert_eq!(std::fs::read_to_string(&status).unwrap(), wrong);
    }
    world.ok(&["rm", "-f", "newer"]);
    assert_eq!(world.ok(&["ps", "-aq"]).stdout, "");
}

fn listed_as_json(world: &World, id: &str) -> bool {
    let json = world.ok(&["ps", "--json"]).stdout;
    json.contains(id) && json.contains("\"unreadable\": ")
}

#[test]
fn state_of_another_user_is_refused() {
    let world = world(User::Me);
    world.ok(&["ps"]);
    let runtime = world.path("runtime");
    for folder in [world.path("state"), runtime] {
        let chmod = |mode: &str| {
            assert!(Command::new("chmod").arg(mode).arg(&folder).status().unwrap().success());
        };
        chmod("777");
        let error = world.fails(1, &["ps"]);
        assert!(error.contains("others may look into it"), "{error}");
        chmod("700");
        world.ok(&["ps"]);
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(world.path("state"), Some(12_346), None).unwrap();
        let error = world.fails(1, &["ps"]);
        assert!(error.contains("belongs to user 12346"), "{error}");
    }
}
