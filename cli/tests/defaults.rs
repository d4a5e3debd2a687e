//! What a package says of its jobs, and patches between its versions, from packing to running.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{USERS, User, World, need_fuse, noise};
use serde_json::{Value, json};

fn graph(world: &World) {
    world.write(
        "graph.json",
        r#"{"modules": [{"label": "//:m", "outputs": [{"path": "", "source": "data"}],
            "entrypoint": ["/bin/sleep"], "cmd": ["60"]}]}"#,
    );
}

fn pack<'a>(version: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["pack", "--graph", "graph.json", "--target", "//:m", "--version", version];
    [&args[..], more].concat()
}

#[test]
fn a_package_brings_its_defaults_and_flags_replace_them() {
    need_fuse();
    let world = World::new(User::Me);
    world.write("data/note", "one\n");
    graph(&world);
    world.ok(&pack(
        "v1",
        &[
            "--port",
            "8080",
            "--port",
            "53/udp",
            "--health-cmd",
            "true",
            "--stop-signal",
            "INT",
            "--stop-timeout",
            "3",
            "--label",
            "team=a",
        ],
    ));
    world.ok(&["pull", "m@v1"]);
    let manifest: Value = serde_json::from_str(&world.ok(&["inspect", "m@v1"]).stdout).unwrap();
    let manifest = &manifest["manifest"];
    assert_eq!(manifest["labels"]["team"], "a");
    assert_eq!(manifest["labels"]["org.opencontainers.image.title"], "m");
    assert_eq!(manifest["labels"]["org.opencontainers.image.version"], "v1");
    assert_eq!(manifest["service"]["ports"], json!(["53/udp", "8080/tcp"]));
    assert_eq!(manifest["service"]["stop_signal"], "INT");

    let config = |flags: &[&str]| -> Value {
        let args = [&["run", "-d"], flags, &["m@v1"]].concat();
        let id = world.ok(&args).stdout;
        let record = world.ok(&["inspect", id.trim()]).stdout;
        world.ok(&["rm", "-f", id.trim()]);
        let record: Value = serde_json::from_str(&record).unwrap();
        record["config"].clone()
    };
    let usual = config(&[]);
    assert_eq!((&usual["stop_signal"], &usual["stop_timeout"]), (&json!(2), &json!(3)), "{usual}");
    assert!(usual["health"].is_object(), "{usual}");
    let other = config(&["--stop-signal", "TERM", "--stop-timeout", "1", "--no-healthcheck"]);
    assert_eq!((&other["stop_signal"], &other["stop_timeout"]), (&json!(15), &json!(1)), "{other}");
    assert!(other["health"].is_null(), "{other}");

    let refused = world.run(&pack("v2", &["--stop-signal", "NONSENSE"]));
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("its stop signal"), "{}", refused.stderr);
}

