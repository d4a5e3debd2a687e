//! An ordinary user in a user and mount namespace of its own: no root, no fusermount3.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use support::{Layer, Scratch, names, stack};

const CHILD: &str = "MICA_MOUNTER_ROOTLESS_CHILD";

/// Opens /dev/fuse to everybody, as udev does, and puts the mode back.
struct OpenDevice(fs::Permissions);

impl OpenDevice {
    fn new() -> OpenDevice {
        let old = fs::metadata("/dev/fuse").expect("this test needs /dev/fuse").permissions();
        if old.mode() & 0o666 != 0o666 {
            fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666))
                .expect("/dev/fuse is closed to ordinary users, and only root can open it");
        }
        OpenDevice(old)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        if self.0.mode() & 0o666 != 0o666 {
            fs::set_permissions("/dev/fuse", self.0.clone()).unwrap();
        }
    }
}

#[test]
fn a_user_mounts_in_a_namespace_of_its_own() {
    if std::env::var_os(CHILD).is_some() {
        return in_the_namespace();
    }
    let _device = OpenDevice::new();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare"]);
        command
    } else {
        Command::new("unshare")
    };
    let output = command
        .args(["-Urm"])
        .arg(&program)
        .args(["--exact", "a_user_mounts_in_a_namespace_of_its_own", "--nocapture"])
        .env(CHILD, "1")
        .env("TMPDIR", dir.path())
        .output()
        .expect("this test needs setpriv and unshare from util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
    // The namespace is gone, and with it the mount; what was written is there.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
}

fn in_the_namespace() {
    let layer = Layer::new()
        .file("f", "base")
        .file("d/a", "a")
        .file("other", "not mapped here")
        .owner("other", 33, 33);
    let mut scratch = Scratch::new(stack([layer.image()]), true);
    assert_eq!(fs::metadata(scratch.path("other")).unwrap().uid(), 0);
    fs::write(scratch.path("f"), "changed").unwrap();
    fs::write(scratch.path("other"), "mine").unwrap();
    fs::rename(scratch.path("d"), scratch.path("e")).unwrap();
    fs::create_dir(scratch.path("d")).unwrap();
    // A process in a namespace below: what a job is.
    let below = Command::new("unshare").arg("-Ur").arg("cat").arg(scratch.path("e/a")).output();
    assert_eq!(below.unwrap().stdout, b"a");
    scratch.unmount();
    scratch.mount(stack([layer.image()]), true);
    assert_eq!(names(scratch.root()), ["d", "e", "f", "other"]);
    assert_eq!((names(scratch.path("d")), names(scratch.path("e"))), (vec![], vec!["a".into()]));
    assert_eq!((scratch.read("f"), scratch.read("other")), ("changed".into(), "mine".into()));
    // The process ends with the mount in place: the namespace takes it down.
    std::mem::forget(scratch.mount.take());
}
