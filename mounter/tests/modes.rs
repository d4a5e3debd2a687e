//! What an ordinary user may do with files whose modes say no, as root may: on a plain directory, and so on a mount.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use mica_mounter::{MountOptions, Upper};
use rustix::fs::{CWD, RenameFlags, XattrFlags};
use support::{Layer, Scratch, names, stack};

fn file(content: impl Into<Vec<u8>>) -> mica_squashfs::write::NodeKind {
    mica_squashfs::write::NodeKind::File(Box::new(content.into()))
}

fn dir() -> mica_squashfs::write::NodeKind {
    mica_squashfs::write::NodeKind::Directory
}

fn layer() -> Layer {
    Layer::new()
        .add("ro", 0o444, file("a"))
        .xattr("ro", "user.k", "v")
        .add("plain", 0o444, file("a"))
        .add("big", 0o444, file(vec![7; 1 << 20]))
        .add("bigx", 0o444, file(vec![7; 1 << 20]))
        .xattr("bigx", "user.k", "v")
        .add("closed", 0o000, file("a"))
        .xattr("closed", "user.k", "v")
        .dir("d")
        .dir("d2")
        .add("rod", 0o555, dir())
        .xattr("rod", "user.k", "v")
        .add("rod/f", 0o444, file("x"))
        .add("rod/s", 0o555, dir())
        .add("rod/s/f", 0o444, file("x"))
        .hard_link("rod/g", "rod/f")
}

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn touch(path: impl AsRef<Path>) {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 7, tv_nsec: 0 },
    };
    rustix::fs::utimensat(CWD, path.as_ref(), &times, rustix::fs::AtFlags::empty()).unwrap();
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn xattr(path: impl AsRef<Path>) -> Vec<u8> {
    let mut value = vec![0; 64];
    let len = rustix::fs::getxattr(path.as_ref(), "user.k", &mut value).unwrap();
    value.truncate(len);
    value
}

#[test]
fn files_that_nobody_may_write_are_changed_by_their_owner() {
    let mut scratch = Scratch::new(stack([layer().image()]), true);
    let path = |name: &str| scratch.path(name);
    touch(path("plain"));
    touch(path("big"));
    touch(path("bigx"));
    touch(path("closed"));
    chmod(path("closed"), 0o200);
    chmod(path("ro"), 0o644);
    fs::hard_link(path("ro"), path("link")).unwrap();
    fs::hard_link(path("plain"), path("link2")).unwrap();
    fs::write(path("ro"), "changed").unwrap();
    // In a directory that nobody may write, too, and what is linked stays linked.
    chmod(path("rod/f"), 0o600);
    fs::write(path("rod/f"), "changed").unwrap();
    touch(path("rod/s/f"));
    scratch.unmount();
    scratch.mount(stack([layer().image()]), true);
    let path = |name: &str| scratch.path(name);
    assert_eq!(
        (mode(path("plain")), mode(path("bigx")), mode(path("closed"))),
        (0o444, 0o444, 0o200)
    );
    assert_eq!((xattr(path("bigx")), xattr(path("link"))), (b"v".to_vec(), b"v".to_vec()));
    assert_eq!((scratch.read("link"), scratch.read("rod/g")), ("changed".into(), "changed".into()));
    assert_eq!(fs::read(path("bigx")).unwrap(), vec![7; 1 << 20]);
    assert_eq!(fs::metadata(path("rod/s/f")).unwrap().mtime(), 7);
    assert_eq!((mode(path("rod")), mode(path("rod/s"))), (0o555, 0o555));
    chmod(path("rod"), 0o755);
    chmod(path("rod/s"), 0o755);
}