#[test]
fn what_runs_and_its_limits_are_flags_of_pack_and_of_run() {
    need_fuse();
    for user in USERS {
        let world = World::new(user);
        world.write("data/sub/note", "one\n");
        graph(&world);
        world.hand_over();
        let entrypoint = "/bin/sh -c 'echo \"$0 $* $A $B\"; pwd; id -un; exit 4'";
        let flags = ["--entrypoint", entrypoint, "--cmd", r#"["x", "y z"]"#, "--env", "A=1"];
        let more = ["-e", "B=2", "--workdir", "sub", "--pids-limit", "50", "--cpus", "1.5"];
        let rest = ["-m", "64m", "--run-flags", "--name 'from-package' --best-effort-limits"];
        world.ok(&pack("v1", &[&flags[..], &more, &rest].concat()));
        world.ok(&["pull", "m@v1"]);
        let best = "--best-effort-limits";
        let ran = world.run(&["run", "--rm", best, "m@v1"]);
        assert_eq!((ran.code, ran.stdout.lines().next()), (Some(4), Some("x y z 1 2")), "{ran:?}");
        assert!(ran.stdout.contains("/packages/m-v1/sub\n"), "{ran:?}");
        let run = ["run", "--rm", best, "-e", "A=3", "-w", "/tmp", "m@v1", "--", "w"];
        let ran = world.run(&run);
        assert!(ran.stdout.starts_with("w  3 2\n/tmp\n"), "{ran:?}");
        let run = ["run", "--rm", best, "--entrypoint", "", "m@v1", "echo", "whole"];
        assert_eq!(world.ok(&run).stdout, "whole\n");
        let list = r#"["/bin/echo", "a b"]"#;
        let run = ["run", "--rm", best, "--entrypoint", list, "m@v1", "c"];
        assert_eq!(world.ok(&run).stdout, "a b c\n");

        // What was recommended, and what is given beside it.
        world
            .fails(4, &["run", "--recommended", "-m", "32m", "-l", "l=1", "m@v1", "--recommended"]);
        let record = world.ok(&["inspect", "from-package"]).stdout;
        let record: Value = serde_json::from_str(&record).unwrap();
        let limits = &record["config"]["spec"]["limits"];
        let found = (&limits["memory"], &limits["pids"], &limits["cpus"]);
        assert_eq!(found, (&json!(32 << 20), &json!(50), &json!(1.5)));
        assert_eq!(record["config"]["labels"]["l"], "1");
        assert_eq!(
            record["config"]["spec"]["argv"].as_array().unwrap().last().unwrap(),
            "--recommended"
        );

        for (flags, why) in [
            (["--run-flags", "--no-such"], "unexpected argument '--no-such'"),
            (["--run-flags", "-m 1g program"], "program is not a flag"),
            (["--entrypoint", "'a"], "a quotation mark is not closed"),
            (["--health-interval", "3s"], "it has no health check"),
        ] {
            let ran = world.run(&pack("v2", &flags));
            assert!(ran.code != Some(0) && ran.stderr.contains(why), "{ran:?}");
        }
    }
}

#[test]
fn a_committed_version_has_the_defaults_it_is_given() {
    need_fuse();
    let world = World::new(User::Me);
    world.write("data/note", "one\n");
    graph(&world);
    world.ok(&pack("v1", &["--label", "team=a"]));
    let change = ["--entrypoint", "/bin/sh", "m@v1", "-c", "echo two > note"];
    world.ok(&[&["run", "--name", "j"], &change[..]].concat());
    let committed = world.ok(&["commit", "--cmd", "note", "--entrypoint", "cat", "-e", "X=1", "j"]);
    let reference = committed.stdout.trim().to_owned();
    assert_eq!(world.ok(&["run", "--rm", &reference]).stdout, "two\n");
    let record: Value = serde_json::from_str(&world.ok(&["inspect", &reference]).stdout).unwrap();
    let labels = &record["manifest"]["labels"];
    assert_eq!(
        format!("m@{}", labels["org.opencontainers.image.version"].as_str().unwrap()),
        reference
    );
    assert_eq!((&labels["team"], &labels["mica.commit.base"]), (&json!("a"), &json!("m@v1")));
}

#[test]
fn a_rebuilt_layer_comes_as_a_patch() {
    let world = World::new(User::Me);
    let library = |change: u8| -> Vec<u8> {
        // As after a rebuild: every block has changed a little.
        let mut bytes = noise(4 << 20);
        bytes.iter_mut().step_by(20_000).for_each(|byte| *byte ^= change);
        bytes
    };
    world.write("data/note", "one\n");
    graph(&world);
    std::fs::write(world.path("data/lib.so"), library(0)).unwrap();
    world.ok(&pack("v1", &[]));
    world.ok(&["pull", "m@v1"]);
    std::fs::write(world.path("data/lib.so"), library(1)).unwrap();
    let packed = world.ok(&pack("v2", &["--patch-newest", "1"]));
    assert!(packed.stderr.contains("patch from"), "{}", packed.stderr);

    let explained = world.ok(&["pull", "--explain", "m@v2"]).stdout;
    assert!(explained.contains("PATCH") && explained.contains("patch"), "{explained}");
    let pulled = world.ok(&["pull", "m@v2"]).stderr;
    assert!(pulled.contains("KiB of     4.0 MiB"), "{pulled}");
    world.ok(&["cache", "verify"]);

    // Whoever has no older version takes the whole.
    let elsewhere = world.mica(&["pull", "m@v2"]).env("MICA_CACHE", world.path("other")).output();
    let said = String::from_utf8(elsewhere.unwrap().stderr).unwrap();
    assert!(said.contains("4.0 MiB of     4.0 MiB"), "{said}");
    let old = world.run(&["push", "m@v2", "--patch-from", "m@v9"]);
    assert_eq!(old.code, Some(1), "{old:?}");
    assert!(old.stderr.contains("v9"), "{}", old.stderr);
}
