//! What fingers used to docker expect of jobs: found by trying each verb and flag by hand.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::process::Stdio;

use common::{Ran, USERS, User, World, need_fuse};

/// A world with a whole system in `base.xar`: a static busybox, root and alice.
fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    world.write(
        "base/etc/passwd",
        "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/al:/bin/sh\ndaemon:x:1:1::/bin:/bin/sh\n",
    );
    std::fs::create_dir_all(world.path("base/home/al")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(world.path("base/home/al"), mode).unwrap();
    world.write("base/etc/group", "root:x:0:\nalice:x:1000:\ndisk:x:6:alice\n");
    std::fs::create_dir_all(world.path("base/bin")).unwrap();
    std::fs::copy("/bin/busybox", world.path("base/bin/busybox"))
        .expect("this test needs busybox-static");
    for name in ["sh", "cat", "id", "sleep", "seq", "mkdir", "ln", "env", "touch"] {
        std::os::unix::fs::symlink("busybox", world.path(&format!("base/bin/{name}"))).unwrap();
    }
    world.hand_over();
    world.ok(&["image", "pack", "base", "-o", "base.xar"]);
    world
}

/// `mica run` of a script in that system.
fn run(world: &World, flags: &[&str], script: &str) -> Ran {
    let args = [&["run", "--rootfs"], flags, &["--image", "base.xar", "--", "sh", "-c", script]];
    world.run(&args.concat())
}

#[test]
fn the_home_and_groups_of_a_user_are_those_of_the_image() {
    for user in USERS {
        let world = world(user);
        let script = "echo $HOME; id -u; id -G";
        let ran = run(&world, &["--rm", "-u", "alice"], script);
        // An ordinary user without subordinate ids can have no further groups.
        let groups = if user == User::Me { "1000 6" } else { "1000" };
        assert_eq!(ran.stdout, format!("/home/al\n1000\n{groups}\n"), "{ran:?}");
        // A home that isn't there, or is none, is replaced by one that can be used.
        for (as_user, home) in
            [("0", "/tmp/home-0"), ("77:77", "/tmp/home-77"), ("daemon", "/tmp/home-1")]
        {
            let ran = run(&world, &["--rm", "-u", as_user], "echo $HOME; cd && touch made");
            // Of the only id that an ordinary user has, everything is.
            let home = match (user, as_user) {
                (User::Ordinary, "77:77") => "/",
                (User::Ordinary, "daemon") => "/bin",
                _ => home,
            };
            assert_eq!((ran.stdout, ran.code), (format!("{home}\n"), Some(0)), "{}", ran.stderr);
        }
        let ran = run(&world, &["--rm", "-u", "alice", "-e", "HOME=/mine"], "echo $HOME");
        assert_eq!(ran.stdout, "/mine\n");
        run(&world, &["-d", "--name", "j"], "sleep 60");
        if user == User::Me {
            let ran = world.ok(&["exec", "-u", "alice", "j", "sh", "-c", script]);
            assert_eq!(ran.stdout, "/home/al\n1000\n1000 6\n");
        } else {
            let said = run(&world, &["--rm", "--group-add", "disk"], "true").stderr;
            assert!(said.contains("6"), "{said}");
            assert!(world.fails(125, &["exec", "-u", "alice", "j", "id"]).contains("1000"));
        }
        world.ok(&["rm", "-f", "j"]);
    }
}

#[test]
fn an_ordinary_user_may_share_the_namespace_of_users() {
    for user in USERS {
        let world = world(user);
        let ran = run(&world, &["--rm", "--userns", "host"], "id -u");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "0\n"), "{ran:?}");
    }
}

#[test]
fn waiting_for_a_job_that_removes_itself_brings_its_code() {
    let world = world(User::Me);
    // From the signal to the end there is time for the request of a wait that has just been connected.
    let script = "trap 'sleep 1; exit 3' HUP; echo ready; while :; do sleep 0.1; done";
    assert_eq!(run(&world, &["-d", "--rm", "--name", "j"], script).code, Some(0));
    let waiting = world.mica(&["wait", "j"]).stdout(Stdio::piped()).spawn().unwrap();
    common::wait_for(|| world.ok(&["logs", "j"]).stdout == "ready\n");
    let connected = |entry: std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    let descriptors = format!("/proc/{}/fd", waiting.id());
    common::wait_for(|| std::fs::read_dir(&descriptors).unwrap().flatten().any(connected));
    world.ok(&["kill", "-s", "HUP", "j"]);
    let ran: Ran = waiting.wait_with_output().unwrap().into();
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "3\n"), "{ran:?}");
}

#[test]
fn words_that_are_no_flags_or_names_are_refused_and_not_taken_for_the_programs_failure() {
    let world = world(User::Me);
    let refused = |flags: &[&str], why: &str| {
        let ran = run(&world, flags, "true");
        assert!(ran.code == Some(125) && ran.stderr.contains(why), "{ran:?}");
    };
    refused(&["--memroy", "1g"], "unexpected argument '--memroy'");
    refused(&["--init=false"], "every job has an init");
    refused(&["--name", "two words"], "`two words` is not a name");
    refused(&["--memory", "10m", "--memory-swap", "5m"], "at least that for memory");
    world.fails(125, &["exec", "--no-such", "j", "true"]);
    world.fails(2, &["stop", "--no-such", "j"]);
    let fine = ["--rm", "--init", "--memory", "64m", "--memory-swap", "-1", "--pids-limit", "-1"];
    let ran = run(&world, &[&fine[..], &["--best-effort-limits"]].concat(), "exit 4");
    assert_eq!(ran.code, Some(4), "{ran:?}");
    run(&world, &["-d", "--name", "j"], "sleep 60");
    assert!(world.fails(1, &["rename", "j", "a b"]).contains("not a name"));
    world.ok(&["rm", "-f", "j"]);
}

#[test]
fn what_a_folder_holds_is_copied_into_a_new_one_and_top_takes_options_of_ps() {
    for user in USERS {
        let world = world(user);
        run(
            &world,
            &["-d", "--name", "j"],
            "mkdir -p /d/e; echo one > /d/f; ln -s f /d/l; exec sleep 60",
        );
        common::wait_for(|| world.run(&["exec", "j", "cat", "/d/l"]).code == Some(0));
        world.ok(&["cp", "j:/d/.", "new"]);
        assert_eq!(std::fs::read_to_string(world.path("new/l")).unwrap(), "one\n");
        assert!(world.path("new/e").is_dir());
        world.ok(&["cp", "new/.", "j:/other"]);
        assert_eq!(world.ok(&["exec", "j", "cat", "/other/l"]).stdout, "one\n");

        let top = world.ok(&["top", "j", "-eo", "pid,args"]).stdout;
        let lines: Vec<&str> = top.lines().collect();
        assert!(lines.len() == 2 && lines[1].ends_with("sleep 60"), "{top}");
        assert!(world.fails(1, &["top", "j", "-eo", "args"]).contains("no column PID"));
        let stats = world.ok(&["stats", "--no-stream"]).stdout;
        assert!(stats.contains(" - / - "), "the host's network is not the job's: {stats}");
        world.ok(&["rm", "-f", "j"]);
    }
}
