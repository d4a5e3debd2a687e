//! What a read-only mount shows, and how often the kernel has to ask.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::sync::Arc;

use mica_mounter::MountOptions;
use mica_squashfs::write::NodeKind;
use support::{Layer, Scratch, names, stack};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 * 31 % 251) as u8).collect()
}

#[test]
fn layers_merge_and_marks_hide() {
    let top = Layer::new().file("d/a", "top").whiteout("gone").file(".wh.oci", "").dir("cut");
    let top = top.file("cut/.wh..wh..opq", "").file("cut/new", "").file("was-dir", "file");
    let base = Layer::new().file("d/a", "base").file("d/b", "base").file("gone", "x");
    let base = base.file("oci", "x").file("cut/old", "x").file("was-dir/x", "x");
    let scratch = Scratch::new(stack([top.image(), base.image()]), false);
    assert_eq!(names(scratch.root()), ["cut", "d", "was-dir"]);
    assert_eq!(names(scratch.path("cut")), ["new"]);
    assert_eq!((scratch.read("d/a"), scratch.read("d/b")), ("top".into(), "base".into()));
    assert_eq!(scratch.read("was-dir"), "file");
    for hidden in ["gone", "oci", ".wh.oci", "cut/old", "cut/.wh..wh..opq", "was-dir/x"] {
        assert!(fs::symlink_metadata(scratch.path(hidden)).is_err(), "{hidden}");
    }
}

