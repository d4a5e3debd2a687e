//! The upper, where a plain directory doesn't say what is right: what lies in layers.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use support::{Layer, Scratch, names, stack};

fn base() -> Layer {
    Layer::new()
        .file("f", "base")
        .file("d/a", "a")
        .file("d/s/b", "b")
        .symlink("d/l", "a")
        .file("linked", "same")
        .hard_link("d/linked", "linked")
        .file("big", vec![7; 1 << 20])
}

fn remount(scratch: &mut Scratch) {
    scratch.unmount();
    scratch.mount(stack([base().image()]), true);
}

#[test]
fn changes_are_seen_and_survive_a_remount() {
    let mut scratch = Scratch::new(stack([base().image()]), true);
    OpenOptions::new().append(true).open(scratch.path("f")).unwrap().write_all(b"+").unwrap();
    fs::write(scratch.path("new"), "new").unwrap();
    fs::remove_file(scratch.path("d/a")).unwrap();
    fs::set_permissions(scratch.path("d/s/b"), fs::Permissions::from_mode(0o600)).unwrap();
    for _ in 0..2 {
        assert_eq!((scratch.read("f"), scratch.read("new")), ("base+".into(), "new".into()));
        assert_eq!(names(scratch.path("d")), ["l", "linked", "s"]);
        let b = fs::metadata(scratch.path("d/s/b")).unwrap();
        assert_eq!((b.mode() & 0o7777, b.mtime()), (0o600, 1_000_000_000));
        remount(&mut scratch);
    }
    let whiteout = fs::symlink_metadata(scratch.upper().join("d/a")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
}

#[test]
fn a_directory_of_a_layer_can_be_renamed_and_removed() {
    let mut scratch = Scratch::new(stack([base().image()]), true);
    fs::rename(scratch.path("d"), scratch.path("e")).unwrap();
    fs::write(scratch.path("e/s/new"), "new").unwrap();
    for _ in 0..2 {
        assert!(!scratch.path("d").exists());
        assert_eq!(names(scratch.path("e")), ["a", "l", "linked", "s"]);
        assert_eq!(names(scratch.path("e/s")), ["b", "new"]);
        assert_eq!(scratch.read("e/l"), "a");
        remount(&mut scratch);
    }
    // A new directory at the old place is empty, also after a remount; so is one over a removed one.
    fs::create_dir(scratch.path("d")).unwrap();
    fs::remove_dir_all(scratch.path("e")).unwrap();
    fs::create_dir(scratch.path("e")).unwrap();
    for _ in 0..2 {
        assert_eq!(names(scratch.path("d")), [""; 0]);
        assert_eq!(names(scratch.path("e")), [""; 0]);
        remount(&mut scratch);
    }
}

#[test]
fn directories_of_layers_can_be_moved_into_each_other_and_exchanged() {
    let mut scratch = Scratch::new(stack([base().image()]), true);
    fs::create_dir(scratch.path("x")).unwrap();
    fs::rename(scratch.path("d/s"), scratch.path("x/s")).unwrap();
    let (d, x) = (scratch.path("d"), scratch.path("x"));
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, &d, rustix::fs::CWD, &x, flags).unwrap();
    for _ in 0..2 {
        assert_eq!(names(scratch.path("x")), ["a", "l", "linked"]);
        assert_eq!(names(scratch.path("d")), ["s"]);
        assert_eq!(scratch.read("d/s/b"), "b");
        remount(&mut scratch);
    }
}

#[test]
fn hard_links_of_a_layer_stay_linked_when_one_is_written() {
    let mut scratch = Scratch::new(stack([base().image()]), true);
    let ino = fs::metadata(scratch.path("linked")).unwrap().ino();
    fs::write(scratch.path("linked"), "changed").unwrap();
    let other = fs::metadata(scratch.path("d/linked")).unwrap();
    assert_eq!((other.ino(), other.nlink()), (ino, 2));
    for _ in 0..2 {
        assert_eq!(scratch.read("d/linked"), "changed");
        remount(&mut scratch);
    }
}

#[test]
fn inode_numbers_stay_when_files_are_copied_up() {
    let scratch = Scratch::new(stack([base().image()]), true);
    let ino = |path: &str| fs::symlink_metadata(scratch.path(path)).unwrap().ino();
    let before = (ino("f"), ino("d"), ino("d/l"));
    fs::write(scratch.path("f"), "x").unwrap();
    fs::write(scratch.path("d/new"), "x").unwrap();
    fs::hard_link(scratch.path("d/l"), scratch.path("d/l2")).unwrap();
    assert_eq!(before, (ino("f"), ino("d"), ino("d/l")));
    assert_eq!(ino("d/l2"), ino("d/l"));
    fs::rename(scratch.path("f"), scratch.path("g")).unwrap();
    assert_eq!(ino("g"), before.0);
}

