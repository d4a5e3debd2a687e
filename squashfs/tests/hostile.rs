//! Images that somebody made to break the reader: errors within bounded time and memory, never a panic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::crafted::{self, Crafted, Parents};
use common::mksquashfs;
use common::torture::noise;
use mica_squashfs::delta::delta;
use mica_squashfs::read::{WalkFault, walk};
use mica_squashfs::rebuild::{describe, rebuild};
use mica_squashfs::verify::verify;
use mica_squashfs::{Image, InodeKind, OpenError, OpenOptions, ReadError};

/// Small caches, so that making them does not dominate a case.
fn open(bytes: impl Into<Arc<Vec<u8>>>) -> Result<Image, OpenError> {
    let options = OpenOptions { data_cache_bytes: 1 << 20, ..OpenOptions::default() };
    Image::from_source(Box::new(bytes.into()), &options)
}

/// A tree with one of everything, small: the images have 4 to 10 KiB, so that a mutation is likely to hit something.
fn small_tree(root: &Path) {
    fs::create_dir_all(root.join("dir/sub/subsub")).unwrap();
    fs::write(root.join("dir/text"), "some text\n".repeat(500)).unwrap();
    fs::write(root.join("dir/noise"), noise(1, 700)).unwrap();
    fs::write(root.join("dir/sub/zeros"), vec![0; 20_000]).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::hard_link(root.join("empty"), root.join("linked")).unwrap();
    fs::write(root.join("blocks"), "0123456789abcdef".repeat(1200)).unwrap();
    fs::hard_link(root.join("blocks"), root.join("dir/blocks")).unwrap();
    std::os::unix::fs::symlink("dir/text", root.join("link")).unwrap();
    for i in 0..20 {
        fs::write(root.join(format!("dir/sub/subsub/file-{i}")), format!("{i}")).unwrap();
    }
    for (name, value) in [("user.small", &b"value"[..]), ("user.large", &[7; 200])] {
        for file in ["dir/text", "empty", "blocks"] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(root.join(file), name, value, flags).unwrap();
        }
    }
}

fn small_images() -> Vec<Vec<u8>> {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    small_tree(&tree);
    let out = scratch.path().join("image");
    let options = [
        // Uncompressed, so that mutations reach the structures: most of the cases.
        "-comp gzip -b 4K -noI -noX -nopad",
        "-comp zstd -b 4K -noI -noX -no-fragments -nopad",
        "-comp lz4 -b 4K -noI -noD -noF -noX -always-use-fragments -nopad",
        "-comp gzip -b 4K -nopad",
        "-comp lz4 -b 8K -nopad",
        "-comp xz -b 8K -nopad",
        "-comp xz -b 8K -Xbcj x86 -nopad",
        "-comp lzma -b 8K -nopad",
        "-comp lzo -b 8K -nopad",
        "-comp zstd -b 8K -nopad",
    ];
    options
        .iter()
        .map(|options| {
            mksquashfs(&tree, &out, options);
            fs::read(&out).unwrap()
        })
        .collect()
}

/// Uses everything the reader has on an image, as a file server and the commands would.
fn exercise(image: &Image) {
    let _ = image.compressor_options();
    let mut buffer = vec![0; 5000];
    let mut out = Vec::new();
    for entry in walk(image) {
        let Ok(entry) = entry else { continue };
        let inode = entry.inode;
        let _ = image.xattrs(&inode);
        let _ = image.inode_of_number(inode.number);
        match inode.kind {
            InodeKind::Directory { .. } => {
                let _ = image.lookup(&inode, b"file-7");
                let _ = image.lookup(&inode, b"zzz");
            }
            InodeKind::Symlink { .. } => drop(image.read_link(&inode)),
            InodeKind::File { size, .. } => {
                let _ = image.read_at(&inode, 0, &mut buffer);
                let _ = image.read_at(&inode, size / 2, &mut buffer);
                let Ok(blocks) = image.blocks(&inode) else { continue };
                let last = blocks.count().saturating_sub(1);
                for index in [0, 1, last / 2, last] {
                    let _ = blocks.read(index, &mut out);
                }
            }
            _ => {}
        }
    }
}

