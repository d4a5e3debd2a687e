//! `mica mount` and `mica umount` on the host.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{User, World, need_fuse, wait_for};

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

/// Sends a signal to the process that serves the world's only mount.
fn signal_server(world: &World, signal: rustix::process::Signal) {
    for leftover in world.leftovers() {
        if let Some(pid) = leftover.strip_prefix("process ") {
            let pid = pid.split(':').next().unwrap().parse().unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
    }
}

/// What is out of the tree is there for those who have it open, and then nothing is left.
fn is_served_to_the_end(world: &World, mut open: std::fs::File) {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut open, &mut text).unwrap();
    assert_eq!(text, "base b\n");
    drop(open);
    world.ends_clean();
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
    world.ends_clean();
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
    signal_server(&world, rustix::process::Signal::KILL);
    // The first command that finds it dead: a killed process takes its time to let go of its lock.
    wait_for(|| {
        world.ok(&["ps"]);
        world.leftovers().is_empty()
    });
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

#[test]
fn a_mount_in_use_is_taken_out_of_the_tree_and_served_on() {
    let world = world_with_images();
    std::fs::create_dir(world.path("mnt")).unwrap();
    world.ok(&["mount", "--image", "base.xar", "mnt"]);
    let open = std::fs::File::open(world.path("mnt/etc/b")).unwrap();
    let said = world.ok(&["umount", "mnt"]).stderr;
    assert!(said.contains("in use"), "{said}");
    assert!(!world.path("mnt/etc").exists());
    is_served_to_the_end(&world, open);
}

#[test]
fn a_server_ends_on_a_signal_and_tells_its_counters_on_another() {
    let world = world_with_images();
    let point = world.ok(&["mount", "--image", "base.xar"]).stdout;
    let point = std::path::Path::new(point.trim());
    assert!(!point.join("etc/missing").exists());
    let counters = world.ok(&["stats", "--mount", point.to_str().unwrap(), "--json"]).stdout;
    assert!(counters.contains("\"lookup\": "), "{counters}");
    let said = world.fails(1, &["stats", "--mount", "."]);
    assert!(said.contains("not on a mount of mica's"), "{said}");
    signal_server(&world, rustix::process::Signal::USR1);
    let log = point.parent().unwrap().join("server.log");
    wait_for(|| std::fs::read_to_string(&log).unwrap_or_default().contains("lookup"));
    signal_server(&world, rustix::process::Signal::TERM);
    world.ends_clean();
}

#[test]
fn a_mount_in_use_survives_the_signal_to_end_until_its_last_user_is_gone() {
    let world = world_with_images();
    let point = world.ok(&["mount", "--image", "base.xar"]).stdout;
    let point = std::path::Path::new(point.trim());
    let open = std::fs::File::open(point.join("etc/b")).unwrap();
    signal_server(&world, rustix::process::Signal::TERM);
    wait_for(|| !point.join("etc").exists());
    is_served_to_the_end(&world, open);
}

#[test]
fn a_mount_outlives_the_terminal_it_was_made_on() {
    let world = world_with_images();
    std::fs::create_dir(world.path("mnt")).unwrap();
    let line =
        format!("{} mount --image base.xar mnt; echo mounted; sleep 600", world.binary().display());
    // `script` is the terminal: killed, it hangs up on all who have it.
    let mut terminal = world
        .command("script")
        .args(["-qefc", &line, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = std::io::BufReader::new(terminal.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("mounted") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut printed, &mut line).unwrap(), 0);
    }
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    // The end of its output: nobody has the terminal any more.
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut printed, &mut rest).unwrap();
    assert_eq!(read(&world, "mnt/etc/a"), "base a\n");
    world.ok(&["umount", "mnt"]);
    world.ends_clean();
}

#[test]
fn a_recorded_trace_lies_beside_the_package_and_damage_is_found_on_the_way() {
    need_fuse();
    let world = World::new(User::Me);
    world.workspace("monorepo");
    let pack = ["pack", "--workspace", "monorepo", "--target", "//app:A", "--version", "v1"];
    world.ok(&pack);
    std::fs::create_dir(world.path("mnt")).unwrap();
    let traces = || {
        let files = std::fs::read_dir(world.path("cache/traces")).into_iter().flatten();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect::<Vec<_>>()
    };
    world.ok(&["mount", "A@v1", "mnt"]);
    world.ok(&["umount", "mnt"]);
    assert_eq!(traces(), Vec::<String>::new());
    world.ok(&["mount", "--record-trace", "A@v1", "mnt"]);
    let program = std::fs::read(world.path("mnt/app/A")).unwrap();
    world.ok(&["umount", "mnt"]);
    assert!(
        matches!(&traces()[..], [text] if text.starts_with("mica trace 1\n0 ")),
        "{traces:?}",
        traces = traces()
    );
    world.ok(&["mount", "A@v1", "mnt"]);
    assert_eq!(std::fs::read(world.path("mnt/app/A")).unwrap(), program);
    world.ok(&["umount", "mnt"]);
    for blob in std::fs::read_dir(world.path("cache/blobs")).unwrap() {
        let blob = blob.unwrap().path();
        let mut bytes = std::fs::read(&blob).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1; // padding, which nothing else would notice
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(&blob, bytes).unwrap();
    }
    let said = world.fails(1, &["mount", "A@v1", "mnt"]);
    assert!(said.contains("BLAKE3"), "{said}");
    world.ok(&["mount", "--verify", "never", "A@v1", "mnt"]);
    world.ok(&["umount", "mnt"]);
}

/// The ids of the world's mounts, and what is left of others.
fn mounts(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.path("runtime/mounts")).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name != "lock").collect()
}

