//! Single images, those of other tools above all, as root and as an ordinary user.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;
#[path = "../../squashfs/tests/common/crafted.rs"]
mod crafted;

use std::process::Command;

use common::{USERS, User, World};

/// An image by mksquashfs with devices, owners, a setuid program and a hard link, which needs no root to make.
fn foreign(user: User) -> World {
    let world = World::new(user);
    world.write("tree/dir/hello", "hello\n");
    world.write("tree/dir/text", &"a line of text\n".repeat(30_000));
    world.write("tree/su", "#!/bin/sh\n");
    std::fs::hard_link(world.path("tree/dir/hello"), world.path("tree/twin")).unwrap();
    std::os::unix::fs::symlink("dir/hello", world.path("tree/link")).unwrap();
    let script = "mksquashfs tree a.sqfs -quiet -no-progress -comp gzip -Xcompression-level 1 \
                  -all-time 1000000000 -all-root -mkfs-time 0 \
                  -p 'null c 666 0 0 1 3' -p 'su m 4755 0 0' \
                  && head -c 8192 /dev/zero > b.bin && cat a.sqfs >> b.bin";
    let mut command = world.command("sh");
    let done = command.args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "mksquashfs: {}", String::from_utf8_lossy(&done.stderr));
    world
}

#[test]
fn a_foreign_image_is_listed_shown_and_printed() {
    let world = foreign(User::Ordinary);
    let listed = world.ok(&["image", "ls", "-l", "a.sqfs"]).stdout;
    let lines: Vec<String> =
        listed.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for (start, end) in [
        ("crw-rw-rw- 1 0:0 1, 3 ", "/null"),
        ("-rwsr-xr-x 1 0:0 10 ", "/su"),
        ("lrwxrwxrwx 1 0:0 9 2001-09-09T01:46:40Z ", "/link -> dir/hello"),
        ("-rw-", " 2 0:0 6 2001-09-09T01:46:40Z /dir/hello"),
    ] {
        let found = lines.iter().any(|line| line.starts_with(start) && line.ends_with(end));
        assert!(found, "{start}…{end} is not in {lines:#?}");
    }

    let json = world.ok(&["image", "ls", "--json", "a.sqfs", "dir"]).stdout;
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let paths: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["path"].clone()).collect();
    assert_eq!(paths, ["/dir", "/dir/hello", "/dir/text"]);
    assert_eq!((&rows[1]["size"], &rows[1]["links"]), (&6.into(), &2.into()));

    assert_eq!(
        world.ok(&["image", "cat", "a.sqfs", "twin", "/dir/hello"]).stdout,
        "hello\nhello\n"
    );
    let said = world.fails(1, &["image", "cat", "a.sqfs", "dir/none"]);
    assert!(said.contains("there is no dir/none in the image"), "{said}");
    let said = world.fails(1, &["image", "cat", "a.sqfs", "dir"]);
    assert!(said.contains("dir is not a regular file"), "{said}");

    let info = world.ok(&["image", "info", "a.sqfs"]).stdout;
    assert!(info.contains("gzip (level 1, window 15), blocks of 128"), "{info}");
}

#[test]
fn an_image_inside_another_file_is_found_by_its_offset() {
    let world = foreign(User::Ordinary);
    let said = world.fails(1, &["image", "ls", "b.bin"]);
    assert!(said.contains("cannot open image b.bin"), "{said}");
    assert!(said.contains("no squashfs file system at byte 0"), "{said}");
    let at = ["image", "cat", "--offset", "8192", "b.bin", "twin"];
    assert_eq!(world.ok(&at).stdout, "hello\n");
    world.ok(&["image", "verify", "--offset", "8192", "b.bin"]);
}