/// Whatever an image holds, it comes back from its description.
fn come_back(image: &Image) {
    let one = std::num::NonZero::new(1);
    let described = describe(image, None, one).unwrap();
    let (mut raw, mut again) = (Vec::new(), blake3::Hasher::new());
    described.contents.copy_to(&mut raw, one).unwrap();
    rebuild(&described.recipe, None, &mut raw.as_slice(), &mut again, one).unwrap();
    described.contents.files().for_each(|file| drop(file.unwrap()));
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Changes an image in one to four places.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const NUMBERS: [u64; 12] = [
        0,
        1,
        2,
        0x7f,
        0xff,
        0x7fff,
        0xffff,
        0x7fff_ffff,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        0xffff_ffff_ffff_fff0,
        u64::MAX,
    ];
    for _ in 0..=random.below(4) {
        // The superblock and the tables at the end matter more than the data.
        let len = bytes.len();
        let at = match random.below(4) {
            0 => random.below(96.min(len)),
            1 | 2 => len - 1 - random.below((len / 2).max(1)),
            _ => random.below(len),
        };
        let width = [1, 2, 4, 8][random.below(4)].min(len - at);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 | 3 => {
                let value = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            4 => {
                let value = (random.below(len * 2) as u64).to_le_bytes();
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            5 => {
                let delta = [1, 0xff, 8, 0xf8][random.below(4)];
                bytes[at] = bytes[at].wrapping_add(delta);
            }
            6 => {
                let from = random.below(len);
                let n = (1 + random.below(40)).min(len - at).min(len - from);
                bytes.copy_within(from..from + n, at);
            }
            _ if random.below(20) == 0 => bytes.truncate(at.max(1)),
            _ => bytes[at] = 0,
        }
    }
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

const CASES: usize = 240_000;

#[test]
fn mutated_images_end_in_errors() {
    let images = small_images();
    for image in &images {
        let image = open(image.clone()).unwrap();
        exercise(&image);
        assert!(verify(&image, None).damage.is_empty());
    }
    let threads = 4;
    let slowest = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let images = &images;
                scope.spawn(move || (thread..CASES).step_by(threads).map(|n| case(images, n)).max())
            })
            .collect();
        workers.into_iter().filter_map(|w| w.join().unwrap()).max().unwrap()
    });
    // A case takes 0.1 ms: this is about endless work, not about speed.
    assert!(slowest < Duration::from_secs(120), "one image took {slowest:?}");
    assert!(peak_kib() < 400 << 10, "{} KiB of memory", peak_kib());
}

/// One mutated image; its number reproduces it.
fn case(images: &[Vec<u8>], number: usize) -> Duration {
    let mut random = Random((number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    // Two of three cases are of the uncompressed images.
    let index = if number.is_multiple_of(3) { random.below(images.len()) } else { random.below(3) };
    let mut bytes = images[index].clone();
    mutate(&mut bytes, &mut random);
    let start = Instant::now();
    if let Ok(image) = open(bytes) {
        exercise(&image);
        if number.is_multiple_of(100) {
            verify(&image, std::num::NonZero::new(1));
            let _ = delta(&image, &image);
            come_back(&image);
        }
    }
    start.elapsed()
}

#[test]
fn truncated_images_do_not_open() {
    let images = small_images();
    for image in &images {
        for cut in (0..image.len()).step_by(97) {
            assert!(open(image[..cut].to_vec()).is_err(), "cut at {cut} of {}", image.len());
        }
    }
}

/// An image with uncompressed metadata, to be changed by hand.
fn plain_image(tree: &Path) -> Vec<u8> {
    let out = tree.with_extension("image");
    mksquashfs(tree, &out, "-noI -noX -comp gzip");
    fs::read(out).unwrap()
}

/// Where an inode is in the file, if the inode table is one uncompressed block.
fn inode_at(image: &Image, path: &[u8]) -> usize {
    let reference = image.resolve(path).unwrap().unwrap().reference.0;
    assert_eq!(reference >> 16, 0);
    image.superblock().inode_table as usize + 2 + (reference & 0xffff) as usize
}

#[test]
fn a_file_that_claims_a_petabyte_is_an_error_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    // Two names make it an extended inode, whose size has 64 bits.
    fs::hard_link(tree.join("file"), tree.join("other")).unwrap();
    let mut bytes = plain_image(&tree);
    let at = inode_at(&open(bytes.clone()).unwrap(), b"file");
    let before = peak_kib();
    for size in [1_u64 << 50, i64::MAX as u64, u64::MAX, 1 << 40] {
        bytes[at + 24..at + 32].copy_from_slice(&size.to_le_bytes());
        let image = open(bytes.clone()).unwrap();
        let start = Instant::now();
        let result = image
            .inode(image.lookup(&image.inode(image.root()).unwrap(), b"file").unwrap().unwrap())
            .and_then(|inode| image.read_at(&inode, 1 << 39, &mut [0; 10]));
        assert!(matches!(result, Err(ReadError::Range { .. })), "{result:?}");
        assert_eq!(verify(&image, None).damage.len(), if size > i64::MAX as u64 { 2 } else { 1 });
        assert!(start.elapsed() < Duration::from_secs(120), "endless work");
    }
    assert!(peak_kib() < before + (64 << 10));
}

#[test]
fn a_directory_inside_itself_is_walked_once() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir_all(tree.join("outer/inner-dir/innermost")).unwrap();
    let mut bytes = plain_image(&tree);
    let root = open(bytes.clone()).unwrap().root().0;
    let name = bytes.windows(9).position(|w| w == b"inner-dir").unwrap();
    // The entry's fixed part precedes the name; its first field is the inode's offset in the block.
    bytes[name - 8..name - 6].copy_from_slice(&(root as u16).to_le_bytes());
    let image = open(bytes).unwrap();
    let errors: Vec<_> = walk(&image).filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].path, b"outer/inner-dir");
    assert!(matches!(errors[0].fault, WalkFault::Repeated(_)));
}

