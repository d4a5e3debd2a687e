//! Alone in its process, whose limit of descriptors it lowers.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{Layer, Scratch, stack};

#[test]
fn a_server_with_few_descriptors_serves_many_open_files() {
    use std::io::{Read, Seek, SeekFrom, Write};
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
