//! An image unpacks to the tree it was made of, stays inside its target, and says what it could not restore.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use common::picture::{self, assert_same};
use common::{need_root, torture};
use mica_squashfs::delta::delta;
use mica_squashfs::unpack::{LostWhat, UnpackError, UnpackOptions, Unpacked, unpack};
use mica_squashfs::verify::verify;
use mica_squashfs::{Image, OpenOptions};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

fn mksquashfs(tree: &Path, out: &Path, options: &str) -> Image {
    common::mksquashfs(tree, out, options);
    Image::open(out, &OpenOptions::default()).unwrap()
}

#[test]
fn unpacks_everything_as_root() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    let image =
        mksquashfs(&tree, &scratch.path().join("image"), "-comp zstd -Xcompression-level 1");
    let target = scratch.path().join("target");
    let done = unpack(&image, &target, &UnpackOptions::default()).unwrap();
    assert_eq!((done.owners_lost, done.lost.len()), (0, 0));
    let want = picture::of_directory(&tree);
    assert_same(&want, &picture::of_directory(&target), "unpacked");
    assert_eq!(
        done.directories,
        want.values().filter(|n| n.mode & 0o170_000 == 0o040_000).count() as u64
    );
    let sparse = fs::metadata(target.join("contents/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", sparse.blocks());
    assert_eq!(fs::metadata(target.join("contents/hole")).unwrap().blocks(), 0);

    let again = unpack(&image, &target, &UnpackOptions::default());
    assert!(matches!(again, Err(UnpackError::NotEmpty { .. })));
    let nowhere = unpack(&image, Path::new("/no/such/place"), &UnpackOptions::default());
    assert!(matches!(nowhere, Err(UnpackError::Target { .. })));
}

/// Unpacks as `nobody`, on a thread of its own: threads have their own credentials, and hand them on to theirs.
fn unpack_as_nobody(image: &Image, target: &Path) -> Result<Unpacked, UnpackError> {
    need_root();
    std::thread::scope(|scope| {
        let body = scope.spawn(|| {
            let (uid, gid) = (rustix::fs::Uid::from_raw(65534), rustix::fs::Gid::from_raw(65534));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
            unpack(image, target, &UnpackOptions::default())
        });
        body.join().unwrap()
    })
}

#[test]
fn as_an_ordinary_user_says_what_it_could_not_restore() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    let image =
        mksquashfs(&tree, &scratch.path().join("image"), "-comp zstd -Xcompression-level 1");
    let home = scratch.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    std::os::unix::fs::chown(scratch.path(), Some(65534), Some(65534)).unwrap();
    let target = home.join("target");
    let done = unpack_as_nobody(&image, &target).unwrap();

    let want = picture::of_directory(&tree);
    let got = picture::of_directory(&target);
    let lost: Vec<String> = done
        .lost
        .iter()
        .map(|l| format!("{}: {}", String::from_utf8_lossy(&l.path), l.what))
        .collect();
    assert_eq!(
        lost,
        [
            "owners/file-0: setuid and setgid bits",
            "owners/file-1: setuid and setgid bits",
            "specials/big: device node",
            "specials/disk: device node",
            "specials/null: device node",
            "xattrs/capability: xattr security.capability",
            "xattrs/fifo: xattr trusted.on-a-fifo",
            "xattrs/link: xattr trusted.on-a-link",
            "xattrs/trusted: xattr trusted.overlay.opaque",
        ]
    );
    let devices = done.lost.iter().filter(|l| l.what == LostWhat::Device).count();
    assert_eq!(got.len() + devices, want.len());
    let files: std::collections::BTreeSet<_> = got.values().map(|node| &node.same_as).collect();
    assert_eq!(done.owners_lost, files.len() as u64);
    for (path, node) in &got {
        let want = &want[path];
        assert_eq!((&node.content, node.size, node.mtime), (&want.content, want.size, want.mtime));
        assert_eq!((node.uid, node.gid, &node.same_as), (65534, 65534, &want.same_as));
    }
}