#[test]
fn zeros_and_noise_and_nothing_are_no_images() {
    for bytes in [Vec::new(), vec![0; 10], vec![0; 100_000], noise(3, 100_000)] {
        assert!(open(bytes).is_err());
    }
    let mut xar = b"#!/usr/bin/env xarexec_fuse\nOFFSET=\"1048576\"\n#xar_stop\n".to_vec();
    xar.resize(8192, b'\n');
    let error = open(xar).err().unwrap();
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "the file has 8192 bytes, the image needs 1048672"
    );
}

/// A walk of what only looks like a tree: how many entries it gave, and how many errors.
fn walked(bytes: Vec<u8>) -> (usize, usize) {
    let image = open(bytes).unwrap();
    let begun = Instant::now();
    let (mut entries, mut errors) = (0, 0);
    for entry in walk(&image) {
        match entry {
            Ok(_) => entries += 1,
            Err(error) => {
                assert!(matches!(error.fault, WalkFault::Repeated(_)), "{error:?}");
                errors += 1;
            }
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    (entries, errors)
}

#[test]
fn loops_and_directories_under_many_names_end_a_walk() {
    for parents in [Parents::Right, Parents::Unknown] {
        assert_eq!(walked(crafted::cycle(parents)), (4, 2));
        assert_eq!(walked(crafted::levels(parents)), (63, 60));
        assert_eq!(walked(crafted::wide(parents)), (4, 1000));
    }
}

#[test]
fn a_listing_that_many_directories_share_is_read_once() {
    // 10^8 entries, if each were read.
    let (entries, errors) = walked(crafted::shared_listing(10_000, 10_000));
    assert!(entries <= 20_004 && errors >= 9_999, "{entries} entries, {errors} errors");
}

#[test]
fn a_name_in_a_large_directory_without_an_index_is_found_by_signposts() {
    let mut image = Crafted::new(Parents::Right);
    let file = image.file(b"x", 2);
    let count = 300_000;
    for name in 0..count {
        image.add(0, &format!("{name:07}"), file);
    }
    let bytes = Arc::new(image.bytes());
    let image = open(Arc::clone(&bytes)).unwrap();
    let root = image.inode(image.root()).unwrap();
    for name in (0..count).step_by(1009).chain([0, count - 1]) {
        let found = image.lookup(&root, format!("{name:07}").as_bytes()).unwrap();
        assert!(found.is_some(), "{name}");
        assert_eq!(image.lookup(&root, format!("{name:07}x").as_bytes()).unwrap(), None);
    }
    assert_eq!(image.lookup(&root, b"0").unwrap(), None);
    assert_eq!(image.lookup(&root, b"zzz").unwrap(), None);
}

#[test]
fn a_hundred_million_blocks_in_a_few_bytes_cost_no_memory() {
    let mut image = Crafted::new(Parents::Right);
    let file = image.holes(40_000_000);
    image.add(0, "holes", file);
    let bytes = image.bytes();
    assert!(bytes.len() < 4 << 20, "{}", bytes.len());
    let image = open(bytes).unwrap();
    let before = peak_kib();
    let inode = image.resolve(b"holes").unwrap().unwrap();
    let blocks = image.blocks(&inode).unwrap();
    let begun = Instant::now();
    for index in [39_999_999, 0, 20_000_000, 39_000_000] {
        assert!(matches!(blocks.block(index).unwrap(), mica_squashfs::Block::Hole { .. }));
    }
    assert_eq!(blocks.next_kind(0, true).unwrap(), Ok(0));
    // It gives up after a million.
    assert_eq!(blocks.next_kind(5, false).unwrap(), Err(5 + (1 << 20)));
    assert_eq!(blocks.next_kind(39_999_999, false).unwrap(), Ok(40_000_000));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(blocks.weight() < 512 << 10);
    // Nor time to whoever reads all of it.
    assert!(verify(&image, None).damage.is_empty());
    assert!(delta(&image, &image).is_ok());
    let scratch = tempfile::tempdir().unwrap();
    let sizes: Vec<u64> = (0..100).map(|index| blocks.block(index).unwrap().len().into()).collect();
    assert_eq!(sizes, [128 << 10; 100]);
    mica_squashfs::unpack::unpack(&image, scratch.path(), &Default::default()).unwrap();
    let unpacked = fs::metadata(scratch.path().join("holes")).unwrap();
    assert_eq!(unpacked.len(), inode.size());
    assert!(peak_kib() - before < 32 << 10, "{} KiB", peak_kib() - before);
}

#[test]
fn whoever_is_not_waited_for_ends() {
    let mut image = Crafted::new(Parents::Right);
    let file = image.file(b"x", 2);
    for name in 0..100_000 {
        image.add(0, &format!("{name:07}"), file);
    }
    let options = OpenOptions { interrupted: Some(|| true), ..OpenOptions::default() };
    let image = Image::from_source(Box::new(image.bytes()), &options).unwrap();
    assert!(matches!(image.inode(image.root()), Err(ReadError::Interrupted)));
}

#[test]
fn names_of_attributes_are_read_without_their_values() {
    let mut image = Crafted::new(Parents::Right);
    let value = vec![7; 64 << 10];
    let names: Vec<String> = (0..300).map(|n| format!("n{n}")).collect();
    let pairs: Vec<_> = names.iter().map(|name| (&name[..], &value[..])).collect();
    let many = image.xattrs(&pairs);
    let long: Vec<String> = (0..300).map(|n| format!("{n:0>240}")).collect();
    let long: Vec<_> = long.iter().map(|name| (&name[..], &b""[..])).collect();
    let long = image.xattrs(&long);
    for (name, set) in [("many", many), ("long", long)] {
        let file = image.file(b"x", 1);
        image.set_xattrs(file, set);
        image.add(0, name, file);
    }
    let image = open(image.bytes()).unwrap();
    let many = image.resolve(b"many").unwrap().unwrap();
    let keys = image.xattr_keys(&many).unwrap();
    assert_eq!((keys.len(), &keys[299].name[..]), (300, &b"user.n299"[..]));
    assert_eq!(image.xattr_value(&keys[299]).unwrap(), value);
    // All values together are more than one file may have; and so are 64 KiB of names.
    assert!(image.xattrs(&many).is_err());
    let long = image.resolve(b"long").unwrap().unwrap();
    assert!(matches!(image.xattr_keys(&long), Err(ReadError::Range { .. })));
}

#[test]
fn directories_that_record_three_bytes_too_few_are_read_as_by_others() {
    for names in [&["a", "b"][..], &["a"], &["a", "bc", "def", "ghij"], &[]] {
        let mut image = Crafted::new(Parents::Right);
        image.short = true;
        let dir = image.dir();
        image.add(0, "dir", dir);
        for name in names {
            let file = image.file(name.as_bytes(), 1);
            image.add(dir, name, file);
        }
        let image = open(image.bytes()).unwrap();
        let found: Vec<_> = walk(&image).map(|entry| entry.unwrap().path).collect();
        let want = names.iter().map(|name| format!("dir/{name}").into_bytes());
        assert_eq!(found[2..], want.collect::<Vec<_>>());
        for name in names {
            assert!(image.resolve(format!("dir/{name}").as_bytes()).unwrap().is_some());
        }
    }
}
