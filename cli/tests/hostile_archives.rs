//! Archives and images that want more than to be unpacked: on the node, and of whoever unpacks them.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{USERS, User, World};

/// Runs a script of Python's in a world's folder, where `m` is what faults of archives are made with.
fn python(world: &World, script: &str) {
    let made = Command::new("python3")
        .args(["-c", &format!("import io, os, tarfile\n{script}")])
        .current_dir(world.dir.path())
        .status();
    assert!(made.expect("this test needs python3").success());
    world.hand_over();
}

/// Makes `t.tar` of members given as `name, kind, link, content, headers`.
fn tar(world: &World, members: &str) {
    python(
        world,
        &format!(
            "t = tarfile.open('t.tar', 'w', format=tarfile.PAX_FORMAT)\n\
             R, D, S, L, F, C, B = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)\n\
             def add(name, kind=R, link='', content=b'', mode=0o644, pax={{}}, uid=0):\n\
             \x20   i = tarfile.TarInfo(name); i.type = kind; i.linkname = link; i.size = len(content)\n\
             \x20   i.mode = mode; i.pax_headers = pax; i.uid = i.gid = uid; i.devmajor, i.devminor = 1, 3\n\
             \x20   t.addfile(i, io.BytesIO(content))\n\
             {members}\nt.close()\n"
        ),
    );
}