/// `mica umount`, which must not take long.
fn umount(world: &World, points: &[&str]) -> String {
    let mut command = world.command("timeout");
    command.arg("20").arg(world.binary()).arg("umount").args(points);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

#[test]
fn copies_in_other_namespaces_keep_neither_the_mount_nor_its_upper() {
    let world = world_with_images();
    std::fs::create_dir(world.path("m")).unwrap();
    world.ok(&["mount", "--image", "base.xar", "--upper", "u", "m"]);
    std::fs::write(world.path("m/new"), "kept\n").unwrap();
    let mut other = world
        .command("unshare")
        .args(["-m", "--propagation", "private", "sleep", "100"])
        .spawn()
        .unwrap();
    let table = format!("/proc/{}/mountinfo", other.id());
    let copied = || std::fs::read_to_string(&table).is_ok_and(|text| text.contains("fuse.mica"));
    wait_for(copied);
    umount(&world, &["m"]);
    assert!(!world.path("m/etc").exists());
    // The upper is free, and has all that was written.
    let remounted =
        || world.run(&["mount", "--image", "base.xar", "--upper", "u", "m"]).code == Some(0);
    wait_for(remounted);
    assert_eq!(read(&world, "m/new"), "kept\n");
    assert_eq!(read(&world, "m/etc/a"), "base a\n");
    umount(&world, &["m"]);
    other.kill().unwrap();
    other.wait().unwrap();
    world.ends_clean();
}

#[test]
fn who_uses_a_mount_keeps_it_and_is_named() {
    let world = world_with_images();
    std::fs::create_dir(world.path("m")).unwrap();
    world.ok(&["mount", "--image", "base.xar", "m"]);
    let mut other = world
        .command("unshare")
        .args(["-m", "--propagation", "private", "/bin/sh", "-c"])
        .arg("exec 3< m/etc/a; mkdir at; mount --bind m/etc at; : > ready; exec sleep 100")
        .spawn()
        .unwrap();
    wait_for(|| world.path("ready").exists());
    let said = umount(&world, &["m"]);
    assert!(said.contains("in use") && said.contains(&format!("{} (sleep)", other.id())), "{said}");
    // It has it at a place of its own, and goes on to see it.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let seen = std::fs::read_to_string(format!(
        "/proc/{}/root{}/at/b",
        other.id(),
        world.dir.path().display()
    ));
    assert_eq!(seen.unwrap(), "base b\n");
    other.kill().unwrap();
    other.wait().unwrap();
    world.ends_clean();
    wait_for(|| mounts(&world).is_empty());
}

#[test]
fn several_mounts_on_one_folder_are_taken_down_one_after_the_other() {
    let world = world_with_images();
    std::fs::create_dir(world.path("m")).unwrap();
    for image in ["base.xar", "top.sqfs"] {
        world.ok(&["mount", "--image", image, "m"]);
    }
    assert_eq!(read(&world, "m/etc/a"), "top a\n");
    umount(&world, &["m"]);
    assert_eq!(read(&world, "m/etc/a"), "base a\n");
    world.ok(&["mount", "--image", "top.sqfs", "m"]);
    umount(&world, &["m", "m"]);
    assert!(mounts(&world).is_empty());
    world.ends_clean();
}

#[test]
fn a_mount_whose_server_was_killed_is_unmounted_by_its_name() {
    let world = world_with_images();
    std::fs::create_dir(world.path("m")).unwrap();
    for forgotten in [false, true] {
        world.ok(&["mount", "--image", "base.xar", "m"]);
        signal_server(&world, rustix::process::Signal::KILL);
        wait_for(|| std::fs::read_dir(world.path("m")).is_err());
        if forgotten {
            // Another namespace's mica has cleaned up its record.
            for id in mounts(&world) {
                std::fs::remove_dir_all(world.path("runtime/mounts").join(id)).unwrap();
            }
        }
        umount(&world, &["m"]);
        assert_eq!(std::fs::read_dir(world.path("m")).unwrap().count(), 0);
        assert!(mounts(&world).is_empty());
    }
    world.ends_clean();
}

#[test]
fn a_mount_of_another_namespace_is_taken_down_there() {
    let world = world_with_images();
    std::fs::create_dir(world.path("m")).unwrap();
    let line = format!(
        "{} mount --image base.xar m && : > ready && exec sleep 100",
        world.binary().display()
    );
    let mut other = world
        .command("unshare")
        .args(["-m", "--propagation", "private", "/bin/sh", "-c", &line])
        .spawn()
        .unwrap();
    wait_for(|| world.path("ready").exists());
    umount(&world, &["m"]);
    assert!(mounts(&world).is_empty());
    other.kill().unwrap();
    other.wait().unwrap();
    world.ends_clean();
}

#[test]
fn prune_leaves_the_package_of_a_mount() {
    need_fuse();
    let world = World::new(User::Me);
    // Large enough to have a chunk table.
    world.write("data/big", "");
    std::fs::write(world.path("data/big"), common::noise(3 << 20)).unwrap();
    let graph = r#"{"modules": [{"label": "//:m", "outputs": [{"path": "", "source": "data"}]}]}"#;
    world.write("graph.json", graph);
    world.ok(&["pack", "--graph", "graph.json", "--target", "//:m", "--version", "v1"]);
    std::fs::create_dir(world.path("m")).unwrap();
    world.ok(&["mount", "m@v1", "m"]);
    world.ok(&["prune", "-a", "-f"]);
    assert!(world.ok(&["images"]).stdout.contains("v1"));
    umount(&world, &["m"]);
    world.ok(&["mount", "--pull", "never", "m@v1", "m"]);
    umount(&world, &["m"]);
    world.ok(&["prune", "-a", "-f"]);
    world.fails(1, &["mount", "--pull", "never", "m@v1", "m"]);
    world.ends_clean();
}
