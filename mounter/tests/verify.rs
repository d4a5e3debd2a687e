//! Image files that change under the mount, with and without verification.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use mica_mounter::{ChunkTable, MountOptions, Stack, StackLayer, Verify, mount};
use support::Layer;

/// What the server logs, for the whole process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() -> String {
    static START: OnceLock<()> = OnceLock::new();
    START.get_or_init(|| {
        tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init();
    });
    String::from_utf8(LOG.lock().unwrap().clone()).unwrap()
}

/// Not compressible, and no two blocks alike.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

fn table(bytes: &[u8]) -> ChunkTable {
    let mut table = ChunkTable::default();
    for chunk in bytes.chunks(50_000) {
        table.push(chunk.len() as u32, *blake3::hash(chunk).as_bytes());
    }
    table
}

/// Mounts the layer from a file that the test can change.
fn mounted(dir: &Path, name: &str, layer: &Layer, verify: Verify) -> mica_mounter::Mount {
    log();
    let (image, at) = (dir.join("image"), dir.join("tree"));
    fs::write(&image, layer.bytes()).unwrap();
    fs::create_dir(&at).unwrap();
    let table = table(&layer.bytes());
    let layer = StackLayer::open_verified(name, &image, table, verify).unwrap();
    let mounted = mount(Stack { layers: vec![layer] }, &at, &MountOptions::default());
    mounted.expect("this test mounts FUSE, for which it needs root and /dev/fuse")
}

fn layer() -> Layer {
    Layer::new().file("a/bad", noise(400_000, 1)).file("good", noise(400_000, 2))
}

/// Changes a byte in the middle of the third block of the file.
fn damage(dir: &Path) {
    let bytes = fs::read(dir.join("image")).unwrap();
    let block = &noise(400_000, 1)[2 * 131_072..][..64];
    let at = bytes.windows(64).position(|window| window == block).unwrap() as u64 + 70_000;
    let image = fs::OpenOptions::new().write(true).open(dir.join("image")).unwrap();
    image.write_all_at(&[!bytes[at as usize]], at).unwrap();
}

#[test]
fn a_flipped_bit_is_an_error_of_its_file_and_named_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = mounted(dir.path(), "//flipped:layer", &layer(), Verify::FirstRead);
    damage(dir.path());
    let error = fs::read(mounted.path().join("a/bad")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let log = log();
    let line = log.lines().find(|line| line.contains("//flipped:layer")).unwrap();
    assert!(line.contains("path=\"a/bad\"") && line.contains("block=2"), "{line}");
    assert!(line.contains("BLAKE3"), "{line}");
    fs::metadata(mounted.path().join("good")).unwrap();
    let good = fs::File::open(mounted.path().join("good")).unwrap();
    good.read_exact_at(&mut [0; 1000], 390_000).unwrap();
}

#[test]
fn without_verification_what_decodes_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = mounted(dir.path(), "never", &layer(), Verify::Never);
    damage(dir.path());
    assert_ne!(fs::read(mounted.path().join("a/bad")).unwrap(), noise(400_000, 1));
}

#[test]
fn an_image_cut_short_under_the_mount_is_an_error_of_the_files_that_are_gone() {
    for verify in [Verify::Never, Verify::FirstRead, Verify::Always] {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("//cut:{verify:?}");
        let mounted = mounted(dir.path(), &name, &layer(), verify);
        assert_eq!(support::names(mounted.path().join("a")), ["bad"]);
        fs::metadata(mounted.path().join("a/bad")).unwrap();
        fs::metadata(mounted.path().join("good")).unwrap();
        let image = fs::OpenOptions::new().write(true).open(dir.path().join("image")).unwrap();
        image.set_len(250_000).unwrap();
        let error = fs::read(mounted.path().join("good")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(log().contains(&name));
    }
}

#[test]
fn an_image_that_is_removed_or_replaced_by_rename_is_read_on() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = mounted(dir.path(), "replaced", &layer(), Verify::Always);
    fs::write(dir.path().join("other"), noise(900_000, 3)).unwrap();
    fs::rename(dir.path().join("other"), dir.path().join("image")).unwrap();
    assert_eq!(fs::read(mounted.path().join("a/bad")).unwrap(), noise(400_000, 1));
    fs::remove_file(dir.path().join("image")).unwrap();
    assert_eq!(fs::read(mounted.path().join("good")).unwrap(), noise(400_000, 2));
}
