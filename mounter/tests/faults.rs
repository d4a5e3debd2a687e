//! What goes wrong stays where it is.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mica_mounter::{MountError, MountOptions, Stack, Unmounted, Upper, UpperError, mount};
use mica_squashfs::{Image, OpenOptions, Source};
use support::{Layer, Scratch, image, names, stack};

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// An image that can't be read once it is broken.
struct Fragile {
    bytes: Vec<u8>,
    broken: Arc<AtomicBool>,
    /// Reading it is a bug then.
    panics: bool,
}

impl Source for Fragile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            assert!(!self.panics, "a bug made for a test");
            return Err(io::Error::other("the image was truncated"));
        }
        self.bytes.read_exact_at(buf, offset)
    }
}

#[test]
fn a_damaged_block_is_an_error_of_its_file_alone() {
    let text = b"mica ".repeat(60_000);
    let mut bytes = Layer::new().file("bad", text).file("good", "fine").bytes();
    // The content of the first file comes right behind the superblock.
    for byte in &mut bytes[120..160] {
        *byte ^= 0x5a;
    }
    let scratch = Scratch::new(stack([image(bytes)]), false);
    let error = fs::read(scratch.path("bad")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert_eq!(scratch.read("good"), "fine");
    assert_eq!(names(scratch.root()), ["bad", "good"]);
}

fn breaks_and_comes_back(panics: bool) {
    let broken = Arc::new(AtomicBool::new(false));
    let bytes = Layer::new().file("f", noise(400_000)).bytes();
    let source = Fragile { bytes, broken: Arc::clone(&broken), panics };
    let fragile = Image::from_source(Box::new(source), &OpenOptions::default()).unwrap();
    let whole = Layer::new().file("g", "fine").image();
    let scratch = Scratch::new(stack([Arc::new(fragile), whole]), false);
    assert_eq!(names(scratch.root()), ["f", "g"]);
    broken.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let error = fs::read(scratch.path("f")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    }
    assert_eq!(scratch.read("g"), "fine");
    broken.store(false, Ordering::Relaxed);
    assert_eq!(fs::read(scratch.path("f")).unwrap(), noise(400_000));
}

#[test]
fn an_image_that_goes_away_is_an_error_and_not_the_end() {
    breaks_and_comes_back(false);
}

#[test]
fn a_panic_costs_the_requests_it_comes_from_and_no_others() {
    breaks_and_comes_back(true);
}

#[test]
fn one_upper_serves_one_mount() {
    let layer = Layer::new().file("f", "x").image();
    let mut scratch = Scratch::new(stack([Arc::clone(&layer)]), true);
    let second = tempfile::tempdir().unwrap();
    let options =
        MountOptions { upper: Some(Upper::new(scratch.upper())), ..MountOptions::default() };
    let error = mount(stack([Arc::clone(&layer)]), second.path(), &options).unwrap_err();
    assert!(matches!(error, MountError::Upper(UpperError::InUse { .. })), "{error:?}");
    assert_eq!(scratch.unmount(), Unmounted::Clean);
    mount(stack([layer]), second.path(), &options).unwrap().unmount().unwrap();
}

#[test]
fn bad_mount_points_and_empty_stacks_are_refused() {
    let layer = Layer::new().image();
    let options = MountOptions::default();
    let missing = mount(stack([Arc::clone(&layer)]), Path::new("/nowhere/at/all"), &options);
    assert!(matches!(missing.unwrap_err(), MountError::MountPoint { .. }));
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = mount(stack([layer]), file.path(), &options).unwrap_err();
    assert!(matches!(error, MountError::MountPoint { .. }));
    let error = mount(Stack::default(), Path::new("/"), &options).unwrap_err();
    assert!(matches!(error, MountError::Empty));
}

#[test]
fn a_busy_mount_goes_lazily_and_is_served_to_the_end() {
    use std::io::Read;
    let mut scratch = Scratch::new(stack([Layer::new().file("f", noise(300_000)).image()]), true);
    let mut open = fs::File::open(scratch.path("f")).unwrap();
    assert_eq!(scratch.unmount(), Unmounted::Lazy);
    assert!(!scratch.path("f").exists());
    let mut content = Vec::new();
    open.read_to_end(&mut content).unwrap();
    assert_eq!(content, noise(300_000));
}

#[test]
fn a_mount_taken_down_by_others_is_noticed() {
    let mut scratch = Scratch::new(stack([Layer::new().image()]), false);
    rustix::mount::unmount(scratch.root(), rustix::mount::UnmountFlags::empty()).unwrap();
    scratch.mount.take().unwrap().wait();
}

#[test]
fn an_idle_mount_takes_itself_down() {
    let dir = tempfile::tempdir().unwrap();
    let idle_timeout = Some(std::time::Duration::from_millis(50));
    let options = MountOptions { idle_timeout, ..MountOptions::default() };
    let layer = Layer::new().file("f", "x").image();
    let mounted = mount(stack([layer]), dir.path(), &options).unwrap();
    fs::read(dir.path().join("f")).unwrap();
    mounted.wait();
    assert!(!dir.path().join("f").exists());
}

#[test]
fn a_file_without_its_content_is_an_error_not_zeros() {
    let layer = Layer::new().file("f", vec![0; 5000]).xattr("f", "trusted.overlay.metacopy", "");
    let scratch = Scratch::new(stack([layer.image()]), true);
    assert!(fs::read(scratch.path("f")).is_err());
    assert!(fs::OpenOptions::new().append(true).open(scratch.path("f")).is_err());
}

#[test]
fn what_a_killed_server_left_is_cleaned_up_by_the_next_mount() {
    use std::process::{Command, Stdio};
    const CHILD: &str = "MICA_MOUNTER_KILLED_CHILD";
    let layer = Layer::new().file("f", "x");
    if let Some(dir) = std::env::var_os(CHILD) {
        let mounted = mount(stack([layer.image()]), Path::new(&dir), &MountOptions::default());
        mounted.unwrap().wait();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_killed_server_left_is_cleaned_up_by_the_next_mount"])
        .env(CHILD, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !dir.path().join("f").exists() {
        assert!(std::time::Instant::now() < deadline, "the other server didn't start");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(fs::read(dir.path().join("f")).is_err());
    let mounted = mount(stack([layer.image()]), dir.path(), &MountOptions::default()).unwrap();
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"x");
    mounted.unmount().unwrap();
    assert!(!mica_mounter::detach_dead(dir.path()).unwrap());
}

#[test]
fn an_upper_keeps_the_form_of_its_marks() {
    use mica_mounter::Marks;
    let layer = Layer::new().file("d/f", "x").image();
    let dir = tempfile::tempdir().unwrap();
    let (root, upper) = (dir.path().join("root"), Upper::new(dir.path().join("upper")));
    fs::create_dir(&root).unwrap();
    let options =
        |marks| MountOptions { upper: Some(upper.clone()), marks, ..MountOptions::default() };
    let mounted = mount(stack([Arc::clone(&layer)]), &root, &options(Marks::User)).unwrap();
    fs::rename(root.join("d"), root.join("e")).unwrap();
    mounted.unmount().unwrap();
    let error = mount(stack([Arc::clone(&layer)]), &root, &options(Marks::Trusted)).unwrap_err();
    assert!(matches!(error, MountError::Upper(UpperError::OtherMarks { .. })), "{error:?}");
    let mounted = mount(stack([layer]), &root, &options(Marks::Auto)).unwrap();
    assert_eq!(names(root.join("e")), ["f"]);
    mounted.unmount().unwrap();
}

#[test]
fn whiteouts_made_of_attributes_are_understood() {
    let layer = Layer::new().file("d/f", "x").file("d/g", "x").image();
    let mut scratch = Scratch::new(stack([Arc::clone(&layer)]), true);
    fs::remove_file(scratch.path("d/f")).unwrap();
    scratch.unmount();
    let (d, f) = (scratch.upper().join("d"), scratch.upper().join("d/f"));
    let flags = rustix::fs::XattrFlags::empty();
    fs::remove_file(&f).unwrap();
    fs::write(&f, "").unwrap();
    rustix::fs::setxattr(&f, "trusted.overlay.whiteout", b"y", flags).unwrap();
    rustix::fs::setxattr(&d, "trusted.overlay.opaque", b"x", flags).unwrap();
    scratch.mount(stack([layer]), true);
    assert_eq!(names(scratch.path("d")), ["g"]);
    assert!(!scratch.path("d/f").exists());
    fs::write(scratch.path("d/f"), "again").unwrap();
    assert_eq!(names(scratch.path("d")), ["f", "g"]);
}
