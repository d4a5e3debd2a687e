//! Images by every writer come back bit for bit from their contents and their recipe; bad recipes end in errors.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor};
use std::num::NonZero;

use common::torture::{self, noise};
use common::{mksquashfs, run};
use mica_squashfs::codec::Compression;
use mica_squashfs::rebuild::{Contents, RebuildError, Recipe, Stored, describe, rebuild};
use mica_squashfs::write::{Metadata, Node, NodeKind, Tree, WriteOptions, write};
use mica_squashfs::{Image, OpenOptions, Source, XarHeader};

fn open(bytes: &[u8]) -> Image {
    Image::from_source(Box::new(bytes.to_vec()), &OpenOptions::default()).unwrap()
}

/// Describes and makes the image again; gives the recipe as it is shipped, and the contents.
fn round_trip(bytes: &[u8], what: &str) -> (Recipe, Vec<u8>, Vec<u8>) {
    let image = open(bytes);
    let described = describe(&image, None, NonZero::new(3)).unwrap();
    let packed = described.recipe.encode();
    let recipe = Recipe::parse(&packed).unwrap();
    assert_eq!(recipe, described.recipe, "{what}");
    let mut raw = Vec::new();
    described.contents.copy_to(&mut raw, None).unwrap();
    assert_eq!(raw.len() as u64, recipe.raw_len(), "{what}");
    let mut again = Vec::new();
    rebuild(&recipe, None, &mut raw.as_slice(), &mut again, NonZero::new(2)).unwrap();
    assert!(again == bytes, "{what}");
    (recipe, packed, raw)
}

fn file(bytes: Vec<u8>) -> Node {
    Node { metadata: Metadata::with_mode(0o644), kind: NodeKind::File(Box::new(bytes)) }
}

/// Small files, files of some blocks, one with holes, one that does not compress, two names of one content.
fn tree(change: &str) -> Tree {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    let dir = tree.make_directories(b"some/dir").unwrap();
    for i in 0..400_usize {
        let text = format!("{change} and line {i}\n").repeat(i % 90);
        tree.insert(dir, format!("small-{i}").as_bytes(), file(text.into_bytes())).unwrap();
    }
    let root = tree.root();
    let large =
        (0..40_000).flat_map(|i| format!("{i} {change}\n").into_bytes()).collect::<Vec<_>>();
    let holes = [large[..70_000].to_vec(), vec![0; 900_000], large[..5000].to_vec()].concat();
    tree.insert(root, b"same", file(large.clone())).unwrap();
    tree.insert(root, b"large", file(large)).unwrap();
    tree.insert(root, b"holes", file(holes)).unwrap();
    tree.insert(root, b"noise", file(noise(1, 500_000))).unwrap();
    tree
}

fn ours(tree: &Tree, compression: Compression, level: Option<u32>, block_size: u32) -> Vec<u8> {
    let header = XarHeader { offset: 4096, version: Some("0".into()), ..Default::default() };
    let mut out = Cursor::new(header.encode().unwrap());
    out.set_position(4096);
    write(tree, &WriteOptions { compression, level, block_size, ..Default::default() }, &mut out)
        .unwrap();
    out.into_inner()
}

#[test]
fn our_images_compress_again_to_the_same_bytes() {
    let tree = tree("text");
    for (compression, level, block_size) in [
        (Compression::Zstd, None, 128 << 10),
        (Compression::Zstd, Some(15), 4 << 10),
        (Compression::Zstd, Some(12), 1 << 20),
        (Compression::Gzip, None, 128 << 10),
        (Compression::Gzip, Some(3), 32 << 10),
        (Compression::Lz4, None, 64 << 10),
        (Compression::Xz, None, 128 << 10),
        (Compression::Xz, Some(1), 128 << 10),
    ] {
        let what = format!("{compression} {level:?} {block_size}");
        let image = ours(&tree, compression, level, block_size);
        let (recipe, packed, _) = round_trip(&image, &what);
        let alone = describe(&open(&image), None, NonZero::new(1)).unwrap().recipe;
        assert_eq!(recipe, alone, "{what}: it depends on the number of threads");
        assert_eq!(recipe.compression(), compression, "{what}");
        assert_eq!(recipe.library(), compression.library(), "{what}");
        if let Some(level) = level {
            assert_eq!(recipe.level(), level, "{what}");
        }
        // The file of noise, the header, superblock and padding.
        assert!(recipe.verbatim() < 530_000, "{what}: {}", recipe.verbatim());
        assert!(packed.len() < 600, "{what}: {}", packed.len());
    }
    let image = ours(&tree, Compression::None, None, 128 << 10);
    let (recipe, _, raw) = round_trip(&image, "none");
    assert_eq!((recipe.compression(), recipe.verbatim()), (Compression::None, image.len() as u64));
    assert!(raw == image);
}

