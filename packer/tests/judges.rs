//! Our images in every reader there is: content, mode, owner, times, xattrs, hard links, devices,
//! sparse files. The judges are programs from Debian: squashfs-tools, squashfs-tools-ng, squashfuse.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "../../squashfs/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::picture::{Picture, assert_same, of_directory, of_image};
use common::{run, torture};
use mica_packer::{PackOptions, Packed, SecondOpinion, pack_dir, scan_dir, verify};
use mica_squashfs::codec::Compression;
use mica_squashfs::{Image, OpenOptions};

/// Owners and times as they are.
fn faithful() -> PackOptions {
    PackOptions { owner: None, mtime: u32::MAX, ..PackOptions::default() }
}

struct Scene {
    scratch: tempfile::TempDir,
    tree: PathBuf,
    source: Picture,
}

fn scene() -> Scene {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    let source = of_directory(&tree);
    Scene { scratch, tree, source }
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn pack(&self, name: &str, options: &PackOptions) -> (PathBuf, Packed) {
        let image = self.path(name);
        let packed = pack_dir(&self.tree, &image, options).unwrap();
        (image, packed)
    }
}

/// Link counts of directories are the file system's own business: ext4 and squashfs count
/// subdirectories, overlayfs and others do not.
fn without_directory_links(mut picture: Picture) -> Picture {
    for node in picture.values_mut() {
        if node.mode & 0o170000 == 0o040000 {
            node.nlink = 0;
        }
    }
    picture
}

#[test]
fn our_reader_and_backhand_see_the_source_in_every_format() {
    let scene = scene();
    let formats = [
        (Compression::Zstd, None, 128 << 10),
        (Compression::Zstd, Some(1), 4 << 10),
        (Compression::Zstd, Some(12), 1 << 20),
        (Compression::Gzip, None, 128 << 10),
        (Compression::Lz4, None, 64 << 10),
        (Compression::Xz, Some(1), 256 << 10),
        (Compression::None, None, 128 << 10),
    ];
    let scan = scan_dir(&scene.tree, &faithful().scan()).unwrap();
    for (compression, level, block_size) in formats {
        let options = PackOptions { compression, level, block_size, ..faithful() };
        let (image, _) = scene.pack("image", &options);
        let opened = Image::open(&image, &OpenOptions::default()).unwrap();
        let what = format!("{compression} {block_size}");
        assert_same(
            &without_directory_links(scene.source.clone()),
            &without_directory_links(of_image(&opened)),
            &what,
        );
        let verified = verify(&image, &scan).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(verified.entries as usize, scene.source.len());
        // The torture tree has a symlink that backhand cannot read.
        assert!(matches!(verified.second_opinion, SecondOpinion::None(_)), "{what}");
    }
    fs::remove_file(scene.tree.join("links/long")).unwrap();
    let scan = scan_dir(&scene.tree, &faithful().scan()).unwrap();
    for compression in [Compression::Zstd, Compression::Gzip] {
        let (image, _) = scene.pack("image", &PackOptions { compression, ..faithful() });
        let verified = verify(&image, &scan).unwrap();
        assert_eq!(verified.second_opinion, SecondOpinion::Agrees);
    }
}

#[test]
fn unsquashfs_extracts_the_source_from_every_format() {
    let scene = scene();
    let formats = [
        (Compression::Zstd, 128 << 10),
        (Compression::Gzip, 4 << 10),
        (Compression::Lz4, 1 << 20),
        (Compression::Xz, 64 << 10),
        (Compression::None, 128 << 10),
    ];
    for (compression, block_size) in formats {
        let options = PackOptions { compression, level: None, block_size, ..faithful() };
        let (image, packed) = scene.pack("image", &options);
        let out = scene.path(compression.name());
        run("unsquashfs", &[&"-q", &"-n", &"-o", &"4096", &"-d", &out, &image]);
        let extracted = of_directory(&out);
        assert_same(
            &without_directory_links(scene.source.clone()),
            &without_directory_links(extracted),
            compression.name(),
        );
        let listing = run("unsquashfs", &[&"-o", &"4096", &"-lln", &image]);
        assert!(listing.split(|&b| b == b'\n').count() as u64 > packed.inodes);
    }
}

