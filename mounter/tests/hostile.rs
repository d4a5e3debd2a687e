//! Images that somebody made to keep the server busy, or its callers waiting.
#![allow(clippy::unwrap_used)]

#[path = "../../squashfs/tests/common/crafted.rs"]
mod crafted;
mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crafted::{Crafted, Parents};
use mica_mounter::View;
use support::{Layer, Scratch, image, names, stack};

/// Fails if it takes longer than anything bounded does.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = channel();
    std::thread::spawn(move || sender.send(work()));
    done.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|e| panic!("{what}: {e}"))
}

fn append(path: &Path, text: &str) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn looping() -> Vec<(&'static str, Vec<u8>)> {
    let all = |parents| {
        [
            ("cycle", crafted::cycle(parents)),
            ("levels", crafted::levels(parents)),
            ("wide", crafted::wide(parents)),
        ]
    };
    all(Parents::Right).into_iter().chain(all(Parents::Unknown)).collect()
}

#[test]
fn a_linked_file_is_written_whatever_loops_its_image_has() {
    for (what, bytes) in looping() {
        in_time(what, || {
            let mut scratch = Scratch::new(stack([image(bytes)]), true);
            append(&scratch.path("file"), "x");
            assert_eq!(scratch.read("file2"), "hello\nx");
            assert_eq!(fs::metadata(scratch.path("file2")).unwrap().nlink(), 2);
            scratch.unmount();
        });
    }
}

#[test]
fn a_directory_that_is_met_inside_itself_is_damage() {
    for parents in [Parents::Right, Parents::Unknown] {
        let scratch = Scratch::new(stack([image(crafted::cycle(parents))]), false);
        let error = fs::read_dir(scratch.path("loop/a")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        assert_eq!(names(scratch.path("loop")), ["a", "b"]);
        assert_eq!(scratch.read("file"), "hello\n");
    }
    // A directory that says it is in another one.
    let mut bytes = Crafted::new(Parents::Right);
    let (one, other, twice) = (bytes.dir(), bytes.dir(), bytes.dir());
    bytes.add(0, "one", one);
    bytes.add(0, "other", other);
    bytes.add(one, "in", twice);
    bytes.add(other, "in", twice);
    let scratch = Scratch::new(stack([image(bytes.bytes())]), false);
    assert!(fs::read_dir(scratch.path("other/in")).is_err());
    assert!(fs::read_dir(scratch.path("one/in")).is_ok());
}

#[test]
fn walks_of_what_a_stack_shows_end_at_loops() {
    let plain = Layer::new().file("file", "x");
    for (what, bytes) in
        looping().into_iter().chain([("shared", crafted::shared_listing(5000, 5000))])
    {
        for stack in [stack([image(bytes.clone())]), stack([plain.image(), image(bytes)])] {
            let walked = in_time(what, move || {
                let mut seen = 0;
                View::new(stack).walk(|_| seen += 1).map_err(|error| error.to_string()).err()
            });
            assert!(walked.is_some(), "{what}");
        }
    }
}

/// As many names as take a while to go through.
fn large(names: usize) -> Vec<u8> {
    let mut image = Crafted::new(Parents::Right);
    let other = image.file(b"x", 1);
    for dir in 0..100 {
        let inside = image.dir();
        image.add(0, &format!("{dir}"), inside);
        for name in 0..names / 100 {
            image.add(inside, &format!("{name:06}"), other);
        }
    }
    let file = image.file(b"hello\n", 2);
    image.add(0, "file", file);
    image.add(0, "file2", file);
    image.bytes()
}

#[test]
fn who_waits_for_a_large_image_can_be_killed_within_a_second() {
    let scratch = Scratch::new(stack([image_as_mounted(large(3_000_000))]), true);
    let mut child = Command::new("sh")
        .args(["-c", "echo x >> \"$1\"", "-"])
        .arg(scratch.path("file"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500)); // the server is busy with its request now
    let was_busy = child.try_wait().unwrap().is_none();
    let killed = Instant::now();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
    assert!(was_busy, "the image is too small for this test");
}

/// An image opened as [`mica_mounter::StackLayer`] opens them.
fn image_as_mounted(bytes: Vec<u8>) -> std::sync::Arc<mica_squashfs::Image> {
    mica_mounter::StackLayer::from_source("crafted", bytes).unwrap().image
}

#[test]
fn large_attributes_are_read_once() {
    let mut bytes = Crafted::new(Parents::Right);
    let value = vec![7; 64 << 10];
    let keys: Vec<String> = (0..300).map(|n| format!("n{n}")).collect();
    let pairs: Vec<_> = keys.iter().map(|name| (&name[..], &value[..])).collect();
    let set = bytes.xattrs(&pairs);
    for name in 0..200 {
        let file = bytes.file(b"x", 1);
        bytes.set_xattrs(file, set);
        bytes.add(0, &format!("{name}"), file);
    }
    let scratch = Scratch::new(stack([image(bytes.bytes())]), true);
    let begun = Instant::now();
    let mut list = vec![0; 64 << 10];
    let mut room = vec![0; 64 << 10];
    for name in 0..200 {
        let path = scratch.path(&format!("{name}"));
        assert!(rustix::fs::getxattr(&path, "security.selinux", &mut room).is_err());
        assert_eq!(rustix::fs::getxattr(&path, "user.n299", &mut room), Ok(64 << 10));
        assert!(rustix::fs::listxattr(&path, &mut list).unwrap() > 2000);
    }
    // Before, each of the 600 requests read 19 MB.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn links_of_a_layer_cost_the_same_for_each_file() {
    let mut layer = Layer::new();
    for name in 0..1500 {
        layer = layer.file(&format!("a/{}/{name}", name % 50), format!("{name}"));
        layer =
            layer.hard_link(&format!("b/{}/{name}", name % 50), &format!("a/{}/{name}", name % 50));
    }
    let scratch = Scratch::new(stack([layer.image()]), true);
    let begun = Instant::now();
    for name in 0..1500 {
        append(&scratch.path(&format!("a/{}/{name}", name % 50)), "+");
    }
    // Before, each of them read the whole image: 4.5 million entries.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(scratch.read("b/7/1007"), "1007+");
}

#[test]
fn links_of_a_layer_are_kept_also_below_renamed_directories() {
    let layer = || {
        Layer::new()
            .file("d/s/f1", "old")
            .hard_link("d/s/f2", "d/s/f1")
            .hard_link("d/f3", "d/s/f1")
            .hard_link("other/f4", "d/s/f1")
            .image()
    };
    // Renamed in this mount, or in an earlier one.
    for remount in [false, true] {
        let mut scratch = Scratch::new(stack([layer()]), true);
        fs::rename(scratch.path("d"), scratch.path("e")).unwrap();
        fs::rename(scratch.path("e/s"), scratch.path("other/t")).unwrap();
        fs::create_dir(scratch.path("d")).unwrap();
        if remount {
            scratch.unmount();
            scratch.mount(stack([layer()]), true);
        }
        fs::write(scratch.path("other/f4"), "new").unwrap();
        for _ in 0..2 {
            for name in ["other/t/f1", "other/t/f2", "e/f3", "other/f4"] {
                assert_eq!(scratch.read(name), "new", "{name}");
                assert_eq!(fs::metadata(scratch.path(name)).unwrap().nlink(), 4, "{name}");
            }
            scratch.unmount();
            scratch.mount(stack([layer()]), true);
        }
    }
}