#[test]
fn open_files_outlive_their_names_and_see_writes() {
    let scratch = Scratch::new(stack([base().image()]), true);
    let mut reader = fs::File::open(scratch.path("f")).unwrap();
    let mut writer = OpenOptions::new().read(true).write(true).open(scratch.path("f")).unwrap();
    writer.write_all(b"BASE").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "BASE");
    fs::remove_file(scratch.path("f")).unwrap();
    writer.write_all(b"!").unwrap();
    writer.seek(SeekFrom::Start(0)).unwrap();
    text.clear();
    writer.read_to_string(&mut text).unwrap();
    assert_eq!(text, "BASE!");
    assert_eq!(writer.metadata().unwrap().nlink(), 0);
    // A file of a layer that was never copied: its content stays, and chmod by descriptor works.
    let unlinked = fs::File::open(scratch.path("big")).unwrap();
    fs::remove_file(scratch.path("big")).unwrap();
    unlinked.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(unlinked.metadata().unwrap().len(), 1 << 20);
    assert_eq!(names(scratch.root()), ["d", "linked"]);
}

#[test]
fn marks_cannot_be_forged_through_the_mount() {
    let scratch = Scratch::new(stack([base().image()]), true);
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        let flags = rustix::fs::XattrFlags::empty();
        let set = rustix::fs::setxattr(scratch.path("d"), name, b"y", flags);
        assert_eq!(set, Err(rustix::io::Errno::PERM));
    }
    let kind = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::empty();
    let path = scratch.path("w");
    assert!(rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).is_err());
    assert!(fs::write(scratch.path(".wh.f"), "").is_err());
    assert_eq!(scratch.read("f"), "base");
}

#[test]
fn a_job_cannot_lead_the_server_out_of_the_upper() {
    let scratch = Scratch::new(stack([base().image()]), true);
    fs::create_dir(scratch.path("in")).unwrap();
    fs::write(scratch.path("in/f"), "inside").unwrap();
    // Behind the server's back a directory becomes a link out of the upper.
    fs::rename(scratch.upper().join("in"), scratch.upper().join("moved")).unwrap();
    symlink("/etc", scratch.upper().join("in")).unwrap();
    assert!(
        fs::write(scratch.path("in/mica-test"), "x").is_err()
            || !fs::exists("/etc/mica-test").unwrap()
    );
    assert!(!fs::exists("/etc/mica-test").unwrap());
}

#[test]
fn sparse_files_stay_sparse_and_copy_up_keeps_attributes() {
    let mut content = vec![0; 8 << 20];
    content[..10].copy_from_slice(&[1; 10]);
    let layer = Layer::new().file("sparse", content).xattr("sparse", "user.k", "v");
    let scratch = Scratch::new(stack([layer.image()]), true);
    OpenOptions::new().append(true).open(scratch.path("sparse")).unwrap().write_all(b"x").unwrap();
    let file = fs::metadata(scratch.path("sparse")).unwrap();
    assert_eq!(file.len(), (8 << 20) + 1);
    assert!(file.blocks() * 512 < 1 << 20, "{} blocks", file.blocks());
    let mut value = [0; 4];
    assert_eq!(rustix::fs::getxattr(scratch.path("sparse"), "user.k", &mut value), Ok(1));
}

#[test]
fn a_new_upper_looks_like_the_root_of_the_layers() {
    let mut scratch = Scratch::new(stack([base().image()]), false);
    let before = fs::metadata(scratch.root()).unwrap();
    scratch.unmount();
    scratch.mount(stack([base().image()]), true);
    let after = fs::metadata(scratch.root()).unwrap();
    assert_eq!((before.mode(), before.mtime()), (after.mode(), after.mtime()));
}

#[test]
fn files_without_a_name_are_refused_as_by_a_file_system_that_has_none() {
    let scratch = Scratch::new(stack([base().image()]), true);
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let made = rustix::fs::open(scratch.root(), flags, rustix::fs::Mode::RUSR);
    assert_eq!(made.unwrap_err(), rustix::io::Errno::OPNOTSUPP);
}

#[test]
fn a_file_that_is_open_while_it_is_copied_up_shows_what_is_written() {
    let scratch = Scratch::new(stack([base().image()]), true);
    let mut reader = fs::File::open(scratch.path("f")).unwrap();
    let mut writer = OpenOptions::new().write(true).open(scratch.path("f")).unwrap();
    let mut text = String::new();
    for round in 0..3 {
        writer.seek(SeekFrom::Start(0)).unwrap();
        write!(writer, "round {round}").unwrap();
        reader.seek(SeekFrom::Start(0)).unwrap();
        text.clear();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("round {round}"));
        assert_eq!(scratch.read("f"), text, "by another open");
    }
}

#[test]
fn set_id_bits_go_when_somebody_else_writes_also_to_a_new_file() {
    let scratch = Scratch::new(stack([base().image()]), true);
    let path = scratch.path("suid");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    fs::set_permissions(scratch.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let written = std::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            "echo y >> \"$1\"",
            "-",
        ])
        .arg(&path)
        .status();
    assert!(written.unwrap().success(), "this test needs setpriv from util-linux, and root");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
}

/// Writes to an open file as somebody who may not keep set-id bits, in each of the ways in which one can.
const WRITES: &str = r#"
import ctypes, fcntl, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
how, fd = sys.argv[1], int(sys.argv[2])
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
if how == "write": os.pwrite(fd, b"x" * 4096, 0)
elif how == "direct":
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    page = mmap.mmap(-1, 4096); page.write(b"y" * 4096)
    os.pwritev(fd, [page], 0)
