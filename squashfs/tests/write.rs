//! The writer at the limits of the format, and its bytes over time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Cursor};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use mica_squashfs::codec::Compression;
use mica_squashfs::write::{
    Attribute, BlockIndex, Content, ContentDigest, Metadata, Node, NodeKind, OpenContent, Previous,
    Tree, WriteError, WriteOptions, content_digest, write,
};
use mica_squashfs::{Image, OpenOptions};

fn file(content: impl Content + 'static) -> Node {
    Node { metadata: Metadata::with_mode(0o644), kind: NodeKind::File(Box::new(content)) }
}

fn tree() -> Tree {
    Tree::new(Metadata::with_mode(0o755))
}

fn image_of(tree: &Tree, options: &WriteOptions) -> (Image, Vec<u8>) {
    let mut out = Cursor::new(Vec::new());
    let summary = write(tree, options, &mut out).unwrap();
    let bytes = out.into_inner();
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert_eq!(summary.chunks.image_len(), summary.bytes);
    let image = Image::from_source(Box::new(bytes.clone()), &OpenOptions::default()).unwrap();
    (image, bytes)
}

fn sample() -> Tree {
    let mut tree = tree();
    let root = tree.root();
    let words = b"a reproducible image of the same content ";
    for i in 0..300_usize {
        let content: Vec<u8> =
            (0..i * 71 % 5000).map(|k| words[(k * (i + 1) / 3) % words.len()]).collect();
        tree.insert(root, format!("small{i:03}").as_bytes(), file(content)).unwrap();
    }
    let large: Vec<u8> = (0..700_000_usize).map(|k| words[k * k / 1009 % words.len()]).collect();
    tree.insert(root, b"large", file(large)).unwrap();
    tree
}

/// If one of these changes, images made before cannot be made again: give
/// `mica_squashfs::write::LAYOUT` a new number.
#[test]
fn bytes_are_the_same_as_ever() {
    let known = [
        (Compression::Zstd, "1bdfb87669dc821c"),
        (Compression::Gzip, "b936736408e708c6"),
        (Compression::Lz4, "13931348f29c3918"),
        (Compression::Xz, "fe0bcb3b50de69a3"),
        (Compression::None, "ebd68155e675572a"),
    ];
    let tree = sample();
    let found = known.map(|(compression, _)| {
        let options = WriteOptions { compression, ..WriteOptions::default() };
        blake3::hash(&image_of(&tree, &options).1).to_hex()[..16].to_owned()
    });
    assert_eq!(found, known.map(|(_, digest)| digest.to_owned()));
}

#[test]
fn a_directory_of_100_000_entries_has_an_index_that_works() {
    let mut tree = tree();
    let many = tree.make_directories(b"many").unwrap();
    for i in 0..100_000_u32 {
        let name = format!("entry-{:08x}", i.wrapping_mul(0x9e37_79b1));
        tree.insert(many, name.as_bytes(), file(i.to_le_bytes())).unwrap();
    }
    let (image, _) = image_of(&tree, &WriteOptions::default());
    let dir = image.resolve(b"many").unwrap().unwrap();
    assert_eq!(image.read_dir(&dir).unwrap().count(), 100_000);
    for i in (0..100_000_u32).step_by(997) {
        let name = format!("entry-{:08x}", i.wrapping_mul(0x9e37_79b1));
        let inode = image.lookup(&dir, name.as_bytes()).unwrap().expect("it is there");
        let inode = image.inode(inode).unwrap();
        let mut content = [0; 5];
        assert_eq!(image.read_at(&inode, 0, &mut content).unwrap(), 4);
        assert_eq!(content[..4], i.to_le_bytes());
    }
    assert_eq!(image.lookup(&dir, b"entry-").unwrap(), None);
    assert_eq!(image.lookup(&dir, b"zzz").unwrap(), None);
}

/// A file of 5 TiB with a few bytes in it.
struct Sparse;

const DATA: [(u64, u8); 3] = [(3, 1), (5 << 30, 2), ((5 << 40) - 1, 3)];

impl Content for Sparse {
    fn size(&self) -> u64 {
        5 << 40
    }

    fn open(&self) -> io::Result<Box<dyn OpenContent + '_>> {
        Ok(Box::new(Sparse))
    }
}

impl OpenContent for Sparse {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        buf.fill(0);
        for (at, value) in DATA {
            if let Some(place) = at.checked_sub(offset).and_then(|at| buf.get_mut(at as usize)) {
                *place = value;
            }
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        Ok(DATA.iter().map(|(at, _)| *at).find(|at| *at >= from))
    }
}

#[test]
fn holes_are_neither_read_nor_stored() {
    let mut tree = tree();
    let root = tree.root();
    tree.insert(root, b"sparse", file(Sparse)).unwrap();
    let options = WriteOptions { block_size: 1 << 20, ..WriteOptions::default() };
    let (image, bytes) = image_of(&tree, &options);
    // 5 Mi block sizes, all but three of them 0.
    assert!(bytes.len() < 1_000_000, "{}", bytes.len());
    let inode = image.resolve(b"sparse").unwrap().unwrap();
    assert_eq!(inode.size(), 5 << 40);
    for (at, value) in DATA {
        let mut found = [9; 2];
        let length = image.read_at(&inode, at, &mut found).unwrap();
        assert_eq!(found[0], value);
        assert!(length == 1 || found[1] == 0);
    }
}

