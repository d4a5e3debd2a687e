//! Alone in its process, whose limit of descriptors it lowers.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use std::sync::{Mutex, MutexGuard, PoisonError};

use support::{Layer, Scratch, stack};

/// All tests here change the one limit, and have to do so one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static LIMIT: Mutex<()> = Mutex::new(());
    LIMIT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_server_with_few_descriptors_serves_many_open_files() {
    use std::io::{Read, Seek, SeekFrom, Write};
    let _alone = alone();
    let scratch = Scratch::new(stack([Layer::new().image()]), true);
    let old = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let make = |i: usize| {
        let path = scratch.path(&i.to_string());
        fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    };
    // The test and the server share one table of descriptors, so half of them are the server's.
    let mut files: Vec<_> = (0..60).map(|i| make(i).unwrap()).collect();
    let low = rustix::process::Rlimit { current: Some(200), maximum: old.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, low).unwrap();
    files.extend((60..90).map_while(|i| make(i).ok()));
    for (i, file) in files.iter_mut().enumerate() {
        write!(file, "{i}").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, i.to_string());
    }
    rustix::process::setrlimit(rustix::process::Resource::Nofile, old).unwrap();
}

const CHILD: &str = "MICA_MOUNTER_FEW_DESCRIPTORS";
const FEW: u64 = 80;

/// The server, in a process of its own with few descriptors for good.
fn serve(at: std::path::PathBuf) {
    let few = rustix::process::Rlimit { current: Some(FEW / 2), maximum: Some(FEW) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    let mut scratch = Scratch { mount: None, dir: tempfile::tempdir().unwrap() };
    let upper = Some(mica_mounter::Upper::new(scratch.upper()));
    let options = mica_mounter::MountOptions { upper, ..Default::default() };
    let image = Layer::new().file("f", "layer").image();
    scratch.mount = Some(mica_mounter::mount(stack([image]), &at, &options).unwrap());
    fs::write(at.join("ready"), "").unwrap();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    scratch.unmount();
}

#[test]
fn a_server_without_descriptors_removes_files_and_serves_what_is_open() {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::MetadataExt;
    if let Some(at) = std::env::var_os(CHILD) {
        return serve(at.into());
    }
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    let mut server = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_server_without_descriptors_removes_files_and_serves_what_is_open"])
        .env(CHILD, &at)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !at.join("ready").exists() {
        assert!(std::time::Instant::now() < deadline && server.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let open = |i: usize| {
        let path = at.join(i.to_string());
        let mut how = fs::OpenOptions::new();
        how.read(true).write(true).create(true).truncate(true).open(path).unwrap()
    };
    let mut files: Vec<_> = (0..300).map(open).collect();
    for (i, file) in files.iter_mut().enumerate() {
        write!(file, "{i}").unwrap();
        // Each of those holds a descriptor of the server, as long as it has any.
        if i % 2 == 0 {
            fs::remove_file(at.join(i.to_string())).unwrap();
        }
    }
    for (i, file) in files.iter_mut().enumerate() {
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text, file.metadata().unwrap().nlink()), (i.to_string(), (i % 2) as u64));
    }
    assert_eq!(fs::read(at.join("f")).unwrap(), b"layer");
    assert_eq!(support::names(&at).len(), 152);
    fs::create_dir(at.join("d")).unwrap();
    fs::rename(at.join("1"), at.join("d/1")).unwrap();
    drop(files);
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
}

#[test]
fn the_limit_of_the_caller_is_known_when_it_was_raised() {
    let _alone = alone();
    let before = mica_mounter::raise_descriptor_limit();
    let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert_eq!((now.current, now.maximum), (before.hard, before.hard));
    assert_eq!(mica_mounter::raise_descriptor_limit(), before);
}