#[test]
fn images_by_others_come_back_bit_for_bit() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    let out = scratch.path().join("image");
    let check = |what: &str| {
        let bytes = fs::read(&out).unwrap();
        let (recipe, packed, _) = round_trip(&bytes, what);
        assert!(packed.len() * 200 < bytes.len(), "{what}: {} of {}", packed.len(), bytes.len());
        fs::remove_file(&out).unwrap();
        recipe
    };
    for options in [
        "-comp zstd -Xcompression-level 3",
        "-comp gzip",
        "-comp lz4",
        "-comp xz",
        "-comp zstd -Xcompression-level 1 -b 1M -always-use-fragments",
        "-comp zstd -Xcompression-level 1 -b 4K -tailends -nopad",
        "-comp gzip -noI -noD -noF -noX",
    ] {
        mksquashfs(&tree, &out, options);
        check(options);
    }
    for options in ["-c zstd", "-c gzip -b 4K -e"] {
        let script = format!("gensquashfs -q -k -x -D \"$0\" {options} \"$1\"");
        run("sh", &[&"-c", &script, &tree, &out]);
        check(options);
    }
}

/// The content of every file, by the ranges of the contents.
fn by_path(contents: &Contents<'_>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let read = |range: &std::ops::Range<u64>| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        contents.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    };
    contents
        .files()
        .map(|file| file.unwrap())
        .map(|file| (file.path, file.ranges.iter().flat_map(read).collect()))
        .collect()
}

#[test]
fn files_are_found_in_the_contents() {
    for compression in [Compression::Zstd, Compression::None] {
        let bytes = ours(&tree("text"), compression, None, 16 << 10);
        let image = open(&bytes);
        let described = describe(&image, None, None).unwrap();
        let contents = Contents::of(&image).unwrap();
        assert_eq!(contents.len(), described.contents.len());
        let files = by_path(&contents);
        assert_eq!(files, by_path(&described.contents));
        for (path, found) in &files {
            let inode = image.resolve(path).unwrap().unwrap();
            let mut want = vec![0; inode.size() as usize];
            image.read_at(&inode, 0, &mut want).unwrap();
            if path == b"holes" {
                // Whole blocks of zeros are not stored.
                assert!(found.len() < 120_000 && found[..70_000] == want[..70_000]);
                assert!(found.ends_with(&want[want.len() - 5000..]));
            } else {
                assert!(*found == want, "{}", String::from_utf8_lossy(path));
            }
        }
        // All but the empty ones.
        assert_eq!(files.len(), 404 - 400_usize.div_ceil(90));
        let ranges = |path: &[u8]| {
            contents
                .files()
                .map(|file| file.unwrap())
                .find(|file| file.path == path)
                .unwrap()
                .ranges
        };
        assert_eq!(ranges(b"large"), ranges(b"same"));
        assert_eq!(ranges(b"large").len(), 1);
        // Reads anywhere agree with the whole.
        let mut raw = Vec::new();
        contents.copy_to(&mut raw, None).unwrap();
        let mut part = vec![0; 40_000];
        for at in (0..raw.len() - part.len()).step_by(37_777) {
            contents.read_exact_at(&mut part, at as u64).unwrap();
            assert!(part == raw[at..at + part.len()], "{at}");
        }
        assert!(contents.read_exact_at(&mut part, raw.len() as u64 - 39_999).is_err());
    }
}

/// The recipe and contents of the second image, as far as the first has not its blocks.
fn after(old: &[u8], new: &[u8]) -> (Recipe, Vec<u8>) {
    let stored = Stored::of(&Contents::of(&open(old)).unwrap()).unwrap();
    let image = open(new);
    let described = describe(&image, Some(&stored), NonZero::new(3)).unwrap();
    let mut raw = Vec::new();
    described.contents.copy_to(&mut raw, None).unwrap();
    assert_eq!(Recipe::parse(&described.recipe.encode()).unwrap(), described.recipe);
    assert_eq!(raw.len() as u64, described.recipe.raw_len());
    // What is left of the contents is to be had at any position too.
    let (mut part, end) = (vec![0; 30_000], raw.len() - 30_000);
    for at in (0..end).step_by(27_777) {
        described.contents.read_exact_at(&mut part, at as u64).unwrap();
        assert!(part == raw[at..at + part.len()], "{at}");
    }
    (described.recipe, raw)
}

