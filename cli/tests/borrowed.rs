//! A second version of a large layer: its pull stores the difference, and everything works with it as with a whole image.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{User, World, need_fuse, noise};
use serde_json::Value;

const SIZE: usize = 4 << 20;

fn packed(user: User) -> World {
    let world = World::new(user);
    world.write(
        "graph.json",
        r#"{"modules": [{"label": "//:m", "outputs": [{"path": "", "source": "data"}]}]}"#,
    );
    world.write("data/note.txt", "");
    std::fs::write(world.path("data/model.bin"), noise(SIZE)).unwrap();
    world.hand_over();
    for (version, text) in [("v1", "one\n"), ("v2", "two\n"), ("v3", "three\n")] {
        world.write("data/note.txt", text);
        world.hand_over();
        let target = ["--target", "//:m", "--version", version];
        world.ok(&[&["pack", "--graph", "graph.json"], &target[..]].concat());
    }
    world
}

fn json(world: &World, args: &[&str]) -> Value {
    serde_json::from_str(&world.ok(args).stdout).expect("it is JSON")
}

#[test]
fn a_second_version_is_stored_as_its_difference_and_runs() {
    need_fuse();
    for user in common::USERS {
        let world = packed(user);
        world.ok(&["pull", "m@v1"]);
        let before = json(&world, &["df", "--json"]);
        let explained = world.ok(&["pull", "--explain", "m@v2"]).stdout;
        assert!(explained.contains("borrowed"), "{explained}");
        let way = &json(&world, &["pull", "--explain", "--json", "m@v2"])["layers"][0];
        assert_eq!(way["way"], "borrowed");
        let pulled = world.ok(&["pull", "m@v2"]).stderr;
        assert!(pulled.contains("KiB of"), "{pulled}");
        let after = json(&world, &["df", "--json"]);
        let grown = after["bytes"].as_u64().unwrap() - before["bytes"].as_u64().unwrap();
        assert!(grown < SIZE as u64 / 8, "{grown} bytes more");
        assert_eq!(after["borrowed"], 1);
        assert!(after["spared"].as_u64().unwrap() > SIZE as u64 * 7 / 8);

        let reads = |text: &str, flags: &[&str]| {
            let script = "cat /packages/m-v2/note.txt; sha256sum < /packages/m-v2/model.bin";
            let command = ["--entrypoint", "/bin/sh", "m@v2", "--", "-c", script];
            let said = world.ok(&[&["run", "--rm"], flags, &command[..]].concat()).stdout;
            let sum = world.command("sha256sum").arg(world.path("data/model.bin")).output();
            let sum = String::from_utf8(sum.expect("sha256sum runs").stdout).expect("text");
            assert_eq!(said.lines().next(), Some(text));
            assert_eq!(said.lines().nth(1).map(|l| &l[..64]), Some(&sum[..64]));
        };
        reads("two", &[]);
        reads("two", &["--verify", "always"]);
        reads("two", &["--verify", "never", "--read-only"]);
        reads("two", &["--lazy"]);
        assert_eq!(world.ok(&["diff", "m@v1", "m@v2"]).stdout, "C /note.txt\n");
        assert!(world.ok(&["why", "m@v2", "/note.txt"]).stdout.contains("//:m"));
        assert_eq!(world.ok(&["images", "-q"]).stdout.lines().count(), 2);
        assert_eq!(world.ok(&["cache", "verify"]).stdout, "");
        assert_eq!(json(&world, &["df", "--json"])["borrowed"], 1, "nothing of that made a file");

        // A job of it can be started again when it is no longer borrowed.
        world.ok(&[
            "run",
            "--name",
            "j",
            "--entrypoint",
            "/bin/cat",
            "m@v2",
            "--",
            "/packages/m-v2/note.txt",
        ]);
        world.ok(&["save", "-o", "m.tar", "m@v2"]);
        assert_eq!(json(&world, &["df", "--json"])["borrowed"], 0, "an archive needs a file");
        world.ok(&["start", "j"]);
        world.ok(&["wait", "j"]);
        assert_eq!(world.ok(&["logs", "j"]).stdout, "two\ntwo\n");
        world.ok(&["rm", "j"]);
        reads("two", &[]);

        // What it lies in stays as long as it does.
        world.ok(&["pull", "m@v3"]);
        for old in ["m@v1", "m@v2"] {
            world.ok(&["rm-image", old]);
        }
        world.ok(&["prune", "-f"]);
        assert_eq!(json(&world, &["df", "--json"])["borrowed"], 1);
        let note =
            ["run", "--rm", "--entrypoint", "/bin/cat", "m@v3", "--", "/packages/m-v3/note.txt"];
        assert_eq!(world.ok(&note).stdout, "three\n");
        // Published from there, it is a whole image.
        let other = world.path("other").display().to_string();
        world.ok(&["push", "m@v3", "--registry", &other]);
        world.ok(&["prune", "-a", "-f"]);
        assert_eq!(json(&world, &["df", "--json"])["bytes"], 0);
        world.ok(&["pull", "m@v3", "--registry", &other]);
        assert_eq!(world.ok(&note).stdout, "three\n");
        world.ends_clean();
    }
}