/// Unmounts at the end of a test, also of one that fails.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || status.unwrap().success());
    }
}

#[test]
fn the_kernel_mounts_the_source() {
    let scene = scene();
    for compression in [Compression::Zstd, Compression::Gzip, Compression::Lz4, Compression::Xz] {
        let options = PackOptions { compression, ..faithful() };
        let (image, _) = scene.pack("image", &options);
        let point = scene.path("mounted");
        fs::create_dir_all(&point).unwrap();
        run("mount", &[&"-t", &"squashfs", &"-o", &"loop,ro,offset=4096", &image, &point]);
        let _mounted = Mounted(point.clone());
        assert_same(
            &without_directory_links(scene.source.clone()),
            &without_directory_links(of_directory(&point)),
            compression.name(),
        );
    }
}

#[test]
fn squashfuse_serves_the_source() {
    let scene = scene();
    let (image, _) = scene.pack("image", &faithful());
    let point = scene.path("mounted");
    fs::create_dir(&point).unwrap();
    run("squashfuse", &[&"-o", &"offset=4096", &image, &point]);
    let _mounted = Mounted(point.clone());
    // squashfuse knows device numbers of 16 bits only and lists xattrs that it does not give.
    let (want, got) = (without_xattrs(&scene.tree), without_xattrs(&point));
    assert_eq!(got.len(), want.len());
    for (path, node) in &want {
        assert_eq!(&got[path], node, "{}", path.display());
    }
}

/// Mode, owner, time, size, content or target by path.
type Plain = BTreeMap<PathBuf, (u32, u32, u32, i64, u64, Vec<u8>)>;

fn without_xattrs(root: &Path) -> Plain {
    let (mut found, mut stack) = (Plain::new(), vec![root.to_owned()]);
    while let Some(path) = stack.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let content = match kind {
            kind if kind.is_file() => fs::read(&path).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_vec(),
            _ => Vec::new(),
        };
        if kind.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let size = if kind.is_dir() { 0 } else { metadata.size() };
        let m = &metadata;
        let node = (m.mode(), m.uid(), m.gid(), m.mtime(), size, content);
        found.insert(path.strip_prefix(root).unwrap().to_owned(), node);
    }
    found
}

#[test]
fn sqfs2tar_makes_the_source() {
    let scene = scene();
    let plain = PackOptions { header: None, ..faithful() };
    let (image, _) = scene.pack("image", &plain);
    let tar = scene.path("tar");
    fs::write(&tar, run("sqfs2tar", &[&image])).unwrap();
    let out = scene.path("out");
    fs::create_dir(&out).unwrap();
    let args: [&dyn AsRef<OsStr>; 8] =
        [&"-x", &"-p", &"--numeric-owner", &"--xattrs-include=*", &"-f", &tar, &"-C", &out];
    run("tar", &args);
    let seen = of_directory(&out);
    for (path, want) in &scene.source {
        // A tar archive has no sockets, and sqfs2tar none of the root itself.
        if want.mode & 0o170000 == 0o140000 || path.is_empty() {
            continue;
        }
        let got = &seen[path];
        let both = |node: &common::picture::Node| {
            (
                node.mode,
                node.uid,
                node.gid,
                node.mtime,
                node.size,
                node.content.clone(),
                node.device,
            )
        };
        assert_eq!(both(got), both(want), "{}", String::from_utf8_lossy(path));
    }
}

