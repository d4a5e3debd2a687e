//! Large files that are copied up in part.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_mounter::{MountOptions, Upper};
use mica_squashfs::Image;
use proptest::prelude::*;
use rustix::fs::FallocateFlags;
use support::{Layer, Scratch, stack};

const SIZE: usize = 1_200_000;

/// Data with a large hole in it, and no two equal blocks.
fn content() -> Vec<u8> {
    let mut state = 1_u32;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(SIZE)
    .collect();
    bytes[400_000..800_000].fill(0);
    bytes
}

fn image() -> Arc<Image> {
    Layer::new().file("d/big", content()).hard_link("twin", "d/big").image()
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn marks(path: &Path) -> usize {
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(path, &mut names).unwrap();
    names[..len]
        .split(|&b| b == 0)
        .filter(|name| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay."))
        .count()
}

/// A mount that leaves files incomplete, as a killed server does.
fn crashing(scratch: &mut Scratch, image: &Arc<Image>) {
    let upper = Upper { thrown_away: true, ..Upper::new(scratch.upper()) };
    scratch.mount_upper(stack([Arc::clone(image)]), Some(upper));
}

/// A mount that completes files at once, beside those who use them.
fn hurrying(scratch: &mut Scratch, image: &Arc<Image>) {
    let options = MountOptions {
        upper: Some(Upper::new(scratch.upper())),
        complete_after: Duration::ZERO,
        ..MountOptions::default()
    };
    scratch.mount_with(stack([Arc::clone(image)]), &options);
}

#[test]
fn the_rest_follows_in_the_background_and_nobody_sees_it_come() {
    let image = image();
    let mut scratch = Scratch::new(stack([Arc::clone(&image)]), false);
    scratch.unmount();
    hurrying(&mut scratch, &image);
    let path = scratch.path("d/big");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_at(b"x", 5).unwrap();
    let seen = || {
        let flags = rustix::fs::AtFlags::STATX_FORCE_SYNC;
        let stat =
            rustix::fs::statx(rustix::fs::CWD, &path, flags, rustix::fs::StatxFlags::BASIC_STATS);
        let stat = stat.unwrap();
        (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec, stat.stx_mode)
    };
    let (before, copy) = (seen(), scratch.upper().join("d/big"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while marks(&copy) > 0 {
        assert_eq!(seen(), before);
        assert!(Instant::now() < deadline, "it is not completed");
    }
    assert_eq!(seen(), before);
    let mut want = content();
    want[5] = b'x';
    assert_eq!(fs::read(&copy).unwrap(), want);
    assert_eq!(fs::read(&path).unwrap(), want);
    file.write_at(b"yz", 600_000).unwrap();
    want[600_000..600_002].copy_from_slice(b"yz");
    assert_eq!(fs::read(&copy).unwrap(), want);
    scratch.unmount();
}

#[test]
fn appending_to_a_large_file_copies_what_is_written_and_the_rest_at_the_end() {
    let image = image();
    let mut scratch = Scratch::new(stack([Arc::clone(&image)]), true);
    let file = OpenOptions::new().append(true).open(scratch.path("d/big")).unwrap();
    rustix::io::write(&file, b"more").unwrap();
    drop(file);
    let mut want = content();
    want.extend_from_slice(b"more");
    let copy = scratch.upper().join("d/big");
    assert!(blocks(&copy) < 100_000, "{} bytes were copied", blocks(&copy));
    assert_eq!(marks(&copy), 3);
    assert_eq!(fs::read(scratch.path("twin")).unwrap(), want, "all names are the same file");
    assert!(blocks(&scratch.path("d/big")) > 900_000, "blocks of the layer count");
    let time = fs::metadata(scratch.path("d/big")).unwrap().modified().unwrap();
    scratch.unmount();
    assert_eq!(fs::read(&copy).unwrap(), want);
    assert_eq!(fs::metadata(&copy).unwrap().modified().unwrap(), time);
    assert_eq!(marks(&copy), 0);
    assert!(blocks(&copy) < want.len() as u64 - 200_000, "holes of the layer stay holes");
}

#[test]
fn changing_attributes_of_a_large_file_copies_no_content() {
    let image = image();
    let mut scratch = Scratch::new(stack([Arc::clone(&image)]), false);
    scratch.unmount();
    crashing(&mut scratch, &image);
    let path = scratch.path("d/big");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(&path, Some(5), Some(6)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&path, "user.k", b"v", flags).unwrap();
    fs::rename(&path, scratch.path("moved")).unwrap();
    assert!(blocks(&scratch.upper().join("moved")) < 50_000);
    scratch.unmount();
    // Left incomplete; found and completed by the next one, under its new name.
    assert!(blocks(&scratch.upper().join("moved")) < 50_000);
    scratch.mount(stack([Arc::clone(&image)]), true);
    assert_eq!(fs::read(scratch.path("moved")).unwrap(), content());
    scratch.unmount();
    let copy = fs::metadata(scratch.upper().join("moved")).unwrap();
    assert_eq!(fs::read(scratch.upper().join("moved")).unwrap(), content());
    assert_eq!((copy.mode() & 0o7777, copy.uid(), copy.gid()), (0o4711, 5, 6));
    assert_eq!((copy.mtime(), copy.nlink()), (1_000_000_000, 2));
    assert_eq!(marks(&scratch.upper().join("moved")), 0);
}

#[test]
fn what_a_crash_left_is_completed_also_where_nobody_looks() {
    let image = image();
    let mut scratch = Scratch::new(stack([Arc::clone(&image)]), false);
    scratch.unmount();
    crashing(&mut scratch, &image);
    OpenOptions::new().write(true).open(scratch.path("twin")).unwrap().write_at(b"x", 5).unwrap();
    scratch.unmount();
    scratch.mount(stack([Arc::clone(&image)]), true);
    scratch.unmount();
    let mut want = content();
    want[5] = b'x';
    assert_eq!(fs::read(scratch.upper().join("d/big")).unwrap(), want);
}

#[test]
fn the_rest_of_another_file_is_refused() {
    let image = image();
    let mut scratch = Scratch::new(stack([Arc::clone(&image)]), false);
    scratch.unmount();
    crashing(&mut scratch, &image);
    OpenOptions::new().write(true).open(scratch.path("d/big")).unwrap().write_at(b"x", 5).unwrap();
    scratch.unmount();
    let other = Layer::new().file("d/big", vec![1; SIZE + 1]).image();
    scratch.mount(stack([other]), true);
    assert!(fs::read(scratch.path("d/big")).is_err());
    scratch.unmount();
    scratch.mount(stack([image]), true);
    assert_eq!(fs::read(scratch.path("d/big")).unwrap().len(), SIZE);
}

#[test]
fn files_of_which_overlayfs_copied_the_metadata_are_read_from_the_layer() {
    let mut scratch = Scratch::new(stack([image()]), true);
    fs::create_dir(scratch.path("e")).unwrap();
    scratch.unmount();
    // What overlayfs with metacopy=on makes of chmod, and of a rename.
    for (path, redirect) in [("d/big", None), ("e/renamed", Some("/d/big"))] {
        let path = scratch.upper().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(&path).unwrap().set_len(SIZE as u64).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "trusted.overlay.metacopy", b"", flags).unwrap();
        if let Some(redirect) = redirect {
            let name = "trusted.overlay.redirect";
            rustix::fs::setxattr(&path, name, redirect.as_bytes(), flags).unwrap();
        }
    }
    scratch.mount(stack([image()]), true);
    assert_eq!(fs::read(scratch.path("d/big")).unwrap(), content());
    assert_eq!(fs::read(scratch.path("e/renamed")).unwrap(), content());
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, usize),
    Append(usize),
    Truncate(u64),
    Read(u64, usize),
    Allocate(u64, u64),
    Punch(u64, u64),
    Chmod(u32),
    Copy(u64, u64),
    Crash,
    Remount,
    Hurry,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let at = prop_oneof![0..SIZE as u64 + 50_000, (0..300_u64).prop_map(|block| block * 4096)];
    let len = prop_oneof![1..5000_usize, Just(4096), 1..300_000_usize];
    let op = prop_oneof![
        4 => (at.clone(), len.clone()).prop_map(|(at, len)| Op::Write(at, len)),
        1 => (1..5000_usize).prop_map(Op::Append),
        1 => at.clone().prop_map(Op::Truncate),
        3 => (at.clone(), len).prop_map(|(at, len)| Op::Read(at, len)),
        1 => (at.clone(), 1..100_000_u64).prop_map(|(at, len)| Op::Punch(at, len)),
        1 => (at.clone(), 1..100_000_u64).prop_map(|(at, len)| Op::Allocate(at, len)),
        1 => (0..0o1000_u32).prop_map(|mode| Op::Chmod(mode | 0o200)),
        1 => (at.clone(), at).prop_map(|(from, to)| Op::Copy(from, to)),
        2 => Just(Op::Crash),
        1 => Just(Op::Remount),
        2 => Just(Op::Hurry),
    ];
    prop::collection::vec(op, 1..12)
}

/// What the operation answers, and what is read.
fn run(path: &Path, op: &Op) -> Result<Vec<u8>, rustix::io::Errno> {
    let errno = |error: std::io::Error| rustix::io::Errno::from_io_error(&error).unwrap();
    let mut out = Vec::new();
    if let Op::Chmod(mode) = *op {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        return Ok(out);
    }
    // An ordinary user may not open what its mode forbids to.
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(errno)?;
    match *op {
        Op::Write(at, len) => file.write_all_at(&vec![at as u8 | 1; len], at).unwrap(),
        Op::Append(len) => {
            let file = OpenOptions::new().append(true).open(path).unwrap();
            rustix::io::write(&file, &vec![b'+'; len])?;
        }
        Op::Truncate(size) => file.set_len(size).unwrap(),
        Op::Read(at, len) => {
            out.resize(len, 0);
            let read = file.read_at(&mut out, at).unwrap();
            out.truncate(read);
        }
        Op::Allocate(at, len) => {
            rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, at, len)?;
        }
        Op::Punch(at, len) => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, flags, at, len)?;
        }
        Op::Copy(mut from, mut to) => {
            let (from, to) = (Some(&mut from), Some(&mut to));
            rustix::fs::copy_file_range(&file, from, &file, to, 20_000)?;
        }
        Op::Chmod(_) | Op::Crash | Op::Remount | Op::Hurry => {}
    }
    Ok(out)
}

