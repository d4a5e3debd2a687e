//! What the tests share: running the judges, a tree that has everything, and a picture of a tree to compare.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use mica_squashfs::read::walk;
use mica_squashfs::{Image, InodeKind};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};

pub mod crafted;
pub mod picture;
pub mod second;
pub mod torture;

/// Runs a command and gives its standard output; fails with everything that helps if it does not work.
pub fn run(program: &str, args: &[&dyn AsRef<OsStr>]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(args.iter().map(|a| a.as_ref()));
    let output = command.output().unwrap_or_else(|e| {
        panic!("cannot run {program}: {e} (apt-get install squashfs-tools squashfs-tools-ng squashfuse)")
    });
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Says so if the test needs root and does not have it.
pub fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes device nodes and trusted xattrs: run it as root"
    );
}

/// Packs a directory with mksquashfs.
pub fn mksquashfs(tree: &Path, out: &Path, options: &str) {
    let script = format!("mksquashfs \"$0\" \"$1\" -noappend -quiet -no-progress {options}");
    run("sh", &[&"-c", &script, &tree, &out]);
}
