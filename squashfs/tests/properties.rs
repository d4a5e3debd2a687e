//! Random trees: what our writer writes, our reader and backhand read as the tree it was.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use common::second::compare_with_backhand;
use mica_squashfs::codec::Compression;
use mica_squashfs::read::walk;
use mica_squashfs::rebuild::{Contents, describe, rebuild};
use mica_squashfs::verify::verify;
use mica_squashfs::write::{Attribute, Metadata, Node, NodeKind, Tree, WriteOptions, write};
use mica_squashfs::{Image, InodeKind, OpenOptions, XarHeader};
use proptest::prelude::*;

/// A file in the model: its kind with content, and what all kinds have.
#[derive(Debug, Clone)]
struct Model {
    kind: Kind,
    mode: u16,
    uid: u32,
    mtime: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Device(u32),
    Fifo,
}

/// Content of a few blocks, with runs that compress, noise that does not, and zeros that become holes.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let run = (any::<u8>(), 0..6000_usize).prop_map(|(byte, len)| vec![byte; len]);
    let zeros = (0..12_000_usize).prop_map(|len| vec![0; len]);
    let noise = (any::<u64>(), 0..5000_usize).prop_map(|(seed, n)| common::torture::noise(seed, n));
    prop::collection::vec(prop_oneof![run, zeros, noise], 0..4).prop_map(|parts| parts.concat())
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        2 => Just(Kind::Directory),
        6 => content().prop_map(Kind::File),
        1 => "[a-z/]{1,200}".prop_map(|target| Kind::Symlink(target.into_bytes())),
        1 => any::<u32>().prop_map(Kind::Device),
        1 => Just(Kind::Fifo),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let xattrs = prop::collection::btree_map(
        "(user|trusted|security)\\.[a-z]{1,9}",
        prop::collection::vec(any::<u8>(), 0..50),
        0..3,
    );
    (kind(), 0..0o10_000_u16, any::<u32>(), any::<u32>(), xattrs)
        .prop_map(|(kind, mode, uid, mtime, xattrs)| Model { kind, mode, uid, mtime, xattrs })
}

/// Names up to the longest, four levels deep.
fn tree() -> impl Strategy<Value = BTreeMap<Vec<u8>, Model>> {
    let name = prop_oneof!["[a-c]{1,2}", "[a-z]{200,255}", "[^/\u{0}.]{1,20}"];
    let path = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join("/").into_bytes());
    prop::collection::btree_map(path, model(), 0..40)
}

fn node(model: &Model) -> Node {
    let xattrs = model
        .xattrs
        .iter()
        .map(|(name, value)| Attribute { name: name.clone().into_bytes(), value: value.clone() })
        .collect();
    let metadata =
        Metadata { mode: model.mode, uid: model.uid, gid: 7, mtime: model.mtime, xattrs };
    let kind = match model.kind.clone() {
        Kind::Directory => NodeKind::Directory,
        Kind::File(bytes) => NodeKind::File(Box::new(bytes)),
        Kind::Symlink(target) => NodeKind::Symlink(target),
        Kind::Device(rdev) => NodeKind::CharDevice(rdev),
        Kind::Fifo => NodeKind::Fifo,
    };
    Node { metadata, kind }
}

/// Adds what can be added, a path below a file for example cannot; gives what was.
fn build(models: &BTreeMap<Vec<u8>, Model>) -> (Tree, BTreeMap<Vec<u8>, Model>) {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    let mut added = BTreeMap::new();
    for (path, model) in models {
        let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path.as_slice()),
        };
        let Ok(parent) = tree.make_directories(parent) else { continue };
        if tree.insert(parent, name, node(model)).is_ok() {
            added.insert(path.clone(), model.clone());
        }
    }
    (tree, added)
}

