//! Where stored blocks go.
//!
//! ```text
//! | block block block … | zeros | block block … | zeros | …
//! '------ segment ------'-------'--- segment ---'-------'
//! ```
//!
//! Data is cut into segments of some MiB, each starting at a multiple of 64 KiB. A block that
//! shrinks or grows by some bytes moves what follows in its segment; the next segment stays where
//! it was unless the change crosses a 64 KiB boundary, and with it all inodes that point there.
//! Where a segment may end is said by a hash of the next file's path, so that an insertion moves
//! one cut and not all. The padding costs less than 1 %.

use std::io::{self, Write};

use crate::format::BlockSize;

/// Segments start at multiples of this.
const ALIGNMENT: u64 = 64 << 10;
/// A segment is at least this long, so that padding stays below 1 %: 32 KiB on average.
const SHORTEST: u64 = 4 << 20;
/// Beyond this a segment ends at the next file whatever its hash says.
const LONGEST: u64 = 16 << 20;

/// A compressed, stored or absent block.
pub(super) struct Stored {
    pub(super) bytes: Vec<u8>,
    pub(super) size: BlockSize,
}

/// Appends to the image and knows the position.
pub(super) struct Layout<'a, W: Write> {
    out: &'a mut W,
    position: u64,
    segment: u64,
}

impl<'a, W: Write> Layout<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        Self { out, position: 0, segment: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Says that blocks of another file follow, with the hash of its path.
    pub(super) fn boundary(&mut self, hash: u64) -> io::Result<()> {
        let length = self.position - self.segment;
        if length >= LONGEST || (length >= SHORTEST && hash % 8 == 0) {
            let next = self.position.next_multiple_of(ALIGNMENT);
            const ZEROS: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];
            self.put(&ZEROS[..(next - self.position) as usize])?;
            self.segment = next;
        }
        Ok(())
    }
}
