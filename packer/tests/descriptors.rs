//! However large, wide or deep the input is, a few descriptors are enough. Alone in its process, whose limit it lowers.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

use std::fs;

use mica_packer::{Output, PackOptions, pack_dir, pack_scan, scan_outputs};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};

#[test]
fn a_few_descriptors_are_enough() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(64);
    setrlimit(Resource::Nofile, limit).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut outputs = Vec::new();
    for number in 0..1500 {
        let folder = dir.path().join(format!("in/{number}"));
        fs::create_dir_all(folder.join("folder")).unwrap();
        fs::write(folder.join("file"), number.to_string()).unwrap();
        fs::write(folder.join("folder/inner"), number.to_string()).unwrap();
        for name in ["file", "folder"] {
            let tree_path = format!("{number}/{name}").into();
            outputs.push(Output { tree_path, source: folder.join(name) });
        }
    }
    let options = PackOptions::default();
    // As of many modules: all are scanned before the first is packed.
    let scans: Vec<_> =
        (0..100).map(|_| scan_outputs(&outputs[..40], &options.scan()).unwrap()).collect();
    assert!(scans.iter().all(|scan| scan.files == 40));
    let scan = scan_outputs(&outputs, &options.scan()).unwrap();
    let packed = pack_scan(&scan, &dir.path().join("wide.xar"), &options).unwrap();
    assert_eq!(packed.files, 3000);

    let mut at = rustix::fs::openat(CWD, dir.path(), OFlags::PATH, Mode::empty()).unwrap();
    for level in 0..3000 {
        let name = if level == 0 { "deep" } else { "directory" };
        rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
        at =
            rustix::fs::openat(&at, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let file =
        rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    drop((at, file));
    let packed =
        pack_dir(&dir.path().join("deep"), &dir.path().join("deep.xar"), &options).unwrap();
    assert_eq!((packed.files, packed.bytes_in), (1, 4));
    mica_durable::remove_tree(&dir.path().join("deep")).unwrap();
}

#[test]
fn a_directory_that_another_one_replaced_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/file"), "old").unwrap();
    let output = Output { tree_path: "file".into(), source: dir.path().join("a/file") };
    let options = PackOptions::default();
    let scan = scan_outputs(&[output], &options.scan()).unwrap();
    fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/file"), "new").unwrap();
    let error = pack_scan(&scan, &dir.path().join("x.xar"), &options).unwrap_err();
    assert!(
        format!("{error:?}").contains("a/file") || format!("{error:?}").contains("file"),
        "{error:?}"
    );
}
