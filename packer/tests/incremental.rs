//! Packing with what is known from the last time gives the bytes of packing without.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mica_packer::{PackError, PackOptions, index_path, pack_dir};

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % end
    }

    /// Text, noise and zeros, as long as small files, as single blocks, or as several.
    fn content(&mut self) -> Vec<u8> {
        let size = [0, 1, 700, 9000, 60_000, 131_071, 131_072, 131_073, 300_000][self.below(9)];
        match self.below(4) {
            0 => vec![0; size],
            1 => (0..size).map(|_| self.below(256) as u8).collect(),
            _ => {
                let word = self.below(50).to_string();
                let mut bytes = vec![0; if self.below(3) == 0 { size / 2 } else { 0 }];
                while bytes.len() < size {
                    bytes.extend_from_slice(word.as_bytes());
                    bytes.extend_from_slice(self.below(9999).to_string().as_bytes());
                }
                bytes.truncate(size);
                bytes
            }
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match fs::symlink_metadata(&entry).unwrap() {
            meta if meta.is_dir() => found.extend(files(&entry)),
            meta if meta.is_file() => found.push(entry),
            _ => {}
        }
    }
    found.sort();
    found
}

/// Does to the tree what people and builds do to trees.
fn edit(tree: &Path, numbers: &mut Numbers, step: usize) {
    let dir = tree.join(format!("d{}/e{}", numbers.below(4), numbers.below(3)));
    fs::create_dir_all(&dir).unwrap();
    let new = dir.join(format!("new{step}-{}", numbers.below(1000)));
    let all = files(tree);
    let Some(old) = (!all.is_empty()).then(|| all[numbers.below(all.len())].clone()) else {
        return fs::write(new, numbers.content()).unwrap();
    };
    match numbers.below(10) {
        0 | 1 => fs::write(new, numbers.content()).unwrap(),
        2 => fs::write(&old, numbers.content()).unwrap(),
        // The same size and modification time, as a careless tool leaves it.
        3 => {
            let (file, meta) = (File::options().write(true).open(&old).unwrap(), old.metadata());
            let meta = meta.unwrap();
            if meta.len() > 0 {
                file.write_at(b"!", numbers.below(meta.len() as usize) as u64).unwrap();
            }
            file.set_modified(meta.modified().unwrap()).unwrap();
        }
        4 => fs::remove_file(&old).unwrap(),
        5 => fs::rename(&old, &new).unwrap(),
        6 => drop(fs::copy(&old, &new).unwrap()),
        7 => fs::hard_link(&old, &new).unwrap(),
        8 => {
            let mode = [0o644, 0o755, 0o600][numbers.below(3)];
            fs::set_permissions(&old, fs::Permissions::from_mode(mode)).unwrap();
            let value = numbers.below(3).to_string();
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(&old, "user.note", value.as_bytes(), flags)
                .expect("this test needs a folder for temporary files with extended attributes");
        }
        _ => symlink(format!("target{step}"), &new).unwrap(),
    }
}

#[test]
fn whatever_changes_the_bytes_are_those_of_a_full_pack() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    for (seed, block_size) in [(1, 128 << 10), (2, 128 << 10), (3, 4 << 10), (4, 1 << 20)] {
        let tree = path(&format!("tree{seed}"));
        fs::create_dir(&tree).unwrap();
        let mut numbers = Numbers(seed);
        (0..40).for_each(|step| edit(&tree, &mut numbers, step));
        let (full, image) = (path("full"), path("image"));
        let plain = PackOptions { block_size, mtime: 1 << 30, ..PackOptions::default() };
        let with = PackOptions {
            index: true,
            previous: Some(image.clone()),
            scan_cache: Some(path("scan")),
            ..plain.clone()
        };
        let mut unchanged = 0;
        for step in 100..118 {
            (0..numbers.below(4)).for_each(|_| edit(&tree, &mut numbers, step));
            // Sometimes what was written is old enough to be known again, sometimes not.
            std::thread::sleep(Duration::from_millis(if step % 2 == 0 { 130 } else { 0 }));
            let want = pack_dir(&tree, &full, &plain).unwrap();
            let got = pack_dir(&tree, &image, &with).unwrap();
            assert_eq!((got.digest, got.size), (want.digest, want.size), "{seed} {step}");
            assert_eq!(got.chunks, want.chunks);
            assert!(fs::read(&image).unwrap() == fs::read(&full).unwrap());
            unchanged += usize::from(got.unchanged);
            if step % 7 == 0 {
                fs::remove_file(index_path(&image)).unwrap();
            }
        }
        assert!(unchanged > 0, "some steps change nothing, or the racy ones only");
        fs::remove_file(path("scan")).unwrap();
    }
}

#[test]
fn a_file_that_is_written_to_all_the_time_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let (tree, image) = (scratch.path().join("tree"), scratch.path().join("image"));
    fs::create_dir(&tree).unwrap();
    let mut numbers = Numbers(5);
    (0..40).for_each(|step| edit(&tree, &mut numbers, step));
    for (name, size) in [("large.log", 3_000_000), ("small.log", 300)] {
        let file = File::create(tree.join(name)).unwrap();
        file.write_all_at(&vec![b'x'; size], 0).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // In place: the size says nothing.
                while !done.load(Ordering::Relaxed) {
                    file.write_all_at(b"changed", 100).unwrap();
                }
            });
            let deadline = Instant::now() + Duration::from_secs(60);
            let error = loop {
                assert!(Instant::now() < deadline, "it was never noticed");
                // Whoever is quick enough sees one state of it.
                if let Err(error) = pack_dir(&tree, &image, &PackOptions::default()) {
                    break error;
                }
            };
            done.store(true, Ordering::Relaxed);
            let PackError::Write { source, .. } = &error else { panic!("{error:?}") };
            assert_eq!(source.to_string(), format!("{name} changed while it was packed"));
        });
        fs::remove_file(tree.join(name)).unwrap();
    }
}
