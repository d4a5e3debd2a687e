//! Cuts what is written into the chunks of the [chunk table](crate::chunks).
//!
//! Cuts lie between pieces (stored blocks, metadata blocks). A chunk that is long enough ends behind
//! a large piece, and behind every second small one, by its bytes; and before a piece that would make
//! it too long, and around padding, whose length changes with what comes before it.
//!
//! Short chunks ship less of what has not changed, long ones make a short table, which is shipped
//! whole. With the lower bound at 32 KiB, table included, numpy 2.4.5 -> 2.4.6 takes 8.5 MB and
//! pandas 3.1.0 -> 3.1.1 21.6 MB; at 64 KiB 10.2 and 24.0; with a chunk for each block 7.9 and 20.0,
//! but the table of a 276 MB image is 360 kB instead of 190.

use crate::chunks::ChunkTable;

/// Between which lengths chunks are cut, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    shortest: usize,
    longest: usize,
}

pub(super) const DATA: Bounds = Bounds { shortest: 32 << 10, longest: 256 << 10 };
/// A piece of this size ends a chunk whatever its bytes are.
const LARGE: usize = 16 << 10;
/// Tables are a small part of an image, but change a little with every change.
pub(super) const TABLES: Bounds = Bounds { shortest: 32 << 10, longest: 128 << 10 };

pub(super) struct Cutter {
    table: ChunkTable,
    hasher: blake3::Hasher,
    length: usize,
    bounds: Bounds,
}

impl Cutter {
    /// The first chunk holds the superblock, whose bytes are known last: see [`Cutter::finish`].
    pub(super) fn new() -> Self {
        Self {
            table: ChunkTable::default(),
            hasher: blake3::Hasher::new(),
            length: 0,
            bounds: DATA,
        }
    }

    pub(super) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    pub(super) fn piece(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() > self.bounds.longest {
            self.cut();
        }
        self.hasher.update(bytes);
        self.length += bytes.len();
        if self.length >= self.bounds.shortest && (bytes.len() >= LARGE || is_end(bytes)) {
            self.cut();
        }
    }

    pub(super) fn cut(&mut self) {
        if self.length > 0 {
            self.table.push(self.length as u32, *self.hasher.finalize().as_bytes());
            self.hasher.reset();
            self.length = 0;
        }
    }

    /// The table, with `head` as the bytes of the first chunk.
    pub(super) fn finish(mut self, head: &[u8]) -> ChunkTable {
        self.cut();
        let mut table = ChunkTable::default();
        table.push(head.len() as u32, *blake3::hash(head).as_bytes());
        let rest = self.table.chunks().iter().skip(1);
        rest.for_each(|chunk| table.push(chunk.length, chunk.digest));
        table
    }
}

/// Every second piece, by its first and last bytes: padding at its end shall not decide alone.
fn is_end(piece: &[u8]) -> bool {
    let tail = &piece[piece.len() - piece.len().min(16)..];
    let head = &piece[..piece.len().min(64)];
    let mixed = head.iter().chain(tail).fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (mixed >> 40).is_multiple_of(2)
}
