//! Random operations on a mount and on a plain directory: every call must answer the same, and the trees must be
//! the same at the end, after a remount, and when the kernel's own overlayfs takes the upper over.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mica_mounter::{Marks, MountOptions, Upper};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use support::{Layer, Scratch, image, stack};

#[derive(Debug, Clone)]
enum Op {
    Write(&'static str, usize),
    Append(&'static str),
    Truncate(&'static str, u64),
    Mkdir(&'static str),
    Rmdir(&'static str),
    Unlink(&'static str),
    Rename(&'static str, &'static str, u32),
    Link(&'static str, &'static str),
    Symlink(&'static str),
    Chmod(&'static str, u32),
    SetXattr(&'static str),
    Read(&'static str),
    List(&'static str),
}

const PATHS: [&str; 16] = [
    "a", "b", "l", "d", "d/a", "d/s", "d/s/b", "d/n", "e", "e/a", "e/d", "e/d/a", "gone", "n",
    "n/x", "n/s",
];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let path = || prop::sample::select(PATHS.to_vec());
    let op = prop_oneof![
        (path(), 0usize..5000).prop_map(|(p, n)| Op::Write(p, n)),
        path().prop_map(Op::Append),
        (path(), 0u64..9000).prop_map(|(p, n)| Op::Truncate(p, n)),
        path().prop_map(Op::Mkdir),
        path().prop_map(Op::Rmdir),
        path().prop_map(Op::Unlink),
        path().prop_map(Op::Unlink),
        (path(), path(), 0u32..3).prop_map(|(p, q, f)| Op::Rename(p, q, f)),
        (path(), path(), Just(0)).prop_map(|(p, q, f)| Op::Rename(p, q, f)),
        (path(), path()).prop_map(|(p, q)| Op::Link(p, q)),
        path().prop_map(Op::Symlink),
        (path(), 0u32..0o1000).prop_map(|(p, m)| Op::Chmod(p, m)),
        path().prop_map(Op::SetXattr),
        path().prop_map(Op::Read),
        path().prop_map(Op::List),
    ];
    prop::collection::vec(op, 1..30)
}

fn write(path: PathBuf, flags: OFlags, data: &[u8]) -> Result<String, Errno> {
    let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
    rustix::io::write(&fd, data)?;
    Ok(String::new())
}

fn run(root: &Path, op: &Op) -> Result<String, Errno> {
    let done = |()| String::new();
    match *op {
        Op::Write(p, n) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
            write(root.join(p), flags, &vec![b'w'; n])
        }
        Op::Append(p) => {
            write(root.join(p), OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW, b"more")
        }
        Op::Truncate(p, n) => {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::open(root.join(p), flags, Mode::empty())?;
            rustix::fs::ftruncate(fd, n).map(done)
        }
        Op::Mkdir(p) => rustix::fs::mkdir(root.join(p), Mode::from_raw_mode(0o755)).map(done),
        Op::Rmdir(p) => rustix::fs::rmdir(root.join(p)).map(done),
        Op::Unlink(p) => rustix::fs::unlink(root.join(p)).map(done),
        Op::Rename(p, q, flag) => {
            let flags = [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
            let flag = flags[flag as usize];
            rustix::fs::renameat_with(CWD, root.join(p), CWD, root.join(q), flag).map(done)
        }
        Op::Link(p, q) => {
            rustix::fs::linkat(CWD, root.join(p), CWD, root.join(q), AtFlags::empty()).map(done)
        }
        Op::Symlink(p) => rustix::fs::symlink("a", root.join(p)).map(done),
        Op::Chmod(p, mode) => {
            let path = root.join(p);
            if path.is_symlink() {
                return Ok(String::new());
            }
            rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map(done)
        }
        Op::SetXattr(p) => {
            let path = root.join(p);
            rustix::fs::lsetxattr(path, "user.k", b"v", XattrFlags::empty()).map(done)
        }
        Op::Read(p) => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::open(root.join(p), flags, Mode::empty())?;
            let mut buffer = vec![0; 10_000];
            let read = rustix::io::read(&fd, &mut buffer)?;
            Ok(format!("{:?}", &buffer[..read]))
        }
        Op::List(p) => {
            let entries = fs::read_dir(root.join(p))
                .map_err(|e| Errno::from_raw_os_error(e.raw_os_error().unwrap_or_default()))?;
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            Ok(format!("{names:?}"))
        }
    }
}

/// Everything that is to be equal, by path. Hard links show as the first path of their file; their count is left out,
/// since a link of a layer that was removed is still counted by the others until they are copied up.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(
        root: &Path,
        dir: &Path,
        firsts: &mut BTreeMap<(u64, u64), String>,
        out: &mut BTreeMap<String, String>,
    ) {
        // An ordinary user sees no more than its modes allow.
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut names: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        names.sort();
        for path in names {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let mut value = [0; 8];
            let xattr = rustix::fs::lgetxattr(&path, "user.k", &mut value).unwrap_or(0);
            let mut text = format!("{:o} xattr {xattr}", meta.mode());
            if meta.is_dir() {
                walk(root, &path, firsts, out);
            } else {
                let first = firsts.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone());
                text += &format!(" as {first}, {} bytes", meta.len());
                if meta.is_symlink() {
                    text += &format!(" -> {:?}", fs::read_link(&path).unwrap());
                } else {
                    text += &format!(
                        " {:?}",
                        fs::read(&path)
                            .map(|read| read.iter().map(|&b| u64::from(b)).sum::<u64>())
                            .ok()
                    );
                }
            }
            out.insert(name, text);
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut BTreeMap::new(), &mut out);
    out
}

fn layers() -> [Vec<u8>; 2] {
    let top = Layer::new().file("d/a", "top").file("e/d/a", "deep").whiteout("gone");
    let base = Layer::new()
        .file("a", "base")
        .file("d/a", "hidden")
        .file("d/s/b", vec![5; 4000])
        .hard_link("b", "d/s/b")
        .symlink("l", "d/a")
        .dir("e/d")
        .file("gone", "hidden");
    [top.bytes(), base.bytes()]
}

fn plain(root: &Path) {
    fs::create_dir_all(root.join("d/s")).unwrap();
    fs::create_dir_all(root.join("e/d")).unwrap();
    for (path, content) in [
        ("a", b"base".to_vec()),
        ("d/a", b"top".to_vec()),
        ("e/d/a", b"deep".to_vec()),
        ("b", vec![5; 4000]),
    ] {
        fs::write(root.join(path), content).unwrap();
    }
    fs::hard_link(root.join("b"), root.join("d/s/b")).unwrap();
    std::os::unix::fs::symlink("d/a", root.join("l")).unwrap();
}

/// The tree as the kernel's overlayfs shows the upper over the same layers.
fn by_the_kernel(scratch: &Scratch, layers: &[Vec<u8>], form: &str) -> BTreeMap<String, String> {
    let mut lower = Vec::new();
    for (index, bytes) in layers.iter().enumerate() {
        let (image, dir) = (
            scratch.dir.path().join(format!("{index}.img")),
            scratch.dir.path().join(format!("{index}")),
        );
        fs::write(&image, bytes).unwrap();
        fs::create_dir(&dir).unwrap();
        run_tool(
            "mount",
            &["-t", "squashfs", "-o", "loop,ro", image.to_str().unwrap(), dir.to_str().unwrap()],
        );
        lower.push(dir.to_str().unwrap().to_owned());
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}.work,index=off,{form}",
        lower.join(":"),
        scratch.upper().display(),
        scratch.upper().display()
    );
    let root = scratch.root();
    run_tool("mount", &["-t", "overlay", "overlay", "-o", &options, root.to_str().unwrap()]);
    let seen = std::panic::catch_unwind(|| tree(&root));
    run_tool("umount", &[root.to_str().unwrap()]);
    lower.iter().for_each(|dir| run_tool("umount", &[dir]));
    seen.unwrap()
}

fn run_tool(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "this test needs root, squashfs and overlayfs: {program} {args:?}: {text}"
    );
}

/// In the form that users other than root have, whose marks the kernel reads with `userxattr`; it follows no renamed
/// directories then.
#[test]
fn the_kernel_takes_over_an_upper_with_marks_of_users() {
    let base = Layer::new()
        .file("big", vec![1; 1 << 20])
        .file("d/a", "a")
        .file("d/s/b", "b")
        .file("e/f", "f")
        .file("gone/deep/x", "x");
    let bytes = [Layer::new().file("d/top", "top").bytes(), base.bytes()];
    let stacked = || stack(bytes.iter().map(|bytes| image(bytes.clone())));
    let mut scratch = Scratch::new(stacked(), false);
    scratch.unmount();
    let (upper, marks) = (Some(Upper::new(scratch.upper())), Marks::User);
    scratch.mount_with(stacked(), &MountOptions { upper, marks, ..MountOptions::default() });
    let append = OFlags::WRONLY | OFlags::APPEND;
    write(scratch.path("big"), append, b"more").unwrap();
    fs::remove_file(scratch.path("d/a")).unwrap();
    fs::rename(scratch.path("d/s/b"), scratch.path("moved")).unwrap();
    fs::remove_dir_all(scratch.path("gone")).unwrap();
    fs::remove_dir_all(scratch.path("e")).unwrap();
    fs::create_dir(scratch.path("e")).unwrap();
    fs::write(scratch.path("e/new"), "new").unwrap();
    let want = tree(&scratch.root());
    scratch.unmount();
    assert_eq!(by_the_kernel(&scratch, &bytes, "userxattr"), want);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_mount_behaves_like_a_directory(ops in ops()) {
        let bytes = layers();
        let stacked = || stack(bytes.iter().map(|bytes| image(bytes.clone())));
        let mut scratch = Scratch::new(stacked(), true);
        let other = scratch.dir.path().join("plain");
        plain(&other);
        prop_assert_eq!(tree(&scratch.root()).keys().cloned().collect::<Vec<_>>(), tree(&other).keys().cloned().collect::<Vec<_>>());
        for op in &ops {
            let (ours, theirs) = (run(&scratch.root(), op), run(&other, op));
            prop_assert_eq!(ours, theirs, "{:?}", op);
        }
        let want = tree(&other);
        prop_assert_eq!(&tree(&scratch.root()), &want, "at the end");
        scratch.unmount();
        scratch.mount(stacked(), true);
        prop_assert_eq!(&tree(&scratch.root()), &want, "after a remount");
        scratch.unmount();
        // An ordinary user mounts no overlayfs.
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        prop_assert_eq!(&by_the_kernel(&scratch, &bytes, "redirect_dir=on"), &want, "by the kernel's overlayfs");
    }
}

#[test]
fn once_more_as_an_ordinary_user() {
    support::once_more_as_an_ordinary_user(&["the_kernel_takes_over_an_upper_with_marks_of_users"]);
}
