//! What of the old contents a piece of the new ones may be like.
//!
//! The old contents are seen as blocks of 64 KiB. A piece votes for blocks, and those with most votes become its
//! reference:
//!
//! - *by path*: where a file of the same path was, else of the same path but for its digits (`libf.so.1.2`,
//!   `f-1.2.dist-info`), in a long one at about the same place;
//! - *by content*: a rolling hash picks about every 256th position of both contents, by the 32 bytes before it alone.
//!   Equal bytes have equal anchors wherever they went: into a file of another name, or further down in a large one.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write};
use std::ops::Range;

use mica_squashfs::rebuild::{Contents, ContentsError};

/// Of the old contents, so much is a block.
const BLOCK: u64 = 64 << 10;
/// About so many anchors of the old contents are kept, at 8 bytes each.
const ANCHORS: u64 = 4 << 20;
/// An anchor in more blocks than this says nothing.
const COMMON: usize = 8;
/// What an anchor counts for its block; it says something of the blocks beside it too.
const SHARED: u64 = 8;
const BESIDE: u64 = 1;
/// A file by path counts one for so many of its bytes.
const BY_PATH: u64 = 512;

/// What is known of the old contents.
pub(super) struct Old {
    len: u64,
    /// Key and block, sorted.
    anchors: Vec<(u32, u32)>,
    sampling: Sampling,
    /// Votes of a block a quarter of whose anchors are shared.
    strong: u64,
    files: HashMap<u64, Range<u64>>,
    /// What comes behind the files.
    tables: Range<u64>,
}

/// Where the files of the new contents are, and the old ones of about their path.
pub(super) struct Files {
    /// In the order of the new contents.
    pairs: Vec<(Range<u64>, Range<u64>)>,
}

/// How many positions are anchors: those whose hash has these bits zero.
#[derive(Clone, Copy)]
struct Sampling(u64);

impl Old {
    pub(super) fn of(contents: &Contents<'_>) -> Result<Self, ContentsError> {
        let len = contents.len();
        let every = (len / ANCHORS).next_power_of_two().max(256);
        let sampling = Sampling((every - 1) << (64 - every.trailing_zeros()));
        let mut scan = Scan { anchors: Vec::new(), sampling, rolling: Rolling::default(), at: 0 };
        contents.copy_to(&mut scan, None)?;
        let mut anchors = scan.anchors;
        anchors.sort_unstable();
        anchors.dedup();
        let mut files = HashMap::new();
        let mut end = 0;
        for file in contents.files() {
            let file = file?;
            let range = start_of(&file.ranges);
            end = file.ranges.iter().map(|range| range.end).fold(end, u64::max);
            files.entry(key(&without_digits(&file.path))).or_insert_with(|| range.clone());
            files.insert(key(&file.path), range);
        }
        let strong = BLOCK / every / 4 * SHARED;
        Ok(Self { len, anchors, sampling, strong, files, tables: end..len })
    }

    /// Pairs the files of the new contents with old ones.
    pub(super) fn pair(&self, new: &Contents<'_>) -> Result<Files, ContentsError> {
        let mut pairs = Vec::new();
        let mut end = 0;
        for file in new.files() {
            let file = file?;
            let range = start_of(&file.ranges);
            end = file.ranges.iter().map(|range| range.end).fold(end, u64::max);
            let old = self.files.get(&key(&file.path));
            let old = old.or_else(|| self.files.get(&key(&without_digits(&file.path))));
            pairs.extend(old.map(|old| (range, old.clone())));
        }
        pairs.push((end..new.len(), self.tables.clone()));
        pairs.sort_unstable_by_key(|(new, _)| new.start);
        Ok(Files { pairs })
    }

