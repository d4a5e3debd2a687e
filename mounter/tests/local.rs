//! What programs expect of a local file system, beyond reading and writing.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};

use mica_mounter::{MountOptions, Upper};
use rustix::fs::{
    Advice, AtFlags, CWD, FlockOperation, Mode, OFlags, RawDir, SeekFrom, Timespec, Timestamps,
};
use rustix::io::Errno;
use support::{Layer, Scratch, names, stack};

fn scratch() -> Scratch {
    let mut holes = vec![0_u8; 1 << 20];
    holes[300_000..310_000].fill(7);
    let mut layer = Layer::new().file("f", "content").file("holes", holes).dir("d");
    for n in 0..2000 {
        layer = layer.file(&format!("many/{n:04}"), "");
    }
    Scratch::new(stack([layer.image()]), true)
}

#[test]
fn who_asks_for_it_reads_without_counting_as_an_access() {
    for passthrough in [true, false] {
        let mut scratch = scratch();
        scratch.unmount();
        let upper = Some(Upper::new(scratch.upper()));
        let options = MountOptions { upper, passthrough, ..MountOptions::default() };
        scratch.mount_with(stack([Layer::new().file("f", "content").image()]), &options);
        // A layer's file is as it was packed, whoever reads it.
        let packed = fs::metadata(scratch.path("f")).unwrap().atime();
        assert_eq!(scratch.read("f"), "content");
        assert_eq!(fs::metadata(scratch.path("f")).unwrap().atime(), packed);
        assert!(!scratch.upper().join("f").exists());
        let path = scratch.path("new");
        fs::write(&path, "content").unwrap();
        let second = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
        let times = Timestamps { last_access: second(1000), last_modification: second(2000) };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        for (how, counts) in [(OFlags::NOATIME, false), (OFlags::empty(), true)] {
            let fd = rustix::fs::open(&path, OFlags::RDONLY | how, Mode::empty()).unwrap();
            rustix::fs::fadvise(&fd, 0, None, Advice::DontNeed).unwrap();
            assert_eq!(rustix::io::pread(&fd, &mut [0; 16], 0), Ok(7));
            drop(fd);
            let atime = fs::metadata(scratch.upper().join("new")).unwrap().atime();
            assert_eq!(atime != 1000, counts, "{passthrough} {how:?}");
            assert_eq!(fs::metadata(&path).unwrap().atime(), atime);
        }
    }
}

#[test]
fn holes_of_a_layer_and_of_the_upper_are_found() {
    let scratch = scratch();
    let seek = |file: &File| {
        let data = rustix::fs::seek(file, SeekFrom::Data(0)).unwrap();
        (data, rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap())
    };
    let layer = File::open(scratch.path("holes")).unwrap();
    let (data, hole) = seek(&layer);
    assert!(data <= 300_000 && (310_000..1 << 20).contains(&hole), "{data} {hole}");
    assert_eq!(rustix::fs::seek(&layer, SeekFrom::Data(1 << 20)).unwrap_err(), Errno::NXIO);
    let upper = File::create_new(scratch.path("new")).unwrap();
    upper.set_len(1 << 20).unwrap();
    upper.write_all_at(&[1; 4096], 1 << 19).unwrap();
    assert_eq!(seek(&upper), (1 << 19, (1 << 19) + 4096));
}

#[test]
fn files_beyond_four_gigabytes_are_written_and_read() {
    let scratch = scratch();
    let path = scratch.path("large");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    file.write_all_at(b"end", 5 << 30).unwrap();
    let mut read = [0; 3];
    file.read_exact_at(&mut read, 5 << 30).unwrap();
    assert_eq!((&read, file.metadata().unwrap().len()), (b"end", (5 << 30) + 3));
}

