//! What a package says of its jobs, and patches between its versions, from packing to running.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{User, World, need_fuse, noise};
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
    assert!(refused.stderr.contains("stop signal of m"), "{}", refused.stderr);
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
