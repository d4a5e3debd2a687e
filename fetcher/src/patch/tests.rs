//! Patches of random trees, and bytes that are no patch.

use std::collections::BTreeMap;

use mica_graph::Digest;
use mica_squashfs::rebuild::Contents;
use mica_squashfs::write::{Metadata, Node, NodeKind, Tree, WriteOptions, write};
use mica_squashfs::{Image, OpenOptions};
use proptest::prelude::*;
use proptest::sample::Index;

use super::format::{PatchError, PatchIndex};
use super::make::make_pieces;
use super::{apply, piece};

/// Small, so that little trees have many pieces.
const STEP: u64 = 64 << 10;

type Files = BTreeMap<String, Vec<u8>>;

fn image(files: &Files) -> Vec<u8> {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    for (name, content) in files {
        let kind = NodeKind::File(Box::new(content.clone()));
        let node = Node { metadata: Metadata::with_mode(0o644), kind };
        tree.insert(tree.root(), name.as_bytes(), node).unwrap();
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    write(&tree, &WriteOptions::default(), &mut bytes).unwrap();
    bytes.into_inner()
}

fn open(bytes: &[u8]) -> Image {
    Image::from_source(Box::new(bytes.to_vec()), &OpenOptions::default()).unwrap()
}

/// A patch, and the length of its index.
fn patch(old: &[u8], new: &[u8]) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let mut scratch = tempfile::tempfile().unwrap();
    let digest = Digest::of(old);
    let so_far = std::cell::Cell::new((0, 0));
    let progress = |done, total| {
        assert!(done > so_far.get().0 && done <= total, "{done} of {total}");
        so_far.set((done, total));
    };
    let (old, new) = (open(old), open(new));
    let made = make_pieces(STEP, &old, digest, &new, &mut scratch, &mut out, &progress).unwrap();
    assert_eq!(so_far.get().0, so_far.get().1, "it ends when all is done");
    assert_eq!(made.patch.size, out.len() as u64);
    assert_eq!(made.patch.digest, Digest::of(&out));
    let index = made.index.size as usize;
    assert_eq!(made.index.digest, Digest::of(&out[..index]));
    (out, index)
}

fn applied(old: &[u8], patch: &[u8], index_len: usize) -> Option<Vec<u8>> {
    let index = PatchIndex::parse(&patch[..index_len]).ok()?;
    let image = open(old);
    let contents = Contents::of(&image).ok()?;
    let mut rest = &patch[index_len..];
    let frame = |number: usize| {
        let (frame, tail) = rest.split_at(index.pieces[number].stored as usize);
        rest = tail;
        assert_eq!(Digest::of(frame), index.pieces[number].digest);
        Ok(frame.to_vec())
    };
    let mut out = Vec::new();
    apply(&index, &contents, frame, &mut out).ok()?;
    Some(out)
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    // Some of it compresses.
    bytes.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0x0f);
    bytes
}

/// What becomes of a file from one version to the next.
#[derive(Clone, Debug)]
enum Change {
    Keep,
    Remove,
    Rename(u8),
    Insert(Index, u16),
    Cut(Index, u16),
    Sprinkle(u8),
    Replace(u32, u32),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Keep),
        Just(Change::Remove),
        any::<u8>().prop_map(Change::Rename),
        (any::<Index>(), any::<u16>()).prop_map(|(at, len)| Change::Insert(at, len)),
        (any::<Index>(), any::<u16>()).prop_map(|(at, len)| Change::Cut(at, len)),
        (1..=255_u8).prop_map(Change::Sprinkle),
        (any::<u32>(), 0..200_000_u32).prop_map(|(seed, len)| Change::Replace(seed, len)),
    ]
}

fn change_file(files: &mut Files, name: &str, mut content: Vec<u8>, change: Change) {
    let mut name = name.to_owned();
    match change {
        Change::Keep => {}
        Change::Remove => return,
        Change::Rename(number) => name = format!("{name}.{number}"),
        Change::Insert(at, len) => {
            let at = at.index(content.len() + 1);
            content.splice(at..at, noise(len.into(), len.into()));
        }
        Change::Cut(at, len) => {
            let at = at.index(content.len() + 1);
            let end = (at + usize::from(len)).min(content.len());
            content.drain(at..end);
        }
        Change::Sprinkle(step) => {
            content.iter_mut().step_by(usize::from(step) * 16).for_each(|b| *b = b.wrapping_add(1));
        }
        Change::Replace(seed, len) => content = noise(seed, len as usize),
    }
    files.insert(name, content);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_patched_image_is_the_new_one(
        old in proptest::collection::vec((0..1000_u32, 0..300_000_usize, change()), 0..6),
    ) {
        let (mut before, mut after) = (Files::new(), Files::new());
        for (number, (seed, len, change)) in old.into_iter().enumerate() {
            let (name, content) = (format!("lib{number}-1.2.so"), noise(seed, len));
            before.insert(name.clone(), content.clone());
            change_file(&mut after, &name, content, change);
        }
        let (before, after) = (image(&before), image(&after));
        let (patch, index) = patch(&before, &after);
        prop_assert_eq!(applied(&before, &patch, index), Some(after));
    }
}