#[test]
fn directories_that_nobody_may_write_are_made_moved_and_removed() {
    let scratch = Scratch::new(stack([layer().image()]), true);
    let path = |name: &str| scratch.path(name);
    for (name, wanted) in [("d", 0o555), ("d2", 0o000)] {
        fs::remove_dir(path(name)).unwrap();
        fs::DirBuilder::new().mode(wanted).create(path(name)).unwrap();
        assert_eq!(mode(path(name)), wanted);
    }
    fs::rename(path("rod"), path("rod2")).unwrap();
    assert_eq!(names(path("rod2")), ["f", "g", "s"]);
    fs::rename(path("d"), path("d3")).unwrap();
    fs::rename(path("d2"), path("d4")).unwrap();
    rustix::fs::renameat_with(CWD, path("d3"), CWD, path("d4"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!((mode(path("d3")), mode(path("d4")), mode(path("rod2"))), (0o000, 0o555, 0o555));
    fs::remove_dir(path("d3")).unwrap();
    fs::remove_dir(path("d4")).unwrap();
    chmod(path("rod2"), 0o755);
    fs::write(path("rod2/new"), "new").unwrap();
    chmod(path("rod2/s"), 0o755);
    fs::remove_dir_all(path("rod2")).unwrap();
    assert_eq!(names(scratch.root()), ["big", "bigx", "closed", "plain", "ro"]);
}

#[test]
fn who_has_a_file_open_reads_and_writes_it_whatever_its_mode_becomes() {
    let scratch = Scratch::new(stack([layer().image()]), true);
    let path = |name: &str| scratch.path(name);
    for (name, gone) in [("mode", false), ("name", true)] {
        fs::write(path(name), "data").unwrap();
        let mut reader = fs::File::open(path(name)).unwrap();
        let mut both = OpenOptions::new().read(true).write(true).open(path(name)).unwrap();
        match gone {
            false => chmod(path(name), 0),
            true => fs::remove_file(path(name)).unwrap(),
        }
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "data");
        both.write_all(b"more").unwrap();
        both.seek(SeekFrom::Start(0)).unwrap();
        text.clear();
        both.read_to_string(&mut text).unwrap();
        assert_eq!(text, "more");
        reader.set_permissions(Permissions::from_mode(0o400)).unwrap();
        assert_eq!(reader.metadata().unwrap().mode() & 0o777, 0o400);
    }
    // In a directory that nobody may enter any more.
    fs::create_dir(path("in")).unwrap();
    fs::write(path("in/f"), "data").unwrap();
    let mut reader = fs::File::open(path("in/f")).unwrap();
    chmod(path("in"), 0);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), reader.metadata().unwrap().len()), ("data", 4));
    assert_eq!(mode(path("in")), 0);
    chmod(path("in"), 0o700);
}

#[test]
fn large_files_that_nobody_may_write_are_completed_in_the_background() {
    let mut scratch = Scratch::new(stack([layer().image()]), false);
    scratch.unmount();
    let upper = Some(Upper::new(scratch.upper()));
    let complete_after = Duration::from_millis(10);
    let options = MountOptions { upper, complete_after, ..MountOptions::default() };
    scratch.mount_with(stack([layer().image()]), &options);
    touch(scratch.path("big"));
    touch(scratch.path("bigx"));
    let deadline = Instant::now() + Duration::from_secs(20);
    let complete = |name: &str| {
        let path = scratch.upper().join(name);
        let marks = ["trusted.overlay.metacopy", "user.overlay.metacopy"];
        let marked = |mark: &&str| rustix::fs::getxattr(&path, *mark, &mut [0; 16]).is_ok();
        fs::read(&path).is_ok_and(|content| content == [7; 1 << 20]) && !marks.iter().any(marked)
    };
    while !complete("big") || !complete("bigx") {
        assert!(Instant::now() < deadline, "not complete");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((mode(scratch.path("big")), mode(scratch.upper().join("bigx"))), (0o444, 0o444));
    assert_eq!(fs::metadata(scratch.path("bigx")).unwrap().mtime(), 7);
}

#[test]
fn what_a_mode_forbids_is_forbidden() {
    if rustix::process::geteuid().is_root() {
        return; // nothing is; the test below runs this one as somebody else
    }
    let scratch = Scratch::new(stack([layer().image()]), true);
    let denied = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    };
    denied(fs::write(scratch.path("ro"), "x"));
    denied(fs::write(scratch.path("rod/new"), "x"));
    denied(fs::remove_file(scratch.path("rod/f")));
    denied(fs::read(scratch.path("closed")).map(drop));
    let flags = XattrFlags::empty();
    let set = rustix::fs::setxattr(scratch.path("ro"), "user.k", b"w", flags);
    assert_eq!(set, Err(rustix::io::Errno::ACCESS));
}

#[test]
fn once_more_as_an_ordinary_user() {
    support::once_more_as_an_ordinary_user(&[]);
}