#[test]
fn a_position_in_a_directory_stays_good_while_names_come_and_go() {
    let scratch = scratch();
    let upper = |n: usize| scratch.path(&format!("many/u{n:04}"));
    (0..1000).for_each(|n| fs::write(upper(n), "").unwrap());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(scratch.path("many"), flags, Mode::empty()).unwrap();
    let mut buffer = Vec::with_capacity(4096);
    let mut seen = Vec::new();
    let mut cookies = Vec::new();
    let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        seen.push(entry.file_name().to_owned());
        cookies.push(entry.next_entry_cookie());
        if seen.len() == 500 {
            fs::remove_file(scratch.path("many/0000")).unwrap();
            fs::remove_file(scratch.path("many/1999")).unwrap();
            fs::write(scratch.path("many/new"), "").unwrap();
        }
        // Both kinds of names come and go, and somebody else begins from the start each time.
        if seen.len().is_multiple_of(100) {
            let n = seen.len() / 100;
            fs::remove_file(upper(n)).unwrap();
            fs::write(upper(2000 + n), "").unwrap();
            fs::write(scratch.path(&format!("many/{:04}", 50 * n)), "changed").unwrap();
            let all = names(scratch.path("many"));
            assert!(
                all.contains(&format!("u{:04}", 2000 + n)) && !all.contains(&format!("u{n:04}"))
            );
        }
    }
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "a name was told twice");
    let there = |n: &usize| seen.iter().any(|s| s.to_bytes() == format!("{n:04}").as_bytes());
    assert_eq!((1..1999).filter(there).count(), 1998, "a name that stayed was left out");
    let there = |n: &usize| seen.iter().any(|s| s.to_bytes() == format!("u{n:04}").as_bytes());
    assert_eq!((100..1000).filter(there).count(), 900, "a name that stayed was left out");
    // Back to a position that was told (seekdir).
    rustix::fs::seek(&dir, SeekFrom::Start(cookies[99])).unwrap();
    let mut buffer = Vec::with_capacity(4096);
    let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
    let next = entries.next().unwrap().unwrap().file_name().to_owned();
    assert_eq!(next.to_bytes(), b"0098", "`.`, `..`, then the names in order");
}

#[test]
fn names_are_asked_for_again_only_when_they_changed() {
    let scratch = scratch();
    fs::write(scratch.path("d/new"), "").unwrap();
    let asked = || scratch.requests("readdir") + scratch.requests("readdirplus");
    let list = || (names(scratch.path("d")), names(scratch.path("many")).len());
    list();
    let before = (asked(), scratch.requests("opendir"));
    assert_eq!(list(), (vec!["new".to_owned()], 2000));
    assert_eq!((asked(), scratch.requests("opendir")), before);
    let changes: [&dyn Fn(); 4] = [
        &|| fs::write(scratch.path("d/more"), "").unwrap(),
        &|| fs::rename(scratch.path("d/more"), scratch.path("d/most")).unwrap(),
        &|| fs::rename(scratch.path("many/0001"), scratch.path("d/moved")).unwrap(),
        &|| fs::remove_file(scratch.path("d/new")).unwrap(),
    ];
    let told = [
        vec!["more", "new"],
        vec!["most", "new"],
        vec!["most", "moved", "new"],
        vec!["most", "moved"],
    ];
    for (change, told) in changes.iter().zip(told) {
        change();
        assert_eq!(list().0, told);
        assert_eq!(list().0, told);
    }
    assert_eq!(list().1, 1999);
}

#[test]
fn unknown_ioctls_are_refused_as_elsewhere() {
    let scratch = scratch();
    for path in ["f", "d"] {
        let file = File::open(scratch.path(path)).unwrap();
        assert_eq!(rustix::termios::tcgetattr(&file).unwrap_err(), Errno::NOTTY, "{path}");
    }
}

