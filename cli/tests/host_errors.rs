//! Hosts that lack what a job needs: what people are told, and the exit code.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{Ran, User, World};

/// Runs `mica run` after `prepare` in a user and mount namespace of its own, where the host can be bent.
fn run_after(prepare: &str) -> Ran {
    let world = World::new(User::Me);
    world.write("tree/f", "hello\n");
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    let mica = world.binary();
    let script = format!("{prepare} {} run --rm --image app.xar -- true", mica.display());
    let output = world
        .command("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec", &script])
        .output();
    output.expect("this test needs unshare (util-linux)").into()
}

#[test]
fn a_missing_fuse_device_is_named_with_its_remedy() {
    let ran = run_after(
        "touch null; mount --bind /dev/null null; mount -t tmpfs none /dev; touch /dev/null; \
         mount --bind null /dev/null;",
    );
    assert_eq!(ran.code, Some(125), "{ran:?}");
    assert!(
        ran.stderr.contains("cannot open /dev/fuse") && ran.stderr.contains("modprobe fuse"),
        "{ran:?}"
    );
}

const NO_NAMESPACES: &str = "echo 0 > /proc/sys/user/max_user_namespaces;";

#[test]
fn missing_user_namespaces_are_named_with_their_remedy() {
    let unprivileged = format!("{NO_NAMESPACES} setpriv --bounding-set=-all --inh-caps=-all");
    for prepare in [NO_NAMESPACES, &unprivileged] {
        let ran = run_after(prepare);
        assert_eq!(ran.code, Some(125), "{ran:?}");
        assert!(
            ran.stderr.contains("namespace") && ran.stderr.contains("max_user_namespaces"),
            "{prepare}: {ran:?}"
        );
    }
}

#[test]
fn without_namespaces_actions_are_not_run_unconfined_in_silence() {
    let world = World::new(User::Me);
    world.write("w/WORKSPACE", "");
    world.write("w/BUILD", "genrule(name = 'x', outs = ['o'], cmd = 'echo 1 > $@')\n");
    let pack = |flags: &str| -> Ran {
        let mica = world.binary();
        let script = format!(
            "{NO_NAMESPACES} {} pack --workspace w --target //:x --version v1 {flags}",
            mica.display()
        );
        let output = world
            .command("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-ec", &script])
            .output();
        output.expect("this test needs unshare (util-linux)").into()
    };
    let ran = pack("");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("namespace") && ran.stderr.contains("--unconfined"), "{ran:?}");
    assert!(!world.path("w/.mica/out/bin/o").exists());
    let ran = pack("--unconfined");
    assert_eq!(ran.code, Some(0), "{ran:?}");
}
