//! What packing promises: same content, same bytes; failures leave nothing; earlier images save
//! work and change nothing.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mica_graph::Label;
use mica_packer::{
    ConflictError, Output, PackError, PackOptions, ScanCache, ScanOptions, check_conflicts,
    chunks_path, index_path, inputs_digest, pack_dir, pack_layer, pack_scan, scan_dir,
    scan_outputs,
};
use mica_squashfs::chunks::ChunkTable;
use mica_squashfs::codec::Compression;
use mica_squashfs::{Image, OpenOptions};

fn text(seed: usize, length: usize) -> Vec<u8> {
    let words = [&b"let "[..], b"mut ", b"x = ", b"self.", b"y();\n", b"if a ", b"{ b }\n", b"// "];
    let mut state = seed as u64 + 1;
    let mut bytes = Vec::new();
    while bytes.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(words[(state >> 60) as usize % 8]);
        bytes.push(b'a' + (state >> 40) as u8 % 26);
    }
    bytes.truncate(length);
    bytes
}

/// Files in an order that does not matter.
fn make(root: &Path, order: impl Iterator<Item = usize>) {
    for i in order {
        let dir = root.join(format!("dir{}", i % 7));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file{i}")), text(i % 90, 40 + i * 97 % 9000)).unwrap();
        if i % 50 == 0 {
            fs::write(dir.join(format!("large{i}")), text(i, 300_000 + i * 1000)).unwrap();
        }
    }
    for dir in fs::read_dir(root).unwrap() {
        fs::set_permissions(dir.unwrap().path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
}

struct Scene {
    scratch: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { scratch: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn tree(&self, name: &str, order: impl Iterator<Item = usize>) -> PathBuf {
        let tree = self.path(name);
        fs::create_dir(&tree).unwrap();
        make(&tree, order);
        tree
    }
}

#[test]
fn same_content_gives_the_same_bytes() {
    let scene = Scene::new();
    let first = scene.tree("first", 0..400);
    let second = scene.tree("second", (0..400).rev());
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::File::open(second.join("dir0/file0")).unwrap().set_modified(old).unwrap();
    for compression in [Compression::Zstd, Compression::Gzip, Compression::Lz4, Compression::Xz] {
        let pack = |dir: &Path, jobs| {
            let options = PackOptions { compression, jobs: Some(jobs), ..PackOptions::default() };
            pack_dir(dir, &scene.path("image"), &options).unwrap().digest
        };
        let digest = pack(&first, 1);
        assert_eq!(pack(&first, 2), digest, "{compression}");
        assert_eq!(pack(&second, 7), digest, "{compression}");
    }
}

#[test]
fn chunks_cover_the_image_and_a_small_change_leaves_most_of_them() {
    let scene = Scene::new();
    let tree = scene.tree("tree", 0..3000);
    let (old, new) = (scene.path("old"), scene.path("new"));
    pack_dir(&tree, &old, &PackOptions::default()).unwrap();
    let file = tree.join("dir3/file1501");
    let mut bytes = fs::read(&file).unwrap();
    bytes.splice(70..70, *b"# one line more\n");
    fs::write(&file, bytes).unwrap();
    let packed = pack_dir(&tree, &new, &PackOptions::default()).unwrap();
    let read = |image: &Path| {
        let table = ChunkTable::parse(&fs::read(chunks_path(image)).unwrap()).unwrap();
        let bytes = fs::read(image).unwrap();
        assert_eq!(table.image_len(), bytes.len() as u64);
        for chunk in table.chunks() {
            assert!(chunk.matches(&bytes[chunk.offset as usize..chunk.end() as usize]));
        }
        table
    };
    let (before, after) = (read(&old), read(&new));
    assert_eq!(after, packed.chunks);
    let known: Vec<_> = before.chunks().iter().map(|chunk| chunk.digest).collect();
    let changed = after.chunks().iter().filter(|chunk| !known.contains(&chunk.digest));
    let shipped: u64 = changed.map(|chunk| u64::from(chunk.length)).sum();
    // The block with the file, the chunk around it, header, superblock and a part of the tables.
    assert!(shipped < 450_000 && shipped * 3 < packed.size, "{shipped} of {}", packed.size);
}

#[test]
fn an_earlier_image_changes_nothing_but_the_time() {
    let scene = Scene::new();
    let tree = scene.tree("tree", 0..600);
    let (old, full, image) = (scene.path("old"), scene.path("full"), scene.path("image"));
    let indexed = PackOptions { index: true, ..PackOptions::default() };
    pack_dir(&tree, &old, &indexed).unwrap();
    fs::write(tree.join("dir1/file8"), b"changed").unwrap();
    let want = pack_dir(&tree, &full, &PackOptions::default()).unwrap();
    let again = PackOptions { previous: Some(old.clone()), ..indexed };
    let with_index = pack_dir(&tree, &image, &again).unwrap();
    assert_eq!(with_index.digest, want.digest);
    assert!(with_index.reused > 10, "{}", with_index.reused);

    fs::remove_file(index_path(&old)).unwrap();
    let without = pack_dir(&tree, &image, &again).unwrap();
    assert_eq!((without.digest, without.reused), (want.digest, with_index.reused));

    // Packed in another way: of no use, and no harm.
    let other = PackOptions { level: Some(5), ..again.clone() };
    assert_eq!(pack_dir(&tree, &image, &other).unwrap().reused, 0);

    // A damaged image with a good index: its blocks are compressed again.
    pack_dir(&tree, &old, &PackOptions { index: true, ..PackOptions::default() }).unwrap();
    let mut bytes = fs::read(&old).unwrap();
    bytes[5000..100_000].fill(0x55);
    fs::write(&old, bytes).unwrap();
    assert_eq!(pack_dir(&tree, &image, &again).unwrap().digest, want.digest);
    fs::write(&old, b"not an image").unwrap();
    assert_eq!(pack_dir(&tree, &image, &again).unwrap().digest, want.digest);
}

#[test]
fn a_file_that_changes_is_named_and_nothing_is_left() {
    let scene = Scene::new();
    for name in ["dir2/file2", "dir1/large50"] {
        let tree = scene.tree("tree", 0..100);
        let out = scene.path("out");
        fs::create_dir(&out).unwrap();
        let options = PackOptions::default();
        let scan = scan_dir(&tree, &options.scan()).unwrap();
        fs::write(tree.join(name), b"shorter").unwrap();
        let error = pack_scan(&scan, &out.join("image"), &options).unwrap_err();
        let PackError::Write { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.to_string(), format!("{name} changed while it was packed"));
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
        fs::remove_dir(&out).unwrap();
        fs::remove_dir_all(&tree).unwrap();
    }
}

#[test]
fn an_access_control_list_is_left_out_and_the_group_gains_nothing() {
    let scene = Scene::new();
    let tree = scene.tree("tree", 0..3);
    // user::rw-, user:1000:rw-, group::r--, mask::rw-, other::---: the mode alone would say 0660
    let entries = [
        (1, 6, u32::MAX),
        (2, 6, 1000),
        (4, 4, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend([u16::to_le_bytes(tag), u16::to_le_bytes(permissions)].concat());
        acl.extend(u32::to_le_bytes(id));
    }
    let file = tree.join("dir1/file1");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(&file, "system.posix_acl_access", &acl, flags)
        .expect("this test needs a file system with ACLs in the folder for temporary files");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o660);
    rustix::fs::lsetxattr(&file, "user.kept", b"value", flags).unwrap();
    let default = "system.posix_acl_default";
    rustix::fs::lsetxattr(tree.join("dir1"), default, &acl, flags).unwrap();
    let image = scene.path("image");
    let cache = scene.path("cache");
    for _ in 0..2 {
        // Also when the file is known from the time before.
        let options = PackOptions { scan_cache: Some(cache.clone()), ..PackOptions::default() };
        let packed = pack_dir(&tree, &image, &options).unwrap();
        let said: Vec<_> = packed.notices.iter().map(ToString::to_string).collect();
        let known = "access control list is left out, which squashfs cannot hold";
        let expected = [
            format!("dir1: the default {known}"),
            format!("dir1/file1: the {known}; owner, group and others keep what it gave them"),
        ];
        assert_eq!(said, expected);
    }
    let image = Image::open(&image, &OpenOptions::default()).unwrap();
    let inode = image.resolve(b"dir1/file1").unwrap().expect("it is there");
    assert_eq!(inode.mode & 0o777, 0o640);
    let names: Vec<_> = image.xattrs(&inode).unwrap().into_iter().map(|xattr| xattr.name).collect();
    assert_eq!(names, [b"user.kept"]);
}

#[test]
fn outputs_go_to_their_places() {
    let scene = Scene::new();
    let tree = scene.tree("tree", 0..30);
    fs::hard_link(tree.join("dir0/file0"), scene.path("loose")).unwrap();
    let output = |place: &str, source: PathBuf| Output { tree_path: place.into(), source };
    let outputs = [
        output("lib/pkg", tree.clone()),
        output("./bin//tool", scene.path("loose")),
        output("lib/pkg/dir1/extra", tree.join("dir2/file2")),
    ];
    let image = scene.path("image");
    let packed = pack_layer(&outputs, &image, &PackOptions::default()).unwrap();
    assert_eq!(packed.files, 32);
    let image = Image::open(&image, &OpenOptions::default()).unwrap();
    let inode = |path: &str| image.resolve(path.as_bytes()).unwrap().expect("it is there");
    assert_eq!(inode("bin/tool").number, inode("lib/pkg/dir0/file0").number);
    assert_eq!((inode("bin").mode, inode("lib/pkg/dir1/extra").nlink), (0o755, 1));
    for (place, source) in
        [("../out", "loose"), ("lib/pkg/dir0/file0", "loose"), ("bin/tool/x", "loose")]
    {
        let mut outputs = outputs.to_vec();
        outputs.push(output(place, scene.path(source)));
        assert!(scan_outputs(&outputs, &PackOptions::default().scan()).is_err(), "{place}");
    }
}

#[test]
fn the_digest_of_inputs_follows_what_shapes_the_image() {
    let scene = Scene::new();
    let tree = scene.tree("tree", 0..200);
    let options = PackOptions::default();
    let digest = |dir: &Path, options: &PackOptions| {
        inputs_digest(&scan_dir(dir, &options.scan()).unwrap(), options).unwrap()
    };
    let first = digest(&tree, &options);
    assert_eq!(digest(&scene.tree("copy", (0..200).rev()), &options), first);
    let other = PackOptions { level: Some(4), ..options.clone() };
    assert_ne!(digest(&tree, &other), first);
    assert_ne!(digest(&tree, &PackOptions { header: None, ..options.clone() }), first);
    assert_eq!(digest(&tree, &PackOptions { jobs: Some(1), ..options.clone() }), first);

    // Files older than the clock's grain are known again without being read.
    std::thread::sleep(Duration::from_millis(2100));
    let scan = scan_dir(&tree, &options.scan()).unwrap();
    assert_eq!(inputs_digest(&scan, &options).unwrap(), first);
    let cache = ScanCache::of(&scan);
    assert_eq!(cache.len() as u64, scan.files);
    cache.save(&scene.path("cache")).unwrap();
    let cached = || {
        let cache = Some(Arc::new(ScanCache::load(&scene.path("cache"))));
        scan_dir(&tree, &ScanOptions { cache, ..options.scan() }).unwrap()
    };
    let file = tree.join("dir5/file5");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let scan = cached();
    // The one that changed is read, and not remembered: it might change again and look the same.
    assert_eq!(ScanCache::of(&scan).len() as u64, scan.files - 1);
    let changed = inputs_digest(&scan, &options).unwrap();
    assert_ne!(changed, first);
    assert_eq!(changed, digest(&tree, &options));

    // What is damaged knows nothing.
    let good = fs::read(scene.path("cache")).unwrap();
    for at in [0, 20, 25, 60, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        fs::write(scene.path("cache"), &bad).unwrap();
        assert!(ScanCache::load(&scene.path("cache")).is_empty(), "{at}");
        fs::write(scene.path("cache"), &good[..at]).unwrap();
        assert!(ScanCache::load(&scene.path("cache")).is_empty(), "{at}");
    }
}

#[test]
fn different_files_at_one_path_are_a_conflict_of_two_modules() {
    let scene = Scene::new();
    let (a, b) = (scene.tree("a", 0..40), scene.tree("b", 20..60));
    let labels: [Label; 2] = ["//x:a".parse().unwrap(), "//x:b".parse().unwrap()];
    let check = || {
        let scans = [&a, &b].map(|dir| scan_dir(dir, &PackOptions::default().scan()).unwrap());
        let layers: Vec<_> = labels.iter().cloned().zip(&scans).collect();
        check_conflicts(&layers)
    };
    check().unwrap();
    fs::write(b.join("dir4/file25"), text(3, 40 + 25 * 97)).unwrap();
    match check().unwrap_err() {
        ConflictError::Differ { path, first, second } => {
            assert_eq!(path, Path::new("dir4/file25"));
            assert_eq!([first, second], labels);
        }
        other => panic!("{other}"),
    }
}