fn two_versions() -> (Vec<u8>, Vec<u8>) {
    let content = noise(1, 500_000);
    let before = Files::from([("libf.so.1.2".to_owned(), content.clone())]);
    let mut after = Files::new();
    change_file(&mut after, "libf.so.1.3", content, Change::Sprinkle(200));
    (image(&before), image(&after))
}

#[test]
fn little_changes_make_little_patches() {
    let (before, after) = two_versions();
    let (patch, _) = patch(&before, &after);
    assert!(patch.len() * 20 < after.len(), "{} of {}", patch.len(), after.len());
}

#[test]
fn what_moved_within_a_long_file_is_found() {
    let content = noise(3, 4_000_000);
    let mut moved = content.clone();
    moved.rotate_left(2_500_000);
    let before = image(&Files::from([("a".to_owned(), content)]));
    let after = image(&Files::from([("b".to_owned(), moved)]));
    let (patch, _) = patch(&before, &after);
    assert!(patch.len() * 20 < after.len(), "{} of {}", patch.len(), after.len());
}

#[test]
fn another_old_image_gives_no_image() {
    let (before, after) = two_versions();
    let (patch, index) = patch(&before, &after);
    let other = image(&Files::from([("x".to_owned(), noise(2, 600_000))]));
    assert_eq!(applied(&other, &patch, index), None);
}

#[test]
fn an_index_comes_back_from_its_bytes_and_damage_is_refused() {
    let (before, after) = two_versions();
    let (patch, len) = patch(&before, &after);
    let good = &patch[..len];
    let index = PatchIndex::parse(good).unwrap();
    assert_eq!(index.encode(), good);
    assert!(index.pieces.len() > 5 && index.pieces.iter().any(|p| !p.reference.is_empty()));
    for cut in 0..len {
        assert!(PatchIndex::parse(&good[..cut]).is_err(), "{cut}");
    }
    assert!(matches!(PatchIndex::parse(b"micapat2"), Err(PatchError::Magic)));
    // Any number may be another one; then what is read is within the bounds all the same.
    for at in 0..len {
        for bit in 0..8 {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << bit;
            let Ok(index) = PatchIndex::parse(&bad) else { continue };
            assert_eq!(index.encode().len(), bad.len());
            for piece in &index.pieces {
                let total: u64 = piece.reference.iter().map(|(_, run)| u64::from(*run)).sum();
                assert!(total <= super::format::REFERENCE_MAX as u64);
                assert!(piece.reference.iter().all(|(at, n)| at + u64::from(*n) <= index.old_len));
            }
        }
    }
}

#[test]
fn frames_of_other_bytes_are_errors() {
    let (reference, content) = (noise(1, 100_000), noise(2, 50_000));
    let frame = piece::encode(&reference, &content).unwrap();
    assert_eq!(piece::decode(&reference, &frame, content.len()).unwrap(), content);
    assert!(piece::decode(&reference, &frame, content.len() - 1).is_err());
    assert!(piece::decode(&reference, &frame, content.len() + 1).is_err());
    for at in (0..frame.len()).step_by(97) {
        let mut bad = frame.clone();
        bad[at] ^= 0x10;
        // Wrong bytes are for the digests to find; this is about ending well.
        if let Ok(bytes) = piece::decode(&reference, &bad, content.len()) {
            assert_eq!(bytes.len(), content.len());
        }
        assert!(piece::decode(&reference, &frame[..at], content.len()).is_err());
    }
}

/// A small patch that would keep processors busy for hours is refused before anything of it is decoded.
#[test]
fn the_work_of_a_patch_is_bounded_by_its_image() {
    let (before, after) = two_versions();
    let (patch, len) = patch(&before, &after);
    let good = PatchIndex::parse(&patch[..len]).unwrap();
    let hostile = |pieces: Vec<super::Piece>, old_len| {
        let index = PatchIndex { pieces, old_len, ..good.clone() };
        let begun = std::time::Instant::now();
        let parsed = PatchIndex::parse(&index.encode());
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
        parsed
    };
    let raw = good.recipe.raw_len();
    let huge: (u64, u32) = (0, super::format::REFERENCE_MAX as u32);
    let piece = |len: u64, reference: &[(u64, u32)]| super::Piece {
        len: len as u32,
        reference: reference.to_vec(),
        ..good.pieces[0].clone()
    };
    // A byte each, of 32 MiB of old contents each.
    let single = (0..raw).map(|_| piece(1, &[huge])).collect();
    assert!(matches!(hostile(single, 1 << 40), Err(PatchError::Value { value: 1, .. })));
    // Pieces of the least length.
    let least = super::format::PIECE_MIN as u64;
    let short = |reference: &[(u64, u32)]| {
        let count = raw / least;
        let mut pieces: Vec<_> = (0..count).map(|_| piece(least, reference)).collect();
        pieces.extend((!raw.is_multiple_of(least)).then(|| piece(raw % least, reference)));
        pieces
    };
    assert!(matches!(hostile(short(&[huge]), 1 << 40), Err(PatchError::Work { .. })));
    assert!(hostile(short(&[]), 1 << 40).is_ok());
    // Single bytes here and there, each of which takes decoding a block.
    let scattered: Vec<(u64, u32)> = (0..1000).map(|n| (n << 20, 1)).collect();
    assert!(matches!(hostile(short(&scattered), 1 << 40), Err(PatchError::Work { .. })));
}