#[test]
fn unpacking_restores_what_the_user_may_and_names_the_rest() {
    for user in USERS {
        let world = foreign(user);
        let ran = world.ok(&["image", "unpack", "--preserve", "a.sqfs", "out"]);
        assert_eq!(std::fs::read_to_string(world.path("out/twin")).unwrap(), "hello\n");
        use std::os::unix::fs::MetadataExt;
        let su = std::fs::metadata(world.path("out/su")).unwrap();
        let twin = std::fs::metadata(world.path("out/twin")).unwrap();
        assert_eq!((twin.nlink(), twin.mtime()), (2, 1_000_000_000));
        if user == User::Me && rustix::process::geteuid().is_root() {
            assert_eq!((su.uid(), su.gid(), su.mode() & 0o7777), (0, 0, 0o4755));
            assert!(world.path("out/null").exists());
            assert!(!ran.stderr.contains("not restored"), "{ran:?}");
        } else {
            assert_eq!(su.mode() & 0o7777, 0o755);
            for lost in [
                "not restored: device node of /null",
                "not restored: setuid and setgid bits of /su",
                "not restored: the owners of ",
            ] {
                assert!(ran.stderr.contains(lost), "{lost} is not in {ran:?}");
            }
        }
    }
}

#[test]
fn damage_is_named_with_file_and_block() {
    let world = foreign(User::Ordinary);
    let good = std::fs::read(world.path("a.sqfs")).unwrap();
    // Data starts behind the superblock and the options: the blocks of the only file that fills one.
    let mut bad = good.clone();
    bad[150..200].fill(0x55);
    std::fs::write(world.path("bad.sqfs"), &bad).unwrap();
    let ran = world.run(&["image", "verify", "bad.sqfs"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("/dir/text: block 0: cannot decode the block at"), "{ran:?}");
    assert!(ran.stderr.contains("1 place is damaged"), "{ran:?}");

    std::fs::write(world.path("cut.sqfs"), &good[..good.len() / 2]).unwrap();
    let said = world.fails(1, &["image", "verify", "cut.sqfs"]);
    assert!(said.contains("cannot open image cut.sqfs"), "{said}");
    assert!(said.contains("bytes, the image needs"), "{said}");

    let mut old = good;
    old[28] = 3;
    std::fs::write(world.path("old.sqfs"), &old).unwrap();
    let said = world.fails(1, &["image", "ls", "old.sqfs"]);
    assert!(said.contains("squashfs version 3.0 instead of 4.0"), "{said}");
}

#[test]
fn a_shell_refuses_our_image_politely() {
    let world = World::new(User::Ordinary);
    world.write("tree/file", "x");
    world.ok(&["image", "pack", "tree", "-o", "app.xar", "--xar-target", "file"]);
    let ran = Command::new("sh").arg(world.path("app.xar")).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert_eq!(ran.stdout, b"This XAR file should not be executed by sh\n");
}

#[test]
fn commands_end_at_images_whose_directories_lead_back_into_themselves() {
    let world = World::new(User::Ordinary);
    world.write("plain/file", "x");
    world.ok(&["image", "pack", "plain", "-o", "plain.sqfs"]);
    let parents = crafted::Parents::Unknown;
    for (name, image) in [
        ("cycle", crafted::cycle(parents)),
        ("levels", crafted::levels(parents)),
        ("wide", crafted::wide(parents)),
        ("shared", crafted::shared_listing(2000, 2000)),
    ] {
        let file = format!("{name}.sqfs");
        std::fs::write(world.path(&file), image).unwrap();
        for args in [
            vec!["image", "ls", &file],
            vec!["image", "ls", "-l", &file, "/"],
            vec!["image", "verify", &file],
            vec!["image", "unpack", &file, "out"],
            vec!["image", "to-tar", &file, "-o", "out.tar"],
            vec!["image", "delta", "plain.sqfs", &file],
        ] {
            let begun = std::time::Instant::now();
            // `timeout` would end a command that doesn't end, with 124.
            let mut command = world.command("timeout");
            let mica = env!("CARGO_BIN_EXE_mica");
            let done = command.args(["20", mica]).args(&args).output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert_ne!(done.status.code(), Some(124), "{args:?} did not end");
            assert_eq!(done.status.code(), Some(1), "{args:?} after {:?}: {said}", begun.elapsed());
            let _ = std::fs::remove_dir_all(world.path("out"));
        }
    }
}
