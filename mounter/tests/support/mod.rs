//! Images in memory, and mounts of them in scratch folders.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test file uses a part

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_mounter::{Mount, MountError, MountOptions, Stack, StackLayer, Upper, UpperError, mount};
use mica_squashfs::write::{Attribute, Metadata, Node, NodeKind, Tree, WriteOptions, write};
use mica_squashfs::{Image, OpenOptions};

/// A layer in the making: paths are made with their directories.
pub struct Layer {
    tree: Tree,
}

impl Layer {
    pub fn new() -> Layer {
        Layer { tree: Tree::new(Metadata::with_mode(0o755)) }
    }

    pub fn add(mut self, path: &str, mode: u16, kind: NodeKind) -> Layer {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.tree.make_directories(dir.as_bytes()).unwrap();
        let metadata = Metadata { mtime: 1_000_000_000, ..Metadata::with_mode(mode) };
        self.tree.insert(parent, name.as_bytes(), Node { metadata, kind }).unwrap();
        self
    }

    pub fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Layer {
        self.add(path, 0o644, NodeKind::File(Box::new(content.into())))
    }

    pub fn dir(self, path: &str) -> Layer {
        self.add(path, 0o755, NodeKind::Directory)
    }

    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.add(path, 0o777, NodeKind::Symlink(target.into()))
    }

    pub fn whiteout(self, path: &str) -> Layer {
        self.add(path, 0, NodeKind::CharDevice(0))
    }

    pub fn hard_link(mut self, path: &str, target: &str) -> Layer {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.tree.make_directories(dir.as_bytes()).unwrap();
        let target = self.tree.find(target.as_bytes()).unwrap();
        self.tree.link(parent, name.as_bytes(), target).unwrap();
        self
    }

    pub fn xattr(mut self, path: &str, name: &str, value: &str) -> Layer {
        let id = self.tree.find(path.as_bytes()).unwrap();
        let attribute = Attribute { name: name.into(), value: value.into() };
        self.tree.metadata_mut(id).xattrs.push(attribute);
        self
    }

    pub fn owner(mut self, path: &str, uid: u32, gid: u32) -> Layer {
        let id = self.tree.find(path.as_bytes()).unwrap();
        let metadata = self.tree.metadata_mut(id);
        (metadata.uid, metadata.gid) = (uid, gid);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        write(&self.tree, &WriteOptions { jobs: Some(1), ..WriteOptions::default() }, &mut out)
            .unwrap();
        out.into_inner()
    }

    pub fn image(&self) -> Arc<Image> {
        image(self.bytes())
    }
}

pub fn image(bytes: Vec<u8>) -> Arc<Image> {
    Arc::new(Image::from_source(Box::new(bytes), &OpenOptions::default()).unwrap())
}

/// A stack, topmost first; layers are called `layer 0`, `layer 1`, ….
pub fn stack(images: impl IntoIterator<Item = Arc<Image>>) -> Stack {
    let layers = images.into_iter().enumerate();
    Stack {
        layers: layers.map(|(i, image)| StackLayer { name: format!("layer {i}"), image }).collect(),
    }
}

/// A mounted stack in a scratch folder.
pub struct Scratch {
    pub mount: Option<Mount>,
    pub dir: tempfile::TempDir,
}

impl Scratch {
    pub fn new(stack: Stack, writable: bool) -> Scratch {
        let dir = tempfile::tempdir().unwrap();
        let mut scratch = Scratch { mount: None, dir };
        std::fs::create_dir(scratch.root()).unwrap();
        scratch.mount(stack, writable);
        scratch
    }

    pub fn mount(&mut self, stack: Stack, writable: bool) {
        self.mount_upper(stack, writable.then(|| Upper::new(self.upper())));
    }

    pub fn mount_upper(&mut self, stack: Stack, upper: Option<Upper>) {
        self.mount_with(stack, &MountOptions { upper, ..MountOptions::default() });
    }

    pub fn mount_with(&mut self, stack: Stack, options: &MountOptions) {
        // On a busy machine the server of the mount before may need a moment more than an unmount waits for.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mounted = loop {
            match mount(stack.clone(), &self.root(), options) {
                Err(MountError::Upper(UpperError::InUse { .. }))
                    if std::time::Instant::now() < deadline =>
                {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                mounted => break mounted,
            }
        };
        self.mount = Some(mounted.unwrap_or_else(|error| {
            panic!("this test mounts FUSE, for which it needs root and /dev/fuse: {error:?}")
        }));
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub fn read(&self, path: &str) -> String {
        String::from_utf8(std::fs::read(self.path(path)).unwrap()).unwrap()
    }

    pub fn requests(&self, operation: &str) -> u64 {
        self.mount.as_ref().unwrap().stats().requests_of(operation)
    }

    pub fn unmount(&mut self) -> mica_mounter::Unmounted {
        self.mount.take().unwrap().unmount().unwrap()
    }
}

/// The names in a directory, sorted.
pub fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The user that ordinary tests are run as: it has a name, by which fusermount3 knows it.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Runs all tests of this program once more as an ordinary user, whose mounts fusermount3 makes, but for `skip`: those
/// that need what only root may do.
pub fn once_more_as_an_ordinary_user(skip: &[&str]) {
    if !rustix::process::geteuid().is_root() {
        return; // it is one already
    }
    let dir = tempfile::tempdir().unwrap();
    let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o777);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let program = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args(NOBODY).arg(&program).current_dir(dir.path()).env("TMPDIR", dir.path());
    command.args(["--skip", "once_more_as_an_ordinary_user"]);
    // A fusermount3 that is just being started holds for a moment what others have open.
    command.args(["--test-threads", "1"]);
    for test in skip {
        command.args(["--skip", test]);
    }
    let output = command.output().expect("this test needs setpriv from util-linux");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "as an ordinary user (needs fusermount3): {said}{errors}");
}