fn check(image: &Image, want: &BTreeMap<Vec<u8>, Model>) {
    let found: BTreeMap<_, _> =
        walk(image).map(|e| e.unwrap()).map(|e| (e.path, e.inode)).collect();
    for (path, model) in want {
        let inode = &found[path];
        assert_eq!(image.resolve(path).unwrap().as_ref(), Some(inode));
        assert_eq!((inode.mode, inode.uid, inode.mtime), (model.mode, model.uid, model.mtime));
        assert_eq!((inode.gid, inode.nlink >= 1), (7, true));
        let xattrs: BTreeMap<_, _> = image
            .xattrs(inode)
            .unwrap()
            .into_iter()
            .map(|x| (String::from_utf8(x.name).unwrap(), x.value))
            .collect();
        assert_eq!(xattrs, model.xattrs);
        match (&model.kind, &inode.kind) {
            (Kind::File(bytes), InodeKind::File { size, .. }) => {
                assert_eq!(bytes.len() as u64, *size);
                let mut got = vec![1; bytes.len() + 100];
                assert_eq!(image.read_at(inode, 0, &mut got).unwrap(), bytes.len());
                assert!(got[..bytes.len()] == bytes[..]);
                let middle = bytes.len() / 3;
                let n = image.read_at(inode, middle as u64, &mut got[..100]).unwrap();
                assert!(got[..n] == bytes[middle..][..n] && n == 100.min(bytes.len() - middle));
            }
            (Kind::Symlink(target), InodeKind::Symlink { .. }) => {
                assert_eq!(&image.read_link(inode).unwrap(), target);
            }
            (Kind::Device(want), InodeKind::CharDevice { rdev }) => assert_eq!(want, rdev),
            (Kind::Directory, InodeKind::Directory { .. }) | (Kind::Fifo, InodeKind::Fifo) => {}
            (want, got) => panic!("{want:?} became {got:?}"),
        }
    }
    let damage = verify(image, std::num::NonZero::new(1)).damage;
    assert!(damage.is_empty(), "{damage:?}");
}

/// The image comes back from its contents, all of its compressed blocks by compressing again.
fn check_rebuild(image: &Image, bytes: &[u8]) {
    let described = describe(image, None, None).unwrap();
    let (mut raw, mut again) = (Vec::new(), Vec::new());
    described.contents.copy_to(&mut raw, None).unwrap();
    rebuild(&described.recipe, None, &mut raw.as_slice(), &mut again, None).unwrap();
    assert!(again == bytes);
    assert_eq!(described.contents.len(), Contents::of(image).unwrap().len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn written_trees_read_the_same(
        models in tree(),
        compression in prop::sample::select(vec![
            Compression::None,
            Compression::Gzip,
            Compression::Xz,
            Compression::Lz4,
            Compression::Zstd,
        ]),
        block_size in prop::sample::select(vec![4096_u32, 8192, 131_072]),
    ) {
        let (tree, want) = build(&models);
        let options = WriteOptions { compression, block_size, jobs: Some(2), ..Default::default() };
        let mut out = Cursor::new(Vec::new());
        write(&tree, &options, &mut out).unwrap();
        let bytes = out.into_inner();
        let image = Image::from_source(Box::new(bytes.clone()), &OpenOptions::default()).unwrap();
        check(&image, &want);
        check_rebuild(&image, &bytes);
        // backhand is built with these two.
        if matches!(compression, Compression::Gzip | Compression::Zstd) {
            let scratch = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(scratch.path(), &bytes).unwrap();
            compare_with_backhand(scratch.path());
        }
    }
}

#[test]
fn many_threads_share_one_image_behind_a_xar_header() {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    for i in 0..300_u64 {
        let dir = tree.make_directories(format!("d{}", i % 17).as_bytes()).unwrap();
        let bytes = common::torture::noise(i, 20_000).repeat(2);
        let kind = NodeKind::File(Box::new(bytes));
        let node = Node { metadata: Metadata::with_mode(0o644), kind };
        tree.insert(dir, format!("f{i}").as_bytes(), node).unwrap();
    }
    let header = XarHeader { offset: 4096, version: Some("953bc".into()), ..Default::default() };
    let mut out = Cursor::new(header.encode().unwrap());
    out.set_position(4096);
    let options = WriteOptions { block_size: 16 << 10, ..Default::default() };
    write(&tree, &options, &mut out).unwrap();
    // Caches so small that the threads evict each other's blocks all the time.
    let options = OpenOptions {
        metadata_cache_bytes: 20_000,
        data_cache_bytes: 100_000,
        ..Default::default()
    };
    let image = Arc::new(Image::from_source(Box::new(out.into_inner()), &options).unwrap());
    assert_eq!(image.xar_header(), Some(&header));
    assert_eq!(image.start(), 4096);
    let threads: Vec<_> = (0..8_u64)
        .map(|thread| {
            let image = Arc::clone(&image);
            std::thread::spawn(move || {
                for i in (0..300).map(|i| (i * 7 + thread * 31) % 300) {
                    let path = format!("d{}/f{i}", i % 17);
                    let inode = image.resolve(path.as_bytes()).unwrap().unwrap();
                    let mut got = vec![0; 20_000];
                    assert_eq!(image.read_at(&inode, 20_000, &mut got).unwrap(), 20_000);
                    assert!(got == common::torture::noise(i, 20_000), "{path}");
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