    /// The runs of the old contents, at most `limit` bytes, that are most like a piece of the new ones.
    pub(super) fn reference(
        &self,
        files: &Files,
        start: u64,
        piece: &[u8],
        limit: u64,
    ) -> Vec<(u64, u32)> {
        let mut votes: HashMap<u64, u64> = HashMap::new();
        self.vote_by_content(piece, &mut votes);
        self.vote_by_path(files, start..start + piece.len() as u64, &mut votes);
        let mut blocks: Vec<(u64, u64)> = votes.into_iter().filter(|(_, n)| *n >= SHARED).collect();
        blocks.sort_unstable_by_key(|(block, votes)| (std::cmp::Reverse(*votes), *block));
        blocks.truncate((limit / BLOCK) as usize);
        // Each block costs the node decoding it: about as much as the piece is long for whatever it saves, more only for much.
        let strong = blocks.partition_point(|(_, votes)| *votes >= self.strong);
        blocks.truncate(strong.max(piece.len().div_ceil(BLOCK as usize) + 1));
        blocks.sort_unstable();
        let mut runs: Vec<(u64, u32)> = Vec::new();
        for (block, _) in blocks {
            let position = block * BLOCK;
            let len = BLOCK.min(self.len.saturating_sub(position)) as u32;
            match runs.last_mut() {
                Some((last, run)) if *last + u64::from(*run) == position => *run += len,
                _ if len > 0 => runs.push((position, len)),
                _ => {}
            }
        }
        runs
    }

    fn vote_by_content(&self, piece: &[u8], votes: &mut HashMap<u64, u64>) {
        let mut rolling = Rolling::default();
        for byte in piece {
            let Some(key) = rolling.next(*byte, self.sampling) else { continue };
            let from = self.anchors.partition_point(|(have, _)| *have < key);
            let same = self.anchors[from..].iter().take_while(|(have, _)| *have == key);
            let blocks: Vec<u64> =
                same.take(COMMON + 1).map(|(_, block)| (*block).into()).collect();
            if blocks.len() > COMMON {
                continue;
            }
            for block in blocks {
                *votes.entry(block).or_default() += SHARED;
                *votes.entry(block + 1).or_default() += BESIDE;
                *votes.entry(block.saturating_sub(1)).or_default() += BESIDE;
            }
        }
    }

    fn vote_by_path(&self, files: &Files, piece: Range<u64>, votes: &mut HashMap<u64, u64>) {
        // Files may share their ranges, but do not overlap otherwise, so ends are sorted as well.
        let from = files.pairs.partition_point(|(new, _)| new.end <= piece.start);
        let within = files.pairs[from..].iter().take_while(|(new, _)| new.start < piece.end);
        for (new, old) in within {
            let (new_len, old_len) = (new.end - new.start, old.end - old.start);
            let scaled = |at: u64| {
                let at = u128::from(at.clamp(new.start, new.end) - new.start);
                old.start + (at * u128::from(old_len) / u128::from(new_len.max(1))) as u64
            };
            let (first, last) = (scaled(piece.start), scaled(piece.end));
            for block in first / BLOCK..last.div_ceil(BLOCK) {
                let of_block = last.min((block + 1) * BLOCK) - first.max(block * BLOCK);
                *votes.entry(block).or_default() += (of_block / BY_PATH).max(SHARED);
            }
        }
    }
}

/// Where the content of a file starts, and how far it goes on; what of it is elsewhere is found by content.
fn start_of(ranges: &[Range<u64>]) -> Range<u64> {
    ranges.first().cloned().unwrap_or_default()
}

fn key(path: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// A path in which every number is the same.
fn without_digits(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len() + 1);
    for &byte in path {
        let byte = if byte.is_ascii_digit() { 0 } else { byte };
        if byte != 0 || out.last() != Some(&0) {
            out.push(byte);
        }
    }
    // So that it is never the path of another file as it is.
    out.push(0);
    out
}

/// A hash of the last 32 bytes: each shifts it by two bits.
#[derive(Default)]
struct Rolling(u64);

impl Rolling {
    /// The key of the anchor that ends with this byte, if there is one.
    fn next(&mut self, byte: u8, sampling: Sampling) -> Option<u32> {
        self.0 = (self.0 << 2).wrapping_add(spread(byte));
        if self.0 & sampling.0 != 0 {
            return None;
        }
        Some((self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32)
    }
}

/// A fixed random number for each byte.
fn spread(byte: u8) -> u64 {
    const TABLE: [u64; 256] = {
        let mut table = [0; 256];
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut i = 0;
        while i < table.len() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            table[i] = state;
            i += 1;
        }
        table
    };
    TABLE[usize::from(byte)]
}

/// Collects the anchors of what is written.
struct Scan {
    anchors: Vec<(u32, u32)>,
    sampling: Sampling,
    rolling: Rolling,
    at: u64,
}

impl Write for Scan {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if let Some(key) = self.rolling.next(*byte, self.sampling) {
                let anchor = (key, (self.at / BLOCK) as u32);
                if self.anchors.last() != Some(&anchor) {
                    self.anchors.push(anchor);
                }
            }
            self.at += 1;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
