//! Flags that a package recommends are taken as far as they harm nobody; what is more, somebody accepts.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{USERS, User, World, need_fuse};

const GRAVE: &str = "--privileged -v /:/h -m 512m --best-effort-limits";

fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    world.write("data/note", "note\n");
    world.write(
        "graph.json",
        r#"{"modules": [{"label": "//:m", "outputs": [{"path": "", "source": "data"}],
            "entrypoint": ["/bin/sh", "-c"], "cmd": ["test -d /h && echo host; echo ran"]}]}"#,
    );
    world.hand_over();
    world.ok(&["key", "new", "a", "--no-password"]);
    world.ok(&["key", "new", "b", "--no-password"]);
    pack(&world, "grave", &["--run-flags", GRAVE]);
    pack(&world, "plain", &["--run-flags", "-m 512m --best-effort-limits -e A=1 --network none"]);
    pack(&world, "signed", &["--run-flags", GRAVE, "--sign", "a.key"]);
    world
}

fn pack(world: &World, version: &str, more: &[&str]) {
    let args = ["pack", "--graph", "graph.json", "--target", "//:m", "--version", version];
    world.ok(&[&args[..], more].concat());
    world.ok(&["pull", &format!("m@{version}")]);
}

fn policy(world: &World, keys: &str) {
    let text = format!("[[recommended]]\nnames = [\"m*\"]\nkeys = [{keys}]\n");
    world.write("home/.config/mica/config.toml", &text);
    world.hand_over();
}

#[test]
fn what_weakens_a_job_is_shown_and_accepted_first() {
    for user in USERS {
        let world = world(user);
        let refused = |words: &[&str]| {
            let said = world.fails(125, words);
            assert!(said.contains("m@grave recommends flags that"), "{said}");
            assert!(said.contains("--privileged") && said.contains("--volume /:/h"), "{said}");
            assert!(!said.contains("512m") && said.contains("hint: --yes"), "{said}");
        };
        refused(&["run", "--rm", "--recommended", "m@grave"]);
        refused(&["run", "--rm", "-q", "--recommended", "m@grave"]);
        refused(&["run", "--rm", "--recommended", "m@grave", "--yes"]);
        refused(&["run", "--dry-run", "--recommended", "m@grave"]);
        assert_eq!(world.ok(&["ps", "-a", "-q"]).stdout, "");
        // Accepted, they are shown all the same.
        for quiet in [&[][..], &["-q"]] {
            let ran = world
                .ok(&[&["run", "--rm", "--recommended", "--yes"], quiet, &["m@grave"]].concat());
            assert_eq!(ran.stdout, "host\nran\n", "{ran:?}");
            assert!(ran.stderr.contains(GRAVE), "{ran:?}");
        }
        let ran = world.ok(&["run", "--rm", "--recommended", "m@plain"]);
        assert_eq!(ran.stdout, "ran\n");
        // Those flags given by the caller are the caller's.
        world.ok(&["run", "--rm", "--privileged", "--recommended", "m@plain"]);
        world.ends_clean();
    }
}

#[test]
fn a_policy_by_name_and_signature_accepts_for_good() {
    for user in USERS {
        let world = world(user);
        let run = |version: &str| {
            world.run(&["run", "--rm", "-q", "--recommended", &format!("m@{version}")])
        };
        assert_eq!(run("signed").code, Some(125), "a signature alone is no policy");
        policy(&world, "\"../../../a.pub\"");
        let ran = run("signed");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "host\nran\n"), "{ran:?}");
        assert!(ran.stderr.contains(GRAVE), "{ran:?}");
        assert_eq!(run("grave").code, Some(125), "unsigned");
        policy(&world, "\"../../../b.pub\"");
        let ran = run("signed");
        assert!(ran.code == Some(125) && ran.stderr.contains("signatures"), "{ran:?}");
        policy(&world, "");
        assert!(run("plain").stderr.contains("m* has no keys"));
        // A workspace is somebody's repository and accepts nothing for who works in it.
        std::fs::remove_file(world.path("home/.config/mica/config.toml")).unwrap();
        world.write("mica.toml", "[[recommended]]\nnames = [\"*\"]\nkeys = [\"a.pub\"]\n");
        world.hand_over();
        let ran = run("signed");
        assert_eq!(ran.code, Some(125), "{ran:?}");
        assert!(ran.stderr.contains("a workspace may not say what jobs are given"), "{ran:?}");
    }
}

#[test]
fn privileged_says_in_one_line_what_it_gives_away() {
    for user in USERS {
        let world = world(user);
        let warned = |flags: &[&str]| {
            let ran = world.run(&[&["run", "--rm"], flags, &["m@grave"]].concat());
            let lines = ran.stderr.lines().filter(|line| line.starts_with("warning: --privileged"));
            lines.count()
        };
        assert_eq!(warned(&["--privileged"]), 1);
        assert_eq!(warned(&["--privileged", "-q"]), 0);
        assert_eq!(warned(&[]), 0);
        if user == User::Me {
            let ran = world.run(&[
                "run",
                "--rm",
                "--userns",
                "host",
                "--cap-add",
                "sys_admin",
                "m@grave",
            ]);
            assert!(ran.stderr.contains("root of the host"), "{ran:?}");
            let flags = ["--userns", "host", "--pid", "host", "--cap-add", "SYS_PTRACE"];
            let ran = world.run(&[&["run", "--rm"][..], &flags, &["m@grave"]].concat());
            assert!(ran.stderr.contains("traces its processes"), "{ran:?}");
            let ran = world.run(&["run", "--rm", "--cap-add", "SYS_ADMIN", "m@grave"]);
            let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
            assert_eq!(ran.stderr.contains("control groups of version 1"), !unified, "{ran:?}");
        }
    }
}