else:
    mode = {"allocate": 0, "punch": 3, "zero": 16}[how]
    done = libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(8192))
    if done != 0: raise OSError(ctypes.get_errno(), how)
"#;

#[test]
fn set_id_bits_go_however_somebody_else_writes_and_through_whatever_is_open() {
    use std::os::fd::AsRawFd;
    for passthrough in [true, false] {
        let mut scratch = Scratch::new(stack([base().image()]), false);
        scratch.unmount();
        let upper = Some(mica_mounter::Upper::new(scratch.upper()));
        let options = mica_mounter::MountOptions { upper, passthrough, ..Default::default() };
        scratch.mount_with(stack([base().image()]), &options);
        for how in ["write", "direct", "allocate", "punch", "zero"] {
            let path = scratch.path(how);
            fs::write(&path, vec![1; 16 << 10]).unwrap();
            // Open before the bits are set.
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777);
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
            let mut command = std::process::Command::new("python3");
            let fd = file.as_raw_fd().to_string();
            let done = command.args(["-c", WRITES, how, &fd]).output();
            let done = done.expect("this test needs python3");
            assert!(done.status.success(), "{how}: {}", String::from_utf8_lossy(&done.stderr));
            let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
            assert_eq!(mode, 0o777, "{how}, passthrough {passthrough}");
        }
    }
}

#[test]
fn times_move_when_a_file_is_written_through_a_mapping() {
    for passthrough in [true, false] {
        let mut scratch = Scratch::new(stack([base().image()]), false);
        scratch.unmount();
        let upper = Some(mica_mounter::Upper::new(scratch.upper()));
        let options = mica_mounter::MountOptions { upper, passthrough, ..Default::default() };
        scratch.mount_with(stack([base().image()]), &options);
        let path = scratch.path("mapped");
        fs::write(&path, vec![1; 8192]).unwrap();
        let old = rustix::fs::Timespec { tv_sec: 1000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mtime(), 1000);
        let script = "import mmap, os, sys\n\
                      fd = os.open(sys.argv[1], os.O_RDWR)\n\
                      m = mmap.mmap(fd, 8192); os.close(fd); m[0:4] = b'new!'; m.flush(); m.close()\n";
        let mut command = std::process::Command::new("python3");
        assert!(command.args(["-c", script]).arg(&path).status().unwrap().success());
        assert!(fs::metadata(&path).unwrap().mtime() > 1000, "passthrough {passthrough}");
        assert_eq!(&fs::read(&path).unwrap()[..5], b"new!\x01");
    }
}

#[test]
fn inode_numbers_survive_programs_that_cut_them_to_32_bits() {
    let above = Layer::new().file("d/above", "x").file("only", "x");
    let scratch = Scratch::new(stack([above.image(), base().image()]), true);
    fs::write(scratch.path("new"), "new").unwrap();
    fs::write(scratch.path("f"), "changed").unwrap();
    let mut numbers = std::collections::HashMap::new();
    for name in
        ["", "f", "new", "d", "d/a", "d/above", "d/s", "d/s/b", "d/l", "only", "big", "linked"]
    {
        let ino = fs::symlink_metadata(scratch.path(name)).unwrap().ino();
        assert!(ino < 1 << 32, "{name}: {ino}");
        assert_eq!(numbers.insert(ino, name), None, "{name}");
    }
}

#[test]
fn attributes_of_any_length_are_read_back() {
    let long = "A".repeat(300);
    let layer = Layer::new().file("f", "x").xattr("f", "user.b", &long);
    let scratch = Scratch::new(stack([layer.image()]), true);
    let get = |name: &str| {
        let mut room = vec![0; 64 << 10];
        let len = rustix::fs::getxattr(scratch.path("f"), name, &mut room).unwrap();
        room.truncate(len);
        room
    };
    assert_eq!(get("user.b"), long.as_bytes());
    let flags = rustix::fs::XattrFlags::empty();
    // Copied up by the first.
    for len in [0, 1, 255, 256, 257, 300, 2000, 3000] {
        let value = vec![7; len];
        rustix::fs::setxattr(scratch.path("f"), "user.c", &value, flags).unwrap();
        assert_eq!(get("user.c"), value, "{len} bytes");
        assert_eq!(get("user.b"), long.as_bytes());
        // Asks for the size first.
        let mut command = std::process::Command::new("getfattr");
        let command = command.args(["--only-values", "-n", "user.c"]).arg(scratch.path("f"));
        assert_eq!(command.output().expect("this test needs getfattr").stdout, value);
    }
    let mut small = [0; 100];
    let read = rustix::fs::getxattr(scratch.path("f"), "user.b", &mut small);
    assert_eq!(read, Err(rustix::io::Errno::RANGE));
}

#[test]
fn once_more_as_an_ordinary_user() {
    support::once_more_as_an_ordinary_user(&[
        // Becomes another user itself.
        "set_id_bits_go_",
    ]);
}