#[test]
fn what_the_format_cannot_hold_is_refused_by_name() {
    let refused = |tree: &Tree, options: &WriteOptions| {
        write(tree, options, &mut Cursor::new(Vec::new())).unwrap_err()
    };
    let plain = WriteOptions::default();
    let mut ids = tree();
    for i in 0..66_000_u32 {
        let mut node = file(*b"x");
        node.metadata.uid = i;
        ids.insert(ids.root(), format!("{i:05}").as_bytes(), node).unwrap();
    }
    assert!(matches!(refused(&ids, &plain), WriteError::TooManyIds { path } if path == "65535"));

    let mut acl = tree();
    let mut node = file(*b"x");
    let name = b"system.posix_acl_access".to_vec();
    node.metadata.xattrs.push(Attribute { name, value: vec![2, 0, 0, 0] });
    acl.insert(acl.root(), b"f", node).unwrap();
    assert!(matches!(refused(&acl, &plain), WriteError::Attribute { path, .. } if path == "f"));

    for target in [0, 65_536] {
        let mut links = tree();
        let kind = NodeKind::Symlink(vec![b't'; target]);
        let node = Node { metadata: Metadata::with_mode(0o777), kind };
        links.insert(links.root(), b"l", node).unwrap();
        let error = refused(&links, &plain);
        assert!(matches!(error, WriteError::SymlinkTarget { path } if path == "l"));
    }
    for block_size in [0, 2048, 5000, 2 << 20] {
        let options = WriteOptions { block_size, ..plain.clone() };
        assert!(
            matches!(refused(&tree(), &options), WriteError::BlockSize(size) if size == block_size)
        );
    }
    let options = WriteOptions { level: Some(99), ..plain.clone() };
    assert!(matches!(refused(&tree(), &options), WriteError::Codec(_)));
    let options = WriteOptions { compression: Compression::Lzo, ..plain };
    assert!(matches!(refused(&tree(), &options), WriteError::Codec(_)));
}

struct Broken(u64);

impl Content for Broken {
    fn size(&self) -> u64 {
        self.0
    }

    fn open(&self) -> io::Result<Box<dyn OpenContent + '_>> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    for size in [10, 1 << 20] {
        let mut tree = sample();
        let dir = tree.make_directories(b"some/where").unwrap();
        tree.insert(dir, b"\xffbroken", file(Broken(size))).unwrap();
        let error = write(&tree, &WriteOptions::default(), &mut Cursor::new(Vec::new()));
        let WriteError::Read { path, .. } = error.unwrap_err() else { panic!("another error") };
        assert_eq!(path, "some/where/\\xffbroken");
    }
}

/// A file that says what it is, once it was read, and then may be closed.
struct Memory {
    bytes: Vec<u8>,
    digest: OnceLock<ContentDigest>,
    closed: AtomicBool,
}

impl Content for &'static Memory {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn known_digest(&self) -> Option<&ContentDigest> {
        self.digest.get()
    }

    fn remember_digest(&self, digest: ContentDigest) {
        assert!(self.digest.set(digest).is_ok(), "it is known already");
    }

    fn open(&self) -> io::Result<Box<dyn OpenContent + '_>> {
        match self.closed.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => self.bytes.open(),
        }
    }
}

#[test]
fn files_that_are_known_are_not_read_but_taken_from_the_last_image() {
    let mut tree = tree();
    let mut memories = Vec::new();
    for i in 0..300_u32 {
        let size = match i % 20 {
            0 => 400_000,
            1 => 128 << 10,
            _ => 100 * i as usize,
        };
        // Some are the same as others, some are zeros in part or all over.
        let mut bytes: Vec<u8> = (0..size).map(|k| ((k as u32 * (i / 3 * 2)) >> 7) as u8).collect();
        bytes[..size / 3 * (i as usize % 4)].fill(0);
        let (digest, closed) = (OnceLock::new(), AtomicBool::new(false));
        let memory: &'static Memory = Box::leak(Box::new(Memory { bytes, digest, closed }));
        memories.push(memory);
        tree.insert(tree.root(), format!("f{i}").as_bytes(), file(memory)).unwrap();
    }
    let mut out = Cursor::new(Vec::new());
    let indexed = WriteOptions { index: true, ..WriteOptions::default() };
    let index = write(&tree, &indexed, &mut out).unwrap().index.unwrap();
    let first = out.into_inner();
    for memory in memories.iter().filter(|memory| !memory.bytes.is_empty()) {
        let read = content_digest(&memory.bytes, &mut Vec::new()).unwrap();
        assert_eq!(memory.digest.get(), Some(&read));
        memory.closed.store(true, Ordering::Relaxed);
    }
    // An index made by decoding the image serves as well.
    let image = Image::from_source(Box::new(first.clone()), &OpenOptions::default()).unwrap();
    let decoded = BlockIndex::of_image(&image, &indexed.description()).unwrap();
    assert_eq!(decoded.len(), index.len());
    for index in [index, decoded] {
        let previous = Arc::new(Previous::new(Box::new(first.clone()), 0, &index));
        let options = WriteOptions { previous: Some(previous), ..indexed.clone() };
        let mut out = Cursor::new(Vec::new());
        let summary = write(&tree, &options, &mut out).unwrap();
        assert!(out.into_inner() == first);
        assert_eq!(summary.reused, index.len() as u64);
    }
    // Without the image they would have to be read.
    write(&tree, &indexed, &mut Cursor::new(Vec::new())).unwrap_err();
}

#[test]
fn the_empty_tree_is_an_image() {
    let (image, bytes) = image_of(&tree(), &WriteOptions::default());
    assert_eq!(bytes.len(), 4096);
    let root = image.inode(image.root()).unwrap();
    assert_eq!(image.read_dir(&root).unwrap().count(), 0);
}