/// Runs `mica` with a deadline; a hang is a failure.
#[track_caller]
fn within(world: &World, words: &[&str], seconds: u64) -> common::Ran {
    let mut child =
        world.mica(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(seconds) {
            child.kill().unwrap();
            panic!("mica {words:?} takes more than {seconds} s");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap().into()
}

fn import(world: &World, source: &str) -> common::Ran {
    within(world, &["import", "-q", source, "--name", "t", "--version", "1", "--replace"], 60)
}

/// Nothing of an import is left in the folders of this world.
fn left(world: &World) -> Vec<String> {
    let found = |dir: &str| -> Vec<String> {
        let names = std::fs::read_dir(world.path(dir)).map(|entries| {
            entries.map(|entry| format!("{dir}/{}", entry.unwrap().file_name().display())).collect()
        });
        names.unwrap_or_default()
    };
    let mut left = found("state/tmp");
    left.retain(|name| !name.ends_with("/lock"));
    left.extend(found(".").into_iter().filter(|name| name.contains(".tmp")));
    left
}

#[test]
fn documents_that_are_no_files_are_refused_or_taken_for_what_they_are() {
    for user in USERS {
        let world = World::new(user);
        for (members, said) in [
            ("add('manifest.json', S, '/dev/zero')", None),
            ("add('manifest.json', F)", None),
            ("add('oci-layout'); add('index.json', S, '/dev/zero')", Some("index.json")),
            ("add('oci-layout'); add('index.json', F)", Some("index.json")),
            (
                "add('oci-layout'); add('index.json', content=b'{\"manifests\":[]}' + b' ' * (3 << 20))",
                Some("index.json has more than"),
            ),
        ] {
            tar(&world, members);
            let ran = import(&world, "t.tar");
            match said {
                // A tree with such a file is a tree.
                None => assert_eq!(ran.code, Some(0), "{user:?} {members}: {ran:?}"),
                Some(said) => {
                    assert_eq!(ran.code, Some(1), "{user:?} {members}: {ran:?}");
                    assert!(ran.stderr.contains(said), "{ran:?}");
                }
            }
            assert_eq!(left(&world), Vec::<String>::new(), "{members}");
        }
    }
}

#[test]
fn what_no_archive_needs_is_refused() {
    let world = World::new(User::Ordinary);
    for (members, said) in [
        // Long headers.
        ("add('f', pax={'comment': 'x' * (2 << 20)})", "a header that is too long"),
        // Sizes that are none, or of no disk.
        ("add('f', pax={'size': '-1'})", "a size that is none"),
        ("add('f', pax={'size': str(1 << 60)})", "a file that is too large"),
        // Names.
        ("add('../f')", "leads out of it"),
        ("add('a/../../f')", "leads out of it"),
        ("add('..', D)", "leads out of it"),
        ("add('f', pax={'path': 'a\\0b'})", "a"),
        ("add('l', S, '..'); add('l/f')", "l"),
        ("add('l', S, '/etc'); add('l/f', D)", "l/f"),
        ("add('l', S, '/etc'); add('l/f', F)", "l/f"),
        ("add('h', L, '/etc/passwd')", "h"),
        ("add('h', L, '../out')", "h"),
    ] {
        world.write("out", "theirs");
        tar(&world, members);
        let ran = import(&world, "t.tar");
        assert_eq!(ran.code, Some(1), "{members}: {ran:?}");
        assert!(ran.stderr.contains(said), "{members}: {ran:?}");
        assert_eq!(std::fs::read(world.path("out")).unwrap(), b"theirs");
        assert!(!Path::new("/etc/f").exists());
        assert_eq!(left(&world), Vec::<String>::new(), "{members}");
    }
    // Deep folders: as deep as the system takes them.
    tar(
        &world,
        "add('/'.join(['d'] * 500), D, mode=0o755); add('/'.join(['d'] * 1000) + '/f', content=b'1')",
    );
    let ran = import(&world, "t.tar");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    tar(&world, "add('/'.join(['d'] * 100000) + '/f', content=b'1')");
    assert_eq!(import(&world, "t.tar").code, Some(1));
    // Of a file that is there twice, and was a folder in between, the last counts.
    tar(
        &world,
        "add('f', content=b'1'); add('f', content=b'2'); add('d', D, mode=0o500); add('d/x'); add('d', D, mode=0o700)",
    );
    let ran = within(&world, &["import", "-q", "t.tar", "--name", "u", "--version", "1"], 60);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    world.ok(&["export", "u@1", "--format", "dir", "-o", "u"]);
    assert_eq!(std::fs::read(world.path("u/f")).unwrap(), b"2");
    assert_eq!(std::fs::metadata(world.path("u/d")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn decompressing_takes_bounded_memory() {
    let world = World::new(User::Ordinary);
    // A window of gigabytes: what is asked of memory before the first byte is there.
    python(
        &world,
        "open('t.tar.zst', 'wb').write(bytes([0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 1, 0, 0]))\n",
    );
    let ran = within(&world, &["import", "-q", "t.tar.zst", "--name", "t", "--version", "1"], 60);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    python(
        &world,
        "import lzma\n\
         filters = [{'id': lzma.FILTER_LZMA2, 'preset': 0, 'dict_size': 1 << 29}]\n\
         open('t.tar.xz', 'wb').write(lzma.compress(b'x' * 10240, filters=filters))\n",
    );
    let ran = within(&world, &["import", "-q", "t.tar.xz", "--name", "t", "--version", "1"], 60);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("memory"), "{ran:?}");
}

#[test]
fn an_import_that_was_killed_leaves_nothing_to_the_next() {
    let world = World::new(User::Ordinary);
    let mut child = world
        .mica(&["import", "-q", "-", "--name", "t", "--version", "1"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // It waits for the rest of the archive, with a folder of its own.
    common::wait_for(|| !left(&world).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(left(&world).len(), 1);
    tar(&world, "add('f', content=b'1')");
    assert_eq!(import(&world, "t.tar").code, Some(0));
    assert_eq!(left(&world), Vec::<String>::new());
}

/// What gives rights to whoever reaches it.
fn rights(world: &World) {
    tar(
        world,
        "add('s', content=b'1', mode=0o6755, uid=12)\n\
         add('d', D, mode=0o2777)\n\
         add('dev', C, mode=0o666); add('dev2', L, 'dev'); add('disk', B, mode=0o666)\n\
         add('cap', content=b'1', mode=0o755, pax={'SCHILY.xattr.security.capability': '\\x01\\0\\0\\x02\\0\\x04' + '\\0' * 14, 'SCHILY.xattr.user.note': 'kept'})",
    );
    world.ok(&["import", "-q", "t.tar", "--name", "r", "--version", "1", "--no-root"]);
}

#[test]
fn an_ordinary_folder_holds_nothing_that_gives_rights() {
    for user in USERS {
        let world = World::new(user);
        rights(&world);
        let said = world.ok(&["export", "r@1", "--format", "dir", "-o", "plain"]).stderr;
        let manifest: serde_json::Value =
            serde_json::from_str(&world.ok(&["inspect", "r@1"]).stdout).unwrap();
        let digest = manifest["manifest"]["layers"][0]["digest"].as_str().unwrap().to_owned();
        let image = world.path("cache/blobs").join(digest.rsplit(':').next().unwrap());
        let image = image.to_str().unwrap();
        let unpacked = world.ok(&["image", "unpack", image, "unpacked"]).stderr;
        let me = std::fs::metadata(world.path("plain")).unwrap().uid();
        for folder in ["plain", "unpacked"] {
            for name in ["s", "d", "cap"] {
                let meta = std::fs::symlink_metadata(world.path(folder).join(name)).unwrap();
                assert_eq!(meta.mode() & 0o6000, 0, "{user:?} {folder}/{name}");
                assert_eq!(meta.uid(), me, "{user:?} {folder}/{name}");
            }
            for name in ["dev", "dev2", "disk"] {
                let there = world.path(folder).join(name).symlink_metadata();
                assert!(there.is_err(), "{user:?} {folder}/{name}: {there:?}");
            }
            let caps = Command::new("getcap").arg(world.path(folder).join("cap")).output();
            if let Ok(caps) = caps {
                assert!(caps.stdout.is_empty(), "{user:?} {folder}: {caps:?}");
            }
        }
        if user == User::Me && me == 0 {
            for word in ["set-user-id", "device", "attributes", "--preserve"] {
                assert!(said.contains(word), "{word}: {said}");
            }
            assert!(unpacked.contains("setuid") && unpacked.contains("--preserve"), "{unpacked}");
            world.ok(&["export", "r@1", "--format", "dir", "--preserve", "-o", "all"]);
            world.ok(&["image", "unpack", "--preserve", image, "all2"]);
            for folder in ["all", "all2"] {
                let mode = |name: &str| {
                    let path = world.path(folder).join(name);
                    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
                };
                assert_eq!((mode(""), mode("s"), mode("d")), (0o700, 0o6755, 0o2777), "{folder}");
                let dev = std::fs::symlink_metadata(world.path(folder).join("dev")).unwrap();
                assert!(dev.file_type().is_char_device());
                assert_eq!(std::fs::metadata(world.path(folder).join("s")).unwrap().uid(), 12);
            }
        }
    }
}
