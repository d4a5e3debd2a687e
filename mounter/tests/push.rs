//! Files that are handed to the kernel before it asks for them, and changed at the same time.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use mica_mounter::{MountOptions, Upper};
use support::{Layer, Scratch, names, stack};

const FILES: usize = 200;

/// Every file has another content and length; many share a block of the image, some have several.
fn content(number: usize) -> Vec<u8> {
    let len = match number % 50 {
        0 => 300_000 + number,
        n => 500 + n * 2000,
    };
    (0..len).map(|at| (at / 5 * 31 + number * 7) as u8).collect()
}

fn name(number: usize) -> String {
    format!("lib/f{number:04}")
}

fn library() -> Layer {
    (0..FILES).fold(Layer::new(), |layer, number| layer.file(&name(number), content(number)))
}

fn mounted(layer: &Layer, passthrough: bool) -> Scratch {
    let mut scratch = Scratch::new(stack([]), true);
    scratch.unmount();
    let upper = Some(Upper { volatile: true, ..Upper::new(scratch.upper()) });
    let options = MountOptions { upper, passthrough, threads: 3, ..MountOptions::default() };
    scratch.mount_with(stack([layer.image()]), &options);
    scratch
}

/// Changes a file for the first time, each in another way; says what is in it then.
fn change(path: &Path, number: usize) -> Vec<u8> {
    let mut expected = content(number);
    let open = || OpenOptions::new().read(true).write(true).open(path).unwrap();
    match number % 8 {
        0 => {
            open().write_all_at(b"changed", 4000).unwrap();
            expected.resize(expected.len().max(4007), 0);
            expected[4000..4007].copy_from_slice(b"changed");
        }
        1 => {
            fs::write(path, "all is new").unwrap();
            expected = b"all is new".to_vec();
        }
        2 => {
            OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
            expected.extend_from_slice(b"more");
        }
        3 => {
            rustix::fs::ftruncate(open(), 123).unwrap();
            expected.truncate(123);
        }
        4 => {
            // By its path: nothing is opened.
            let script = "truncate($ARGV[0], 77) or die $!";
            let status = Command::new("perl").args(["-e", script]).arg(path).status().unwrap();
            assert!(status.success());
            expected.truncate(77);
        }
        5 => {
            let beside = path.with_extension("new");
            fs::write(&beside, "another file").unwrap();
            fs::rename(&beside, path).unwrap();
            expected = b"another file".to_vec();
        }
        6 => {
            // Copied up before it is opened for writing.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::hard_link(path, path.with_extension("link")).unwrap();
            OpenOptions::new()
                .write(true)
                .open(path.with_extension("link"))
                .unwrap()
                .write_all_at(&[0xee; 5000], 0)
                .unwrap();
            expected.resize(expected.len().max(5000), 0);
            expected[..5000].fill(0xee);
        }
        _ => {
            fs::remove_file(path).unwrap();
            fs::write(path, "made again").unwrap();
            expected = b"made again".to_vec();
        }
    }
    expected
}

fn read(path: &Path, drop_pages: bool) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut found = Vec::new();
    // The kernel asks for a little, and the rest is handed over.
    file.read_at(&mut [0], 0)?;
    file.read_to_end(&mut found)?;
    if drop_pages {
        // So that others have to read it again.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(found)
}

const OLD: u32 = 0;
const CHANGING: u32 = 1;
const NEW: u32 = 2;

/// Readers go through the files, so that those that come next are handed over, while others change just these: who begins
/// to read after a change has returned sees it whole.
fn readers_see_every_change_that_was_made(passthrough: bool) {
    let layer = library();
    let scratch = mounted(&layer, passthrough);
    names(scratch.path("lib"));
    let states: Vec<AtomicU32> = (0..FILES).map(|_| AtomicU32::new(OLD)).collect();
    let changed: Vec<std::sync::OnceLock<Vec<u8>>> =
        (0..FILES).map(|_| Default::default()).collect();
    let (checked, next, root) = (AtomicU32::new(0), AtomicUsize::new(0), scratch.root());
    let (done, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let path = |number| root.join(name(number));
    let check = |number: usize, drop_pages: bool| {
        let before = states[number].load(Ordering::SeqCst);
        let found = read(&path(number), drop_pages);
        if before == CHANGING || states[number].load(Ordering::SeqCst) != before {
            return; // it may be there in part, or not at all
        }
        let found = found.unwrap();
        let expected =
            if before == NEW { changed[number].get().unwrap() } else { &content(number) };
        if found != *expected {
            let text = format!("{} when {before}: {} bytes", name(number), found.len());
            wrong.lock().unwrap().push(text);
        }
        checked.fetch_add(before, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (check, done, next) = (&check, &done, &next);
            scope.spawn(move || {
                while done.load(Ordering::Relaxed) < FILES {
                    for number in 0..FILES {
                        // Two read whatever is about to be changed.
                        let number = if reader < 2 { next.load(Ordering::Relaxed) } else { number };
                        check(number, reader % 2 == 0);
                    }
                }
            });
        }
        for writer in 0..2 {
            let (states, changed, path) = (&states, &changed, &path);
            let (check, done, next) = (&check, &done, &next);
            scope.spawn(move || {
                for number in (writer..FILES).step_by(2) {
                    next.store(number, Ordering::Relaxed);
                    check(number, true);
                    states[number].store(CHANGING, Ordering::SeqCst);
                    let content = change(&path(number), number);
                    changed[number].set(content).unwrap();
                    states[number].store(NEW, Ordering::SeqCst);
                    done.fetch_add(1, Ordering::Relaxed);
                    check(number, false);
                }
            });
        }
    });
    assert!(checked.load(Ordering::Relaxed) > FILES as u32);
    (0..FILES).for_each(|number| check(number, true));
    (0..FILES).for_each(|number| check(number, false));
    assert_eq!(wrong.into_inner().unwrap(), [""; 0]);
}

#[test]
fn readers_see_every_change_that_was_made_through_the_server() {
    readers_see_every_change_that_was_made(false);
}

#[test]
fn readers_see_every_change_that_was_made_past_the_server() {
    readers_see_every_change_that_was_made(true);
}

#[test]
fn a_mount_with_an_upper_is_read_with_few_requests() {
    let layer = library();
    let scratch = mounted(&layer, true);
    names(scratch.path("lib"));
    for number in 0..FILES {
        assert_eq!(read(&scratch.path(&name(number)), false).unwrap(), content(number));
    }
    let reads = scratch.requests("read");
    assert!(reads * 5 < FILES as u64, "{reads} reads of {FILES} files");
    // What was copied up is read from the upper, and never handed over.
    for number in 0..FILES {
        fs::set_permissions(scratch.path(&name(number)), fs::Permissions::from_mode(0o640))
            .unwrap();
        assert_eq!(read(&scratch.path(&name(number)), true).unwrap(), content(number));
    }
}

#[test]
fn a_small_file_is_handed_over_when_it_is_opened() {
    let layer = Layer::new().file("program", content(49)).file("large", content(50));
    let scratch = mounted(&layer, true);
    assert_eq!(read(&scratch.path("program"), false).unwrap(), content(49));
    assert_eq!(scratch.requests("read"), 0);
    // When its pages are gone, it is read.
    read(&scratch.path("program"), true).unwrap();
    assert_eq!(read(&scratch.path("program"), false).unwrap(), content(49));
    assert!(scratch.requests("read") > 0);
}
