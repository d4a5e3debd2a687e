//! Layers that want out of their job, and jobs that want at the host: the launcher's tests do the same with plain folders.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{Ran, USERS, User, World, need_fuse};

/// A world with `evil.sqfs`, made by mksquashfs from the folder `evil` and these definitions (-p).
fn world(user: User, prepare: impl FnOnce(&World), definitions: &[&str]) -> World {
    need_fuse();
    let world = World::new(user);
    std::fs::create_dir(world.path("evil")).unwrap();
    prepare(&world);
    world.hand_over();
    let mut command = world.command("mksquashfs");
    command.args(["evil", "evil.sqfs", "-all-root", "-quiet", "-no-progress"]);
    for definition in definitions {
        command.args(["-p", definition]);
    }
    let made = command.output().expect("this test needs squashfs-tools");
    assert!(made.status.success(), "{made:?}");
    world
}

fn run(world: &World, flags: &[&str], script: &str) -> Ran {
    let tail = ["--image", "evil.sqfs", "--", "sh", "-c", script];
    world.run(&[&["run", "--rm"], flags, &tail].concat())
}

#[test]
fn whiteouts_of_no_name_hide_nothing() {
    for user in USERS {
        let prepare = |world: &World| {
            world.write("base/kept/file", "kept\n");
            for mark in [".wh..", ".wh...", ".wh.", "kept/.wh...", "kept/.wh.."] {
                world.write(&format!("evil/{mark}"), "");
            }
        };
        let world = world(user, prepare, &[]);
        world.ok(&["image", "pack", "base", "-o", "base.xar"]);
        let script = "cd kept && cat file && cd .. && pwd && ls -A . kept && test -e /etc/passwd";
        let tail = ["--image", "base.xar", "--", "sh", "-c", script];
        let ran = world.run(&[&["run", "--rm", "--image", "evil.sqfs"], &tail[..]].concat());
        assert_eq!(ran.stdout, "kept\n/packages/evil\n.:\nkept\n\nkept:\nfile\n", "{ran:?}");
        world.ends_clean();
    }
}

#[test]
fn set_user_id_programs_of_a_layer_give_nothing() {
    for user in USERS {
        let prepare = |world: &World| {
            std::fs::copy("/usr/bin/id", world.path("evil/who")).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o6755);
            std::fs::set_permissions(world.path("evil/who"), mode).unwrap();
        };
        let world = world(user, prepare, &["who m 6755 0 0"]);
        let ran = run(&world, &["-u", "1000:1000"], "test -u who && ./who -u && ./who -g");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "1000\n1000\n"), "{ran:?}");
    }
}

#[test]
fn device_nodes_of_a_layer_are_no_devices() {
    for user in USERS {
        let nodes = ["zero c 666 0 0 1 5", "memory c 666 0 0 1 1", "disk b 666 0 0 7 0"];
        let world = world(user, |_| (), &nodes);
        for node in ["zero", "memory", "disk"] {
            let ran = run(&world, &[], &format!("test -e {node} && head -c 1 {node}"));
            assert!(ran.code == Some(1) && ran.stderr.contains("Permission denied"), "{ran:?}");
        }
    }
}

#[test]
fn links_of_a_layer_lead_into_the_job() {
    for user in USERS {
        let prepare = |world: &World| {
            // From where the stack is mounted, this leads to the world's folder, if it leads out.
            std::os::unix::fs::symlink("../../../../real", world.path("evil/etc")).unwrap();
            world.write("evil/real/which", "inside\n");
            world.write("real/which", "outside\n");
            std::fs::create_dir(world.path("evil/bin")).unwrap();
            std::fs::copy("/bin/busybox", world.path("evil/bin/sh")).unwrap();
        };
        let world = world(user, prepare, &[]);
        // The launcher itself makes files in /etc of this root.
        let script = "read text < /etc/which; echo $text; echo x > /etc/made; read name < /real/hostname; echo $name";
        let mount = ["--mount", "type=tmpfs,target=/etc/in"];
        let ran = run(&world, &[&["--rootfs", "--hostname", "box"], &mount[..]].concat(), script);
        assert_eq!(ran.stdout, "inside\nbox\n", "{ran:?}");
        assert_eq!(std::fs::read_dir(world.path("real")).unwrap().count(), 1, "{ran:?}");
    }
}

#[test]
fn signals_reach_nobody_outside() {
    for user in USERS {
        let world = world(user, |_| (), &[]);
        let mut outside = world.command("sleep").arg("1000").spawn().unwrap();
        let script = format!(
            "kill -9 {0}; kill -9 -{0}; kill -9 -1; kill -0 {0} || echo tried",
            outside.id()
        );
        assert_eq!(run(&world, &[], &script).stdout, "tried\n");
        assert!(outside.try_wait().unwrap().is_none(), "it was not killed");
        outside.kill().unwrap();
        outside.wait().unwrap();
        world.ends_clean();
    }
}

/// A job that may make any system call finds no key of the session that started it, and neither does what is executed in it.
#[test]
fn keys_of_the_session_stay_in_it() {
    const CALLS: (i64, i64) = if cfg!(target_arch = "x86_64") { (248, 250) } else { (217, 219) };
    let (add, keyctl) = CALLS;
    // perl(1) passes variables only. By keyctl(2): a new session keyring, and a search in it (-3).
    let names = "my ($type, $name, $text) = ('user', 'mica-test', 'secret');";
    let search =
        format!("{names} print syscall({keyctl}, 10, -3, $type, $name, 0) > 0 ? 'found' : 'none'");
    let hold = format!(
        "{names} syscall({keyctl}, 1, 0); syscall({add}, $type, $name, $text, 6, -3) > 0 or die; exec @ARGV"
    );
    for user in USERS {
        let world = world(user, |_| (), &[]);
        let mica = world.binary();
        let holding = |words: &[&str]| -> Ran {
            world.command("perl").args(["-e", &hold]).args(words).output().unwrap().into()
        };
        let control = holding(&["perl", "-e", &search]);
        assert_eq!(control.stdout, "found", "this test needs keys: {control:?}");
        let start = [mica.to_str().unwrap(), "run", "--rm"];
        let tail = ["--image", "evil.sqfs", "--", "perl", "-e", &search];
        for flags in [&["--privileged"][..], &["--seccomp", "unconfined"], &[]] {
            let ran = holding(&[&start, flags, &tail].concat());
            assert_eq!(ran.stdout, "none", "{flags:?} {ran:?}");
        }
        world.ends_clean();
    }
}