fn state(path: &Path) -> (Option<Vec<u8>>, u32) {
    (fs::read(path).ok(), fs::metadata(path).unwrap().mode())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_file_copied_in_part_behaves_like_a_file(ops in ops()) {
        let image = image();
        let mut scratch = Scratch::new(stack([Arc::clone(&image)]), false);
        let plain = scratch.dir.path().join("plain");
        fs::write(&plain, content()).unwrap();
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
        scratch.unmount();
        crashing(&mut scratch, &image);
        for op in &ops {
            if matches!(op, Op::Crash | Op::Remount | Op::Hurry) {
                scratch.unmount();
                match op {
                    Op::Hurry => hurrying(&mut scratch, &image),
                    Op::Crash => crashing(&mut scratch, &image),
                    _ => scratch.mount(stack([Arc::clone(&image)]), true),
                }
            }
            prop_assert_eq!(run(&scratch.path("twin"), op), run(&plain, op), "{:?}", op);
            prop_assert!(state(&scratch.path("d/big")) == state(&plain), "after {:?}", op);
        }
        scratch.unmount();
        scratch.mount(stack([Arc::clone(&image)]), true);
        prop_assert!(state(&scratch.path("twin")) == state(&plain), "after a remount");
        scratch.unmount();
        let copy = scratch.upper().join("twin");
        if copy.exists() {
            prop_assert!(state(&copy) == state(&plain), "in the upper");
            prop_assert_eq!(marks(&copy), 0);
        }
    }
}

#[test]
fn once_more_as_an_ordinary_user() {
    support::once_more_as_an_ordinary_user(&[
        // Gives a file to somebody else.
        "changing_attributes_of_a_large_file_copies_no_content",
        // Sets `trusted` attributes.
        "files_of_which_overlayfs_copied_the_metadata_are_read_from_the_layer",
    ]);
}
