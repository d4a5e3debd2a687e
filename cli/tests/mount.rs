//! `mica mount` and `mica umount` on the host.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{User, World, need_fuse};

fn world_with_images() -> World {
    need_fuse();
    let world = World::new(User::Me);
    world.write("base/etc/a", "base a\n");
    world.write("base/etc/b", "base b\n");
    world.write("top/etc/a", "top a\n");
    world.ok(&["image", "pack", "base", "-o", "base.xar"]);
    world.ok(&["image", "pack", "top", "-o", "top.sqfs", "--no-header"]);
    world
}

fn read(world: &World, path: &str) -> String {
    std::fs::read_to_string(world.path(path)).unwrap()
}

#[test]
fn images_are_stacked_topmost_first_and_read_only() {
    let world = world_with_images();
    std::fs::create_dir(world.path("mnt")).unwrap();
    let ran = world.ok(&["mount", "--image", "top.sqfs", "--image", "base.xar", "mnt"]);
    assert_eq!(ran.stdout.trim(), world.path("mnt").canonicalize().unwrap().to_string_lossy());
    assert_eq!(read(&world, "mnt/etc/a"), "top a\n");
    assert_eq!(read(&world, "mnt/etc/b"), "base b\n");
    let error = std::fs::write(world.path("mnt/etc/new"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    world.ok(&["umount", "mnt"]);
    assert_eq!(world.leftovers(), Vec::<String>::new());
    let said = world.fails(1, &["umount", "mnt"]);
    assert!(said.contains("not a mount"), "{said}");
}

#[test]
fn an_upper_keeps_what_is_written() {
    let world = world_with_images();
    std::fs::create_dir(world.path("mnt")).unwrap();
    let mount = ["mount", "--image", "base.xar", "--upper", "up", "mnt"];
    world.ok(&mount);
    std::fs::write(world.path("mnt/etc/a"), "changed\n").unwrap();
    std::fs::remove_file(world.path("mnt/etc/b")).unwrap();
    let said = world.fails(1, &["mount", "--image", "base.xar", "--upper", "up"]);
    assert!(said.contains("upper"), "two mounts on one upper are refused: {said}");
    world.ok(&["umount", "mnt"]);
    assert_eq!(read(&world, "up/etc/a"), "changed\n");
    world.ok(&mount);
    assert_eq!(read(&world, "mnt/etc/a"), "changed\n");
    assert!(!world.path("mnt/etc/b").exists());
    world.ok(&["umount", "mnt"]);
}

#[test]
fn without_a_folder_a_mount_point_is_made_and_printed() {
    let world = world_with_images();
    let point = world.ok(&["mount", "--image", "base.xar"]).stdout;
    let point = point.trim();
    assert_eq!(std::fs::read_to_string(format!("{point}/etc/a")).unwrap(), "base a\n");
    world.ok(&["umount", point]);
    assert!(!std::path::Path::new(point).exists());
}

#[test]
fn a_mount_whose_server_was_killed_is_taken_down_by_the_next_command() {
    let world = world_with_images();
    std::fs::create_dir(world.path("mnt")).unwrap();
    world.ok(&["mount", "--image", "base.xar", "mnt"]);
    for leftover in world.leftovers() {
        if let Some(pid) = leftover.strip_prefix("process ") {
            let pid = pid.split(':').next().unwrap().parse().unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    world.ok(&["ps"]);
    assert_eq!(world.leftovers(), Vec::<String>::new());
    world.ok(&["mount", "--image", "base.xar", "mnt"]);
    assert_eq!(read(&world, "mnt/etc/a"), "base a\n");
    world.ok(&["umount", "mnt"]);
}

#[test]
fn damaged_images_are_refused_with_their_name() {
    let world = world_with_images();
    world.write("noise.xar", &"not an image ".repeat(1000));
    std::fs::create_dir(world.path("mnt")).unwrap();
    let said = world.fails(1, &["mount", "--image", "noise.xar", "mnt"]);
    assert!(said.contains("noise.xar") && said.contains("hint:"), "{said}");
    let whole = std::fs::read(world.path("base.xar")).unwrap();
    std::fs::write(world.path("cut.xar"), &whole[..4096 + 60]).unwrap();
    let said = world.fails(1, &["mount", "--image", "cut.xar", "mnt"]);
    assert!(said.contains("cut.xar"), "{said}");
    let said = world.fails(1, &["mount", "--image", "base.xar", "nowhere"]);
    assert!(said.contains("nowhere"), "{said}");
}