#[test]
fn attributes_are_those_of_the_image() {
    let layer = Layer::new()
        .add("s", 0o4755, NodeKind::File(Box::new(pattern(5000))))
        .hard_link("t", "s")
        .symlink("l", "s")
        .add("fifo", 0o600, NodeKind::Fifo)
        .add("null", 0o666, NodeKind::CharDevice(0x103))
        .owner("s", 12, 34)
        .xattr("s", "user.note", "hello")
        .xattr("s", "trusted.overlay.opaque", "y");
    let scratch = Scratch::new(stack([layer.image()]), false);
    let s = fs::metadata(scratch.path("s")).unwrap();
    assert_eq!((s.mode() & 0o7777, s.uid(), s.gid(), s.nlink()), (0o4755, 12, 34, 2));
    assert_eq!((s.len(), s.mtime(), s.blocks()), (5000, 1_000_000_000, 10));
    assert_eq!(fs::metadata(scratch.path("t")).unwrap().ino(), s.ino());
    assert_eq!(fs::read_link(scratch.path("l")).unwrap().to_str(), Some("s"));
    assert!(fs::metadata(scratch.path("fifo")).unwrap().file_type().is_fifo());
    let null = fs::metadata(scratch.path("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(fs::metadata(scratch.root()).unwrap().permissions().mode() & 0o7777, 0o755);
    let mut list = [0; 100];
    let len = rustix::fs::listxattr(scratch.path("s"), &mut list).unwrap();
    assert_eq!(&list[..len], b"user.note\0", "the overlay's own marks are not shown");
    let mut value = [0; 10];
    assert_eq!(rustix::fs::getxattr(scratch.path("s"), "user.note", &mut value), Ok(5));
    assert_eq!(
        fs::write(scratch.path("s"), "x").unwrap_err().kind(),
        ErrorKind::ReadOnlyFilesystem
    );
}

#[test]
fn content_is_read_at_any_position() {
    use std::os::unix::fs::FileExt;
    let big = pattern(700_001);
    let mut holes = vec![0; 600_000];
    holes[300_000..300_100].copy_from_slice(&[9; 100]);
    let layer =
        Layer::new().file("big", big.clone()).file("holes", holes.clone()).file("empty", "");
    let scratch = Scratch::new(stack([layer.image()]), false);
    assert_eq!(fs::read(scratch.path("big")).unwrap(), big);
    assert_eq!(fs::read(scratch.path("holes")).unwrap(), holes);
    assert_eq!(fs::read(scratch.path("empty")).unwrap(), b"");
    let file = fs::File::open(scratch.path("big")).unwrap();
    for (offset, len) in [(0, 1), (131_071, 2), (262_143, 200_000), (700_000, 1), (700_001, 0)] {
        let mut buffer = vec![0; len + 10];
        let read = file.read_at(&mut buffer, offset).unwrap();
        let want = &big[offset as usize..(offset as usize + len + 10).min(big.len())];
        assert_eq!(&buffer[..read], want, "at {offset}");
    }
    let data = rustix::fs::seek(
        fs::File::open(scratch.path("holes")).unwrap(),
        rustix::fs::SeekFrom::Data(0),
    );
    assert!(data.unwrap() <= 300_000);
}

#[test]
fn what_the_kernel_knows_it_does_not_ask_again() {
    let layer = Layer::new().file("d/f", "content").symlink("d/l", "f");
    let base = Layer::new().file("d/g", "content");
    let scratch = Scratch::new(stack([layer.image(), base.image()]), false);
    let touch = || {
        fs::metadata(scratch.path("d/f")).unwrap();
        fs::metadata(scratch.path("d/missing")).unwrap_err();
        fs::read_link(scratch.path("d/l")).unwrap();
        fs::read(scratch.path("d/f")).unwrap();
        names(scratch.path("d"));
    };
    touch();
    // The kernel counts a first stat for each directory after it has the entry; then it is silent.
    touch();
    let before = scratch.mount.as_ref().unwrap().stats();
    touch();
    let after = scratch.mount.as_ref().unwrap().stats();
    assert_eq!(before.requests, after.requests);
}

#[test]
fn a_missing_name_costs_one_request_however_many_layers() {
    for layers in [1, 16] {
        let images = (0..layers).map(|i| Layer::new().file(&format!("d/f{i}"), "").image());
        let scratch = Scratch::new(stack(images), false);
        fs::metadata(scratch.path("d/f0")).unwrap();
        let before = scratch.requests("lookup");
        for _ in 0..10 {
            fs::metadata(scratch.path("d/missing")).unwrap_err();
        }
        assert_eq!(scratch.requests("lookup") - before, 1);
        assert_eq!(names(scratch.path("d")).len(), layers);
    }
}

#[test]
fn names_of_any_bytes_and_large_directories() {
    use std::os::unix::ffi::OsStrExt;
    let mut layer = Layer::new();
    for i in 0..3000 {
        layer = layer.file(&format!("many/{i:05}-{}", "x".repeat(i % 200)), i.to_string());
    }
    let image = layer.image();
    let scratch = Scratch::new(stack([image]), false);
    let names = names(scratch.path("many"));
    assert_eq!(names.len(), 3000);
    for name in names.iter().step_by(97) {
        let number: usize = name.split('-').next().unwrap().parse().unwrap();
        assert_eq!(scratch.read(&format!("many/{name}")), number.to_string());
    }
    let long = std::ffi::OsStr::from_bytes(&[b'n'; 256]);
    let error = fs::metadata(scratch.root().join(long)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidFilename);
}

#[test]
fn counters_are_told_to_whoever_asks_by_a_path() {
    use mica_mounter::Stats;
    for writable in [false, true] {
        let scratch = Scratch::new(stack([Layer::new().file("d/f", "x").image()]), writable);
        fs::metadata(scratch.path("d/missing")).unwrap_err();
        let stats = Stats::of(&scratch.path("d")).unwrap().unwrap();
        assert!(stats.requests_of("lookup") >= 2, "{stats:?}");
        assert_eq!(Stats::of(&scratch.path("d/f")).unwrap().unwrap().nodes, stats.nodes + 1);
        assert_eq!(Stats::of(scratch.dir.path()).unwrap(), None);
    }
}

#[test]
fn a_recorded_trace_is_read_ahead_and_that_of_other_images_does_no_harm() {
    use mica_mounter::{MountOptions, Trace, mount};
    let files = Layer::new().file("d/a", pattern(700_000)).file("b", pattern(300)).file("c", "c");
    let other = Layer::new().dir("x").file("y", pattern(400_000)).symlink("z", "y").image();
    let image = files.image();
    let dir = tempfile::tempdir().unwrap();
    let mounted =
        |options: MountOptions, image| mount(stack([image]), dir.path(), &options).unwrap();
    let record = MountOptions { record_trace: true, ..MountOptions::default() };
    let recording = mounted(record, Arc::clone(&image));
    fs::read(dir.path().join("c")).unwrap();
    fs::read(dir.path().join("d/a")).unwrap();
    let trace = recording.trace().unwrap();
    assert_eq!(trace.len(), 7, "one block of c, six of d/a");
    assert_eq!(Trace::parse(&trace.to_text()), Some(trace.clone()));
    recording.unmount().unwrap();
    let following =
        || MountOptions { trace: Some(Arc::new(trace.clone())), ..MountOptions::default() };
    let ahead = mounted(following(), image);
    assert_eq!(fs::read(dir.path().join("d/a")).unwrap(), pattern(700_000));
    assert_eq!(ahead.trace(), None);
    ahead.unmount().unwrap();
    let wrong = mounted(following(), other);
    assert_eq!(fs::read(dir.path().join("y")).unwrap(), pattern(400_000));
    wrong.unmount().unwrap();
}

/// Files of one directory: small ones of many sizes, larger ones, holes, links, and what another layer hides or replaces.
fn library() -> (Vec<Layer>, Vec<(String, Vec<u8>)>) {
    let content = |i: usize| pattern(i * 7919 % 9000).into_iter().map(|b| b ^ i as u8).collect();
    let mut files: Vec<(String, Vec<u8>)> =
        (0..400).map(|i| (format!("lib/m{i:03}.py"), content(i))).collect();
    files[100].1 = pattern(40_000);
    files[101].1 = vec![0; 50_000];
    files[150].1 = pattern(300_001);
    files[151].1 = pattern(131_072);
    files[152].1 = pattern(4096);
    let base =
        files.iter().fold(Layer::new(), |layer, (path, content)| layer.file(path, content.clone()));
    let base = base.symlink("lib/m200-link", "m200.py").hard_link("lib/m201-too", "lib/m201.py");
    let top = Layer::new().file("lib/m300.py", "another").whiteout("lib/m301.py");
    files.remove(301);
    files[300].1 = b"another".into();
    (vec![top, base], files)
}

#[test]
fn who_reads_a_directory_finds_the_next_files_in_the_page_cache() {
    let (layers, files) = library();
    let reads = |push: bool| {
        let mut scratch = Scratch::new(stack([]), true);
        scratch.unmount();
        let images = layers.iter().map(Layer::image);
        scratch.mount_with(stack(images), &MountOptions { push, ..MountOptions::default() });
        assert_eq!(names(scratch.path("lib")).len(), files.len() + 2);
        for (path, content) in &files {
            assert_eq!(&fs::read(scratch.path(path)).unwrap(), content, "{path}");
        }
        scratch.requests("read")
    };
    let (without, with) = (reads(false), reads(true));
    assert!(without >= files.len() as u64 && with * 5 < without, "{with} instead of {without}");
}

#[test]
fn who_reads_directory_after_directory_finds_their_first_files_too() {
    let dirs = 0..200_usize;
    let content = |dir, file| format!("{file} of {dir}, ").repeat(300 + dir);
    let layer = dirs.clone().fold(Layer::new(), |layer, dir| {
        (0..3)
            .fold(layer, |layer, file| layer.file(&format!("d{dir:03}/{file}"), content(dir, file)))
    });
    let scratch = Scratch::new(stack([layer.image()]), false);
    for dir in dirs.clone() {
        assert_eq!(names(scratch.path(&format!("d{dir:03}"))).len(), 3);
        for file in 0..3 {
            assert_eq!(scratch.read(&format!("d{dir:03}/{file}")), content(dir, file));
        }
    }
    let reads = scratch.requests("read");
    assert!(reads < dirs.len() as u64 / 2, "{reads} reads of {} directories", dirs.len());
}

#[test]
fn many_readers_at_once_get_what_is_in_the_files() {
    let (layers, files) = library();
    let scratch = Scratch::new(stack(layers.iter().map(Layer::image)), false);
    names(scratch.path("lib"));
    std::thread::scope(|scope| {
        for reader in 0..8_usize {
            let (root, files) = (scratch.root(), &files);
            scope.spawn(move || {
                for round in 0..12 {
                    for i in 0..files.len() {
                        // Forwards, backwards, and in strides that have no factor in common with the number of files.
                        let stride = [1, files.len() - 1, 8, 37][(reader + round) % 4];
                        let (path, content) = &files[(i * stride + reader * 50) % files.len()];
                        let file = fs::File::open(root.join(path)).unwrap();
                        let mut found = Vec::new();
                        std::io::Read::read_to_end(&mut &file, &mut found).unwrap();
                        assert_eq!(&found, content, "{path}");
                        // So that others have to read it again.
                        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                    }
                }
            });
        }
    });
    assert!(scratch.requests("read") > files.len() as u64);
}
