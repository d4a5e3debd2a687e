//! `mica image pack` and `mica pack` when something goes wrong, and the second time.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{USERS, User, World};

/// Lines of text that compress about as source does.
fn text(seed: u32, length: usize) -> String {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut line = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("let value_{} = compute({});\n", state >> 24, (state >> 12) & 0xfff)
    };
    let mut text = String::new();
    while text.len() < length {
        text.push_str(&line());
    }
    text
}

fn tree(world: &World) {
    for i in 0..40 {
        world.write(&format!("tree/d{}/small{i}", i % 5), &text(i, 3000));
        world.write(&format!("tree/large{i}"), &text(i + 1000, 700_000));
    }
    world.hand_over();
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_pack_killed_anywhere_leaves_nothing_that_the_next_does_not_clear() {
    for user in USERS {
        let world = World::new(user);
        tree(&world);
        world.write("out/kept", "");
        // As a killed pack leaves it on a file system that has only named files, or between
        // giving the temporary name and the final one.
        for end in [".4711.ThreadId(1).tmp", ".1.ThreadId(7).tmp"] {
            world.write(&format!("out/.image.xar{end}"), "part");
            world.write(&format!("out/.image.xar.chunks{end}"), "part");
        }
        world.hand_over();
        let args = ["image", "pack", "tree", "-o", "out/image.xar", "--scan-cache", "out/scan"];
        let started = std::time::Instant::now();
        let first = world.ok(&args).stdout;
        let took = started.elapsed();
        assert_eq!(
            names(&world.path("out")),
            ["image.xar", "image.xar.chunks", "image.xar.index", "kept", "scan"]
        );
        for step in 0..12 {
            // Another content each time: there is something to pack and something to reuse.
            world.write("tree/d1/small1", &text(step + 77, 3000));
            world.hand_over();
            let mut child =
                world.mica(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(took * step / 12);
            child.kill().unwrap();
            child.wait().unwrap();
            // The old image, whole, or the new one, whole.
            world.ok(&["image", "verify", "out/image.xar"]);
        }
        world.write("tree/d1/small1", &text(1, 3000));
        world.hand_over();
        assert_eq!(world.ok(&args).stdout, first);
        assert_eq!(names(&world.path("out")).len(), 5, "{:?}", names(&world.path("out")));
    }
}

#[test]
fn a_full_disk_is_said_so_and_leaves_nothing() {
    for user in USERS {
        let world = World::new(user);
        tree(&world);
        world.write("disk/f", "");
        world.hand_over();
        let script = "mount -t tmpfs -o size=300k none disk && \
                      { \"$0\" image pack tree -o disk/image.xar; echo $?; ls -A disk; }";
        let ran: common::Ran = world
            .command("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .arg(world.binary())
            .output()
            .unwrap()
            .into();
        assert_eq!(ran.stdout, "1\n", "{ran:#?}");
        assert!(ran.stderr.contains("cannot pack disk/image.xar"), "{ran:#?}");
        assert!(ran.stderr.contains("No space left on device"), "{ran:#?}");
    }
}

#[test]
fn nothing_changed_means_nothing_is_written() {
    for user in USERS {
        let world = World::new(user);
        tree(&world);
        let args = ["image", "pack", "tree", "-o", "image.xar", "--scan-cache", "scan"];
        let modified = || {
            let meta = fs::metadata(world.path("image.xar")).unwrap();
            (meta.ino(), meta.mtime(), meta.mtime_nsec())
        };
        // What was written a moment ago might change and look the same: it is read once more.
        std::thread::sleep(Duration::from_millis(200));
        let first = world.ok(&args);
        let written = modified();
        let second = world.ok(&args);
        assert_eq!(second.stdout, first.stdout);
        assert!(second.stderr.contains("nothing changed: 80 files"), "{second:#?}");
        assert_eq!(modified(), written);
        // A change of times only is none in the image, but has to be looked at.
        let file = fs::File::open(world.path("tree/large3")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let third = world.ok(&args);
        assert_eq!(third.stdout, first.stdout);
        assert!(third.stderr.contains("packed 80 files"), "{third:#?}");
        assert_ne!(modified(), written);
        // Whoever replaces the image gets it back.
        fs::remove_file(world.path("image.xar")).unwrap();
        world.write("image.xar", "something else");
        world.hand_over();
        assert_eq!(world.ok(&args).stdout, first.stdout);
        world.ok(&["image", "verify", "image.xar"]);
    }
}

#[test]
fn packing_a_target_again_takes_over_what_the_last_image_has() {
    let world = World::new(User::Ordinary);
    let workspace = world.workspace("monorepo");
    let dir = workspace.to_str().unwrap();
    let pack = |version| {
        let args = ["pack", "--workspace", dir, "--target", "//app:A", "--version", version];
        world.ok(&args)
    };
    pack("v1");
    let kept = workspace.join(".mica/out/pack");
    let layers = names(&kept);
    assert_eq!(layers.len(), 7, "six layers and the lock: {layers:?}");
    for layer in layers.iter().filter(|name| *name != "lock") {
        // There is a scan too, unless every file was written a moment ago: then there is nothing to be trusted later.
        let mut there = names(&kept.join(layer));
        there.retain(|name| name != "scan");
        assert_eq!(there, ["image.xar", "image.xar.chunks", "image.xar.index"]);
    }
    // Without the folder, the same comes out.
    let file = workspace.join("app/A.c");
    let changed = fs::read_to_string(&file).unwrap().replace("first edition", "next edition");
    fs::write(&file, changed).unwrap();
    world.hand_over();
    let why = |words: &[&str]| world.ok(&[&["why"], words].concat()).stdout;
    let target = ["--workspace", dir, "--target", "//app:A"];
    let since = [&target[..], &["//app:A", "--since", "A@v1"]].concat();
    // Looking builds nothing.
    let said = world.fails(1, &[&["why"], &since[..]].concat());
    assert!(said.contains("the outputs of //app:A are not built"), "{said}");
    let with = pack("v2");
    assert_eq!(with.stderr.matches("packed").count(), 1, "{with:#?}");
    // What would be packed again, for what, and what was.
    let after = why(&since);
    assert_eq!(after, "C /app/A\n");
    assert_eq!(why(&["A@v2", "//app:A", "--since", "A@v1"]), after);
    let path = why(&[&target[..], &["//lib/f:F"]].concat());
    assert_eq!(path, "//app:A -> //lib/c:C -> //lib/e:E -> //lib/f:F\n");
    let digests = |version: &str| {
        let reference = format!("A@{version}");
        world.ok(&["pull", &reference]);
        let text = world.ok(&["inspect", &reference]).stdout;
        // Those of the layers: that of the manifest covers their versions.
        let is_layers = |line: &&str| line.starts_with("    ") && line.contains("blake3:");
        text.lines().filter(is_layers).map(str::to_owned).collect::<Vec<_>>()
    };
    let first = digests("v2");
    fs::remove_dir_all(&kept).unwrap();
    fs::remove_dir_all(world.path("registry")).unwrap();
    fs::remove_dir_all(world.path("cache")).unwrap();
    assert!(!first.is_empty());
    pack("v2");
    assert_eq!(digests("v2"), first);
}
