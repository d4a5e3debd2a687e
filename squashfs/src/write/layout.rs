//! Where stored blocks go.
//!
//! ```text
//! | block block block … | zeros | block block … | zeros | …
//! '------ segment ------'-------'--- segment ---'-------'
//! ```
//!
//! Data is cut into segments of some MiB, each starting at a multiple of 16 KiB. A block that
//! shrinks or grows by some bytes moves what follows in its segment; the next segment stays where
//! it was unless the change crosses a 16 KiB boundary, and with it all inodes that point there.
//! Where a segment may end is said by a hash of the next file's path, so that an insertion moves
//! one cut and not all. The padding costs less than 1 %.

use std::io::{self, Write};

use super::cutter::{Bounds, Cutter};
use super::reuse::Key;
use crate::chunks::ChunkTable;
use crate::format::BlockSize;

/// Segments start at multiples of this.
const ALIGNMENT: u64 = 16 << 10;
/// A segment is at least this long, so that padding stays below 1 %: 8 KiB on average.
const SHORTEST: u64 = 2 << 20;
/// Beyond this a segment ends at the next file whatever its hash says.
const LONGEST: u64 = 8 << 20;

/// A compressed, stored or absent block.
pub(super) struct Stored {
    pub(super) bytes: Vec<u8>,
    pub(super) size: BlockSize,
    /// What it is known by, if keys are wanted and it is no hole.
    pub(super) key: Option<Key>,
    /// Hash of the stored bytes, if an index is wanted.
    pub(super) digest: Option<[u8; 32]>,
    /// Taken from an earlier image.
    pub(super) reused: bool,
}

/// Appends to the image and knows the position.
pub(super) struct Layout<'a, W: Write> {
    out: &'a mut W,
    position: u64,
    segment: u64,
    cutter: Cutter,
}

impl<'a, W: Write> Layout<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        Self { out, position: 0, segment: 0, cutter: Cutter::new() }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Appends a piece: chunks of the image are cut between pieces.
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        self.cutter.piece(bytes);
        Ok(())
    }

    /// Ends the chunk; those that follow have other bounds.
    pub(super) fn cut(&mut self, bounds: Bounds) {
        self.cutter.cut();
        self.cutter.set_bounds(bounds);
    }

    /// All chunks, the first of which has the bytes `head`.
    pub(super) fn finish(self, head: &[u8]) -> ChunkTable {
        self.cutter.finish(head)
    }

    /// Says that blocks of another file follow, with the hash of its path.
    pub(super) fn boundary(&mut self, hash: u64) -> io::Result<()> {
        let length = self.position - self.segment;
        if length >= LONGEST || (length >= SHORTEST && hash.is_multiple_of(8)) {
            let next = self.position.next_multiple_of(ALIGNMENT);
            const ZEROS: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];
            self.cutter.cut();
            self.put(&ZEROS[..(next - self.position) as usize])?;
            self.cutter.cut();
            self.segment = next;
        }
        Ok(())
    }
}