#[test]
fn the_header_is_one_that_xarexec_takes_and_a_shell_refuses() {
    let scene = scene();
    let (image, packed) = scene.pack("image.xar", &PackOptions::default());
    let output = std::process::Command::new("sh").arg(&image).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"This XAR file should not be executed by sh\n");
    let bytes = fs::read(&image).unwrap();
    assert_eq!(bytes.len() as u64, packed.size);
    assert_eq!(blake3::hash(&bytes), blake3::Hash::from_bytes(*packed.digest.as_bytes()));
    let header = mica_squashfs::XarHeader::parse(&bytes).unwrap();
    assert_eq!(header.offset, 4096);
    assert_eq!(header.version.as_deref(), Some("0"));
    let payload = blake3::hash(&bytes[4096..]).to_hex();
    assert_eq!(header.uuid.as_deref(), Some(&payload[..8]));
    assert!(Path::new(&image).exists());
}

#[test]
fn cpython_takes_what_was_compiled_before_packing() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    fs::create_dir_all(path("tree/package")).unwrap();
    for name in [
        "package/__init__",
        "package/good",
        "package/stale",
        "good",
        "optimised",
        "by_hash",
        "dot.ted",
    ] {
        fs::write(path(&format!("tree/{name}.py")), format!("name = {name:?}\n")).unwrap();
    }
    let python = |arguments: &[&dyn AsRef<OsStr>]| run("python3", arguments);
    let tree = path("tree");
    let tree = tree.to_str().unwrap();
    python(&[&"-m", &"compileall", &"-q", &"-x", &"by_hash|optimised", &tree]);
    python(&[&"-O", &"-m", &"compileall", &"-q", &format!("{tree}/optimised.py")]);
    python(&[
        &"-m",
        &"compileall",
        &"-q",
        &"--invalidation-mode",
        &"checked-hash",
        &format!("{tree}/by_hash.py"),
    ]);
    // Changed since it was compiled, to something of the same length.
    fs::write(path("tree/package/stale.py"), "name = 'package/fresh'\n").unwrap();
    let later = SystemTime::now() + Duration::from_secs(60);
    fs::File::open(path("tree/package/stale.py")).unwrap().set_modified(later).unwrap();

    let image = path("image");
    let packed = pack_dir(Path::new(tree), &image, &PackOptions::default()).unwrap();
    let unpacked = path("unpacked");
    run("unsquashfs", &[&"-q", &"-n", &"-o", &"4096", &"-d", &unpacked, &image]);
    let verdict = |flags: &[&str], module: &str| {
        let program = format!(
            "import sys, importlib; sys.path.insert(0, {unpacked:?}); print(importlib.import_module({module:?}).name)"
        );
        let done = std::process::Command::new("python3")
            .args(flags)
            .args(["-v", "-B", "-c", &program])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        let path = format!("{}.py", unpacked.join(module.replace('.', "/")).display());
        let fresh = said.lines().any(|line| line.contains(" matches ") && line.ends_with(&path));
        (fresh, String::from_utf8(done.stdout).unwrap().trim().to_owned())
    };
    let is = |fresh: bool, name: &str| (fresh, name.to_owned());
    assert_eq!(verdict(&[], "good"), is(true, "good"));
    assert_eq!(verdict(&[], "package.good"), is(true, "package/good"));
    assert_eq!(verdict(&["-O"], "optimised"), is(true, "optimised"));
    assert_eq!(verdict(&[], "by_hash"), is(true, "by_hash"));
    // Never what was compiled from an earlier source.
    assert_eq!(verdict(&[], "package.stale"), is(false, "package/fresh"));

    // Whoever needs no time keeps none.
    let times = |name: &str| fs::metadata(unpacked.join(name)).unwrap().mtime();
    assert_ne!(times("dot.ted.py"), 0);
    for name in ["by_hash.py", "package/stale.py", "package", "__pycache__"] {
        assert_eq!(times(name), 0, "{name}");
    }
    let again = pack_dir(
        Path::new(tree),
        &path("again"),
        &PackOptions { jobs: Some(1), ..PackOptions::default() },
    );
    assert_eq!(again.unwrap().digest, packed.digest);
}