#[test]
fn blocks_that_the_old_image_has_are_copied() {
    let mut changed = tree("text");
    let root = changed.root();
    changed.insert(root, b"a", file(b"in front of all others".repeat(40_000))).unwrap();
    changed.insert(root, b"zoo", file(b"behind them".repeat(40_000))).unwrap();
    let old = ours(&tree("text"), Compression::Zstd, None, 16 << 10);
    let new = ours(&changed, Compression::Zstd, None, 16 << 10);
    let (recipe, raw) = after(&old, &new);
    let (whole, _, all) = round_trip(&new, "new");
    assert_eq!(whole.copied(), 0);
    // All of the long files' blocks; they are not in the contents.
    assert!(recipe.copied() > 30_000, "{}", recipe.copied());
    assert!(raw.len() + 500_000 < all.len(), "{} of {}", raw.len(), all.len());

    let apply = |old: Option<&[u8]>| {
        let image = old.map(open);
        let contents = image.as_ref().map(|image| Contents::of(image).unwrap());
        let mut again = Vec::new();
        rebuild(&recipe, contents.as_ref(), &mut raw.as_slice(), &mut again, None).map(|()| again)
    };
    assert!(apply(Some(&old)).unwrap() == new);
    assert!(matches!(apply(None), Err(RebuildError::Old(_))));
    let other = ours(&tree("other"), Compression::Zstd, None, 16 << 10);
    assert!(matches!(apply(Some(&other)), Err(RebuildError::Mismatch)));
    let small = ours(&Tree::new(Metadata::with_mode(0o755)), Compression::Zstd, None, 16 << 10);
    assert!(matches!(apply(Some(&small)), Err(RebuildError::Old(_))));
    // Of the image itself only tables and what does not shrink are left.
    let (recipe, raw) = after(&new, &new);
    assert!(recipe.copied() > 33_000 && raw.len() < 540_000, "{recipe:?}");
}

#[test]
fn wrong_contents_and_recipes_are_errors() {
    let bytes = ours(&tree("text"), Compression::Zstd, None, 16 << 10);
    let (recipe, packed, raw) = round_trip(&bytes, "zstd");
    let rebuild = |recipe: &Recipe, raw: &[u8]| {
        rebuild(recipe, None, &mut &raw[..], &mut io::sink(), None).unwrap_err()
    };
    let mut bad = raw.clone();
    bad[5000] ^= 1;
    assert!(matches!(rebuild(&recipe, &bad), RebuildError::Mismatch));
    assert!(matches!(rebuild(&recipe, &raw[..raw.len() - 1]), RebuildError::Contents(_)));
    // Noise does not shrink, so a compressed block cannot be made of it.
    assert!(matches!(rebuild(&recipe, &noise(2, raw.len())), RebuildError::Mismatch));
    // Another version of the library: so short a recipe holds its name as it is.
    let at = packed.windows(5).position(|bytes| bytes == b"zstd-").unwrap();
    let mut other = packed.clone();
    other[at + 5] = b'9';
    let error = rebuild(&Recipe::parse(&other).unwrap(), &raw);
    let have = recipe.library();
    let want = have.replacen("zstd-1", "zstd-9", 1);
    let text = format!("the image was compressed by {want}, this program has {have}");
    assert_eq!(error.to_string(), text);
}

#[test]
fn mutated_recipes_end_in_errors() {
    let bytes = ours(&tree("text"), Compression::Gzip, Some(1), 16 << 10);
    let old = open(&ours(&tree("texts"), Compression::Gzip, Some(1), 16 << 10));
    let old = Contents::of(&old).unwrap();
    let image = open(&bytes);
    let described = describe(&image, Some(&Stored::of(&old).unwrap()), None).unwrap();
    let mut raw = Vec::new();
    described.contents.copy_to(&mut raw, None).unwrap();
    let recipe = described.recipe;
    let packed = recipe.encode();
    // Stored as it is, so that changes reach the numbers.
    assert_eq!(packed[8..12], (packed.len() as u32 - 12).to_le_bytes());
    let mut state = 1_u64;
    let mut random = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..3000 {
        let mut bad = packed.clone();
        for _ in 0..=random(3) {
            let at = 8 + random(bad.len() - 8);
            bad[at] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
        }
        let Ok(parsed) = Recipe::parse(&bad) else { continue };
        let mut out = Vec::new();
        let result = rebuild(&parsed, Some(&old), &mut raw.as_slice(), &mut out, NonZero::new(1));
        assert!(result.is_err() || out == bytes);
        assert!(out.len() as u64 <= parsed.image_len());
    }
}

#[test]
fn a_damaged_image_comes_back_damaged() {
    let good = ours(&tree("text"), Compression::Zstd, None, 16 << 10);
    let start = good.len() / 3;
    for step in 0..40 {
        let mut bytes = good.clone();
        let at = start + step * (good.len() - start - 1) / 40;
        bytes[at] ^= 0x10;
        if Image::from_source(Box::new(bytes.clone()), &OpenOptions::default()).is_ok() {
            round_trip(&bytes, &format!("changed at {at}"));
        }
    }
}
