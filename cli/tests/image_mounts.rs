//! Further packages and images in a job: `mica run --mount type=image`.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::symlink;

use common::{USERS, User, World, need_fuse};
use serde_json::Value;

/// A world with the package `m@v1` in its registry and the image `app.xar`.
fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    world.write("data/etc/note", "of the package\n");
    world.write("data/etc/deep/note", "deep\n");
    symlink("/etc", world.path("data/outside")).unwrap();
    symlink("etc/deep", world.path("data/inside")).unwrap();
    world.write("tree/hello.txt", "hello\n");
    world.write(
        "graph.json",
        r#"{"modules": [{"label": "//:m", "outputs": [{"path": "", "source": "data"}]}]}"#,
    );
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    world.ok(&["pack", "--graph", "graph.json", "--target", "//:m", "--version", "v1"]);
    world
}

/// Runs a script with these mounts.
fn args<'a>(flags: &[&'a str], mounts: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let mut args = vec!["run"];
    args.extend(flags);
    mounts.iter().for_each(|mount| args.extend(["--mount", mount]));
    args.extend(["--image", "app.xar", "--", "/bin/sh", "-c", script]);
    args
}

#[test]
fn a_package_and_a_file_are_seen_and_cannot_be_written() {
    for user in USERS {
        let world = world(user);
        let mounts = [
            "type=image,source=m@v1,target=/tmp/m",
            "type=image,src=./app.xar,dst=/tmp/m/etc/deep",
        ];
        let script = "cat /tmp/m/etc/note /tmp/m/etc/deep/hello.txt; echo x > /tmp/m/x";
        let ran = world.run(&args(&["--rm"], &mounts, script));
        assert_eq!(ran.stdout, "of the package\nhello\n", "{ran:?}");
        assert!(ran.stderr.contains("Read-only file system"), "{ran:?}");
        world.ends_clean();
    }
}

#[test]
fn what_a_job_writes_to_an_image_is_its_own_and_lives_as_long_as_the_job() {
    for user in USERS {
        let world = world(user);
        let mount = ["type=image,source=m@v1,target=/tmp/m,rw"];
        let script = "echo more >> /tmp/m/etc/note; cat /tmp/m/etc/note";
        let ran = world.ok(&args(&["--name", "w"], &mount, script));
        assert_eq!(ran.stdout, "of the package\nmore\n");
        assert_eq!(world.ok(&["start", "-a", "w"]).stdout, "of the package\nmore\nmore\n");
        let record: Value = serde_json::from_str(&world.ok(&["inspect", "w"]).stdout).unwrap();
        let image = &record["config"]["images"][0];
        assert_eq!(image["source"], "m@v1");
        assert_eq!(image["target"], "/tmp/m");
        // Also now that it has ended.
        world.ok(&["cp", "w:/tmp/m/etc/note", "copy"]);
        let copy = std::fs::read_to_string(world.path("copy")).unwrap();
        assert_eq!(copy, "of the package\nmore\nmore\n");
        world.write("new", "new\n");
        world.hand_over();
        world.ok(&["cp", "new", "w:/tmp/m/etc/new"]);
        world.ok(&["cp", "w:/tmp/m/etc/new", "copy"]);
        assert_eq!(std::fs::read_to_string(world.path("copy")).unwrap(), "new\n");
        world.ok(&["rm", "w"]);
        assert_eq!(world.ok(&args(&["--rm"], &mount, script)).stdout, "of the package\nmore\n");
        world.ends_clean();
    }
}

#[test]
fn a_part_of_an_image_is_looked_for_in_the_image_only() {
    for user in USERS {
        let world = world(user);
        let cat = |part: &str| {
            let mount = format!("type=image,source=m@v1,target=/tmp/m,image-subpath={part}");
            world.run(&args(&["--rm"], &[&mount], "cat /tmp/m/note; test ! -e /tmp/m/passwd"))
        };
        for (part, text) in [
            ("etc", "of the package\n"),
            ("inside", "deep\n"),
            // These leave the image, and so end up in it.
            ("outside", "of the package\n"),
            ("../../../../../../etc", "of the package\n"),
        ] {
            let ran = cat(part);
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), text), "{part} {ran:?}");
        }
        let missing = cat("nothing");
        assert_eq!(missing.code, Some(125));
        assert!(missing.stderr.contains("cannot find nothing in it"), "{missing:?}");
    }
}

#[test]
fn images_are_kept_while_a_job_uses_them() {
    let world = world(User::Me);
    let mount = ["type=image,source=m@v1,target=/tmp/m"];
    world.ok(&args(&["-d", "--name", "w"], &mount, "sleep 60"));
    world.ok(&["rm-image", "m@v1"]);
    world.ok(&["prune", "-f"]);
    assert_eq!(world.ok(&["exec", "w", "cat", "/tmp/m/etc/note"]).stdout, "of the package\n");
    let layer = &serde_json::from_str::<Value>(&world.ok(&["inspect", "w"]).stdout).unwrap()["config"]
        ["images"][0]["layers"][0]["path"];
    let layer = std::path::Path::new(layer.as_str().unwrap());
    assert!(layer.exists(), "{}", layer.display());
    world.ok(&["rm", "-f", "w"]);
    world.ok(&["prune", "-f"]);
    assert!(!layer.exists(), "{}", layer.display());

    let refused = world.run(&args(&[], &["type=image,source=m@v9,target=/tmp/m"], "true"));
    assert_eq!(refused.code, Some(125), "{refused:?}");
    let twice = ["type=image,source=m@v1,target=/tmp/m", "type=tmpfs,target=/tmp/m/"];
    let refused = world.run(&args(&[], &twice, "true"));
    assert!(refused.stderr.contains("two mounts at /tmp/m"), "{refused:?}");
}
