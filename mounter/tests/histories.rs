//! Concurrent histories against a reference: one writer that replaces, links, truncates and rewrites a file, readers that
//! may see one version at each moment and never a mixture.
//!
//! The reference of a file that is replaced by rename is a register: a reader sees the version of some moment between
//! the begin and the end of its look, all of it. Of one that is rewritten in place it is a prefix of bytes that are a
//! function of their place.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use mica_mounter::{MountOptions, Upper};
use support::{Layer, Scratch, stack};

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// A version's content: its number again and again, of a size of its own.
fn version(number: u64) -> Vec<u8> {
    let count = 1 + (number * 7919 % 1500) as usize;
    number.to_le_bytes().repeat(count)
}

/// What a look at a file says: its size, and its content.
fn look(file: &mut File) -> (u64, Vec<u8>) {
    let size = file.metadata().unwrap().len();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    (size, content)
}

struct History {
    path: PathBuf,
    seed: u64,
    /// Versions that are begun, and those that are done.
    begun: AtomicU64,
    done: AtomicU64,
    ended: AtomicBool,
}

impl History {
    /// Replaces the file, in one of the ways in which programs do.
    fn replace(&self, number: u64, random: &mut Random) {
        let (new, other) = (self.path.join("new"), self.path.join("other"));
        fs::write(&new, version(number)).unwrap();
        self.begun.store(number, Ordering::SeqCst);
        match random.below(4) {
            // By a hard link: the old name stays for a while.
            0 => {
                fs::hard_link(&new, &other).unwrap();
                fs::rename(&other, self.path.join("f")).unwrap();
                fs::remove_file(&new).unwrap();
            }
            // The old version stays behind under another name.
            1 => {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let f = self.path.join("f");
                rustix::fs::renameat_with(rustix::fs::CWD, &new, rustix::fs::CWD, &f, flags)
                    .unwrap();
                fs::remove_file(&new).unwrap();
            }
            _ => fs::rename(&new, self.path.join("f")).unwrap(),
        }
        self.done.store(number, Ordering::SeqCst);
    }

    fn write(&self) {
        let mut random = Random(self.seed * 2 + 1);
        let placed = OpenOptions::new().write(true).open(self.path.join("in-place")).unwrap();
        for number in 1..=8 {
            self.replace(number, &mut random);
            let len = 8 * random.below(1000);
            placed.set_len(len).unwrap();
            let bytes: Vec<u8> = (0..len / 8).flat_map(u64::to_le_bytes).collect();
            placed.write_all_at(&bytes, 0).unwrap();
        }
        self.ended.store(true, Ordering::SeqCst);
    }

    fn read(&self) {
        loop {
            let last = self.ended.load(Ordering::SeqCst);
            let before = self.done.load(Ordering::SeqCst);
            let mut file = File::open(self.path.join("f")).unwrap();
            let after = self.begun.load(Ordering::SeqCst);
            let (size, content) = look(&mut file);
            let seen = u64::from_le_bytes(content[..8].try_into().unwrap());
            assert!(content == version(seen), "seed {}: a mixture", self.seed);
            assert_eq!(size, content.len() as u64, "seed {}: of another version", self.seed);
            assert!(
                (before..=after).contains(&seen),
                "seed {}: {before} {seen} {after}",
                self.seed
            );
            let at = fs::metadata(self.path.join("f")).unwrap();
            let now = file.metadata().unwrap();
            assert!(at.ino() != now.ino() || at.len() == size, "seed {}", self.seed);
            let content = fs::read(self.path.join("in-place")).unwrap();
            for (place, bytes) in content.as_chunks::<8>().0.iter().enumerate() {
                let value = u64::from_le_bytes(*bytes);
                // Zero: the file was made longer and is not written yet.
                assert!(value == 0 || value == place as u64, "seed {}: {value}", self.seed);
            }
            if last {
                return;
            }
        }
    }

    fn run(path: &Path, seed: u64) {
        fs::create_dir_all(path).unwrap();
        // Sometimes it is a layer's, and so is copied up on the way.
        if !path.join("f").exists() {
            fs::write(path.join("f"), version(0)).unwrap();
            fs::write(path.join("in-place"), "").unwrap();
        }
        let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let history =
            History { path: path.into(), seed, begun, done, ended: AtomicBool::new(false) };
        thread::scope(|scope| {
            scope.spawn(|| history.write());
            scope.spawn(|| history.read());
            scope.spawn(|| history.read());
        });
    }
}

fn histories(passthrough: bool, count: u64) {
    let mut layer = Layer::new();
    for seed in (0..count).step_by(3) {
        layer = layer.file(&format!("{seed}/f"), version(0)).file(&format!("{seed}/in-place"), "");
    }
    let mut scratch = Scratch::new(stack([layer.image()]), false);
    scratch.unmount();
    let upper = Some(Upper { volatile: true, ..Upper::new(scratch.upper()) });
    let options = MountOptions { upper, passthrough, threads: 4, ..MountOptions::default() };
    scratch.mount_with(stack([layer.image()]), &options);
    for seed in 0..count {
        History::run(&scratch.path(&format!("{seed}")), seed);
    }
}

#[test]
fn readers_see_one_version_of_a_file_that_is_replaced() {
    histories(false, 1000);
}

#[test]
fn readers_see_one_version_of_a_file_that_the_kernel_reads_by_itself() {
    histories(true, 1000);
}