#[test]
fn space_is_that_of_the_upper_or_full() {
    let mut scratch = scratch();
    let space = rustix::fs::statvfs(scratch.root()).unwrap();
    assert!(space.f_bavail > 0 && space.f_namemax == 255);
    scratch.unmount();
    scratch.mount(stack([Layer::new().file("f", "x").image()]), false);
    let space = rustix::fs::statvfs(scratch.root()).unwrap();
    assert!(space.f_blocks > 0 && space.f_files > 0 && space.f_bfree == 0 && space.f_ffree == 0);
}

#[test]
fn locks_hold_between_those_who_have_a_file_open() {
    let scratch = scratch();
    let open = || OpenOptions::new().read(true).write(true).open(scratch.path("f")).unwrap();
    let (one, other) = (open(), open());
    rustix::fs::flock(&one, FlockOperation::LockExclusive).unwrap();
    let refused = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused.unwrap_err(), Errno::WOULDBLOCK);
    drop(one);
    rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    rustix::fs::fcntl_lock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn fifos_and_sockets_connect() {
    let scratch = scratch();
    let fifo = scratch.path("d/fifo");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, &fifo, kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&fifo, "through").unwrap());
        assert_eq!(fs::read(&fifo).unwrap(), b"through");
    });
    let listener = UnixListener::bind(scratch.path("d/socket")).unwrap();
    let mut client = UnixStream::connect(scratch.path("d/socket")).unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut got = String::new();
    listener.accept().unwrap().0.read_to_string(&mut got).unwrap();
    assert_eq!(
        (got.as_str(), names(scratch.path("d"))),
        ("hello", vec!["fifo".into(), "socket".into()])
    );
}

#[test]
fn groups_are_inherited_and_the_sticky_bit_holds() {
    let scratch = scratch();
    let dir = scratch.path("d");
    std::os::unix::fs::chown(&dir, None, Some(77)).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o3777)).unwrap();
    fs::write(dir.join("file"), "").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    assert_eq!(fs::metadata(dir.join("file")).unwrap().gid(), 77);
    let sub = fs::metadata(dir.join("sub")).unwrap();
    assert_eq!((sub.gid(), sub.mode() & 0o2000), (77, 0o2000));
    let script = format!("rm -f {}", dir.join("file").display());
    let run = std::process::Command::new("setpriv")
        .args(["--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c", &script])
        .output()
        .expect("this test needs root and setpriv");
    assert!(!run.status.success() && dir.join("file").exists(), "another's file was removed");
}

#[test]
fn set_user_id_programs_and_devices_of_the_mount_are_not_honoured() {
    let scratch = scratch();
    let space = rustix::fs::statvfs(scratch.root()).unwrap();
    let flags = rustix::fs::StatVfsMountFlags::NOSUID | rustix::fs::StatVfsMountFlags::NODEV;
    assert!(space.f_flag.contains(flags));
    let null = scratch.path("null");
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, &null, kind, Mode::RUSR, rustix::fs::makedev(1, 3)).unwrap();
    assert_eq!(File::open(&null).unwrap_err().raw_os_error(), Some(libc::EACCES));
}

#[test]
fn an_image_file_cut_short_under_its_mount_is_an_error_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (path, root) = (dir.path().join("image"), dir.path().join("root"));
    fs::create_dir(&root).unwrap();
    let noise: Vec<u8> =
        (0..3_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(&path, Layer::new().file("f", noise).bytes()).unwrap();
    let layer = mica_mounter::StackLayer::open("cut", &path).unwrap();
    let stack = mica_mounter::Stack { layers: vec![layer] };
    let mounted =
        mica_mounter::mount(stack, &root, &mica_mounter::MountOptions::default()).unwrap();
    let file = File::open(root.join("f")).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1_000_000).unwrap();
    let error = file.read_at(&mut [0; 4096], 8_000_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    file.read_exact_at(&mut [0; 4096], 0).unwrap();
    drop(file);
    mounted.unmount().unwrap();
}