/// Two entries of one name, a symlink that leads out and a directory: what is in the second must not go through the
/// first.
#[test]
fn nothing_escapes_through_a_symlink() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    let outside = scratch.path().join("outside");
    fs::create_dir_all(tree.join("name-b")).unwrap();
    fs::create_dir(&outside).unwrap();
    symlink(&outside, tree.join("name-a")).unwrap();
    fs::write(tree.join("name-b/planted"), b"!").unwrap();
    let path = scratch.path().join("image");
    mksquashfs(&tree, &path, "-noI");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|w| w == b"name-b").unwrap();
    bytes[at + 5] = b'a';
    let image = Image::from_source(Box::new(bytes), &OpenOptions::default()).unwrap();
    let result = unpack(&image, &scratch.path().join("target"), &UnpackOptions::default());
    assert!(matches!(result, Err(UnpackError::Write { verb: "create", .. })), "{result:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let found = verify(&image, None);
    assert_eq!(found.damage.len(), 1);
    assert_eq!(found.damage[0].fault.to_string(), "the directory is not sorted at \"name-a\"");
}

#[test]
fn names_with_slashes_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("ab_cd"), b"!").unwrap();
    let path = scratch.path().join("image");
    mksquashfs(&tree, &path, "-noI");
    for bad in [&b"../cd"[..], b"/b_cd", b"ab/cd", b"ab\0cd"] {
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(5).position(|w| w == b"ab_cd").unwrap();
        bytes[at..at + 5].copy_from_slice(bad);
        let image = Image::from_source(Box::new(bytes), &OpenOptions::default()).unwrap();
        let result = unpack(&image, &scratch.path().join("target"), &UnpackOptions::default());
        assert!(matches!(result, Err(UnpackError::Walk(_))), "{result:?}");
    }
}

#[test]
fn verify_names_the_file_and_block() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    let path = scratch.path().join("image");
    let image = mksquashfs(&tree, &path, "-comp gzip -Xcompression-level 1");
    let good = verify(&image, None);
    assert!(good.damage.is_empty(), "{:?}", good.damage);
    assert_eq!(good.files as usize, picture::of_directory(&tree).len());

    let file = image.resolve(b"contents/text-1500000").unwrap().unwrap();
    let blocks = image.blocks(&file).unwrap();
    let mica_squashfs::Block::Data { block, .. } = blocks.block(7).unwrap() else {
        panic!("text is stored in blocks");
    };
    let mut bytes = fs::read(&path).unwrap();
    for byte in &mut bytes[block.offset as usize..][..block.stored as usize] {
        *byte ^= 0x55;
    }
    let damaged = Image::from_source(Box::new(bytes), &OpenOptions::default()).unwrap();
    let found = verify(&damaged, None);
    let lines: Vec<String> = found.damage.iter().map(|d| d.to_string()).collect();
    assert_eq!(lines, ["/contents/text-1500000: block 7"]);
    assert_eq!(
        found.damage[0].fault.to_string(),
        format!("cannot decode the block at {}", block.offset)
    );
}

#[test]
fn delta_counts_what_is_not_there_yet() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for i in 0..20 {
        fs::write(tree.join(format!("file-{i}")), torture::noise(i, 200_000)).unwrap();
    }
    let old = mksquashfs(&tree, &scratch.path().join("old"), "-no-fragments");
    let same = delta(&old, &old).unwrap();
    assert_eq!((same.data, same.metadata, same.new_blocks), (0, 0, 0));
    assert!(same.tables < 1000, "{same:?}");
    fs::write(tree.join("file-7"), torture::noise(99, 200_000)).unwrap();
    let new = mksquashfs(&tree, &scratch.path().join("new"), "-no-fragments");
    let changed = delta(&old, &new).unwrap();
    assert_eq!(changed.data, 200_000);
    assert!(changed.bytes() < 203_000, "{changed:?}");
    assert_eq!(changed.total, new.superblock().bytes_used);
}