#[test]
fn files_are_removed_fast_while_others_list_their_directory() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut layer = Layer::new();
    for n in 0..3000 {
        layer = layer.file(&format!("d/{n}"), "");
    }
    let scratch = Scratch::new(stack([layer.image()]), true);
    let (ended, dir) = (AtomicBool::new(false), scratch.path("d"));
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let seen = names(&dir);
                    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "a name comes twice");
                }
            });
        }
        for n in 0..3000 {
            fs::remove_file(dir.join(n.to_string())).unwrap();
        }
        ended.store(true, Ordering::Relaxed);
    });
    // On a quiet machine a second or two; before it was half a minute.
    assert!(begun.elapsed().as_secs() < 100, "{:?}", begun.elapsed());
    assert_eq!(names(scratch.path("d")), [""; 0]);
}

#[test]
fn flags_of_files_are_none() {
    let mut scratch = scratch();
    for writable in [true, false] {
        let mut command = std::process::Command::new("lsattr");
        let done = command.arg("-d").arg(scratch.path("f")).arg(scratch.path("d")).output();
        let done = done.expect("this test needs lsattr");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "writable {writable}: {said}");
        scratch.unmount();
        scratch.mount(stack([Layer::new().file("f", "x").dir("d").image()]), false);
    }
}

#[test]
fn directories_may_be_as_deep_as_anybody_makes_them() {
    let deep = vec!["deep-directory"; 600].join("/");
    let layer = Layer::new().file(&format!("{deep}/file"), "x");
    let mut scratch = Scratch::new(stack([layer.image()]), true);
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let enter = |count: usize, name: &str, make: bool| {
        let mut at = rustix::fs::open(scratch.root(), flags, Mode::empty()).unwrap();
        for _ in 0..count {
            if make {
                rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            at = rustix::fs::openat(&at, name, flags, Mode::empty()).unwrap();
        }
        at
    };
    // Copied up from below 8 KiB of path.
    let at = enter(600, "deep-directory", false);
    let write = OFlags::WRONLY | OFlags::APPEND;
    let file = rustix::fs::openat(&at, "file", write, Mode::empty()).unwrap();
    rustix::io::write(&file, b"y").unwrap();
    drop((file, at));
    let at = enter(1500, "d", true);
    let file = rustix::fs::openat(&at, "f", OFlags::CREATE | OFlags::RDWR, Mode::RUSR).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    drop((file, at));
    scratch.unmount();
    scratch.mount(stack([layer.image()]), true);
    let at = rustix::fs::open(scratch.root(), flags, Mode::empty()).unwrap();
    let mut at = rustix::fs::openat(&at, "deep-directory", flags, Mode::empty()).unwrap();
    for _ in 1..600 {
        at = rustix::fs::openat(&at, "deep-directory", flags, Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(&at, "file", OFlags::RDONLY, Mode::empty()).unwrap();
    let mut text = [0; 8];
    assert_eq!(rustix::io::read(&file, &mut text), Ok(2));
}

#[test]
fn no_handle_is_given_that_cannot_be_opened() {
    let scratch = scratch();
    // Python has no name for it; what is asked for is at most what is answered.
    let script = "import ctypes, os, sys\n\
                  libc = ctypes.CDLL(None, use_errno=True)\n\
                  handle = (ctypes.c_uint * 64)(128); mount = ctypes.c_int()\n\
                  done = libc.name_to_handle_at(-100, sys.argv[1].encode(), handle, ctypes.byref(mount), 0)\n\
                  print(done, os.strerror(ctypes.get_errno()))\n";
    for name in ["f", "d", ""] {
        let mut command = std::process::Command::new("python3");
        let said = command.args(["-c", script]).arg(scratch.path(name)).output().unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&said), "-1 Operation not supported\n", "{name}");
    }
}

#[test]
fn once_more_as_an_ordinary_user() {
    support::once_more_as_an_ordinary_user(&[
        // Give files to somebody else, and make devices.
        "groups_are_inherited_and_the_sticky_bit_holds",
        "set_user_id_programs_and_devices_of_the_mount_are_not_honoured",
    ]);
}
