//! Metadata blocks and the two-level tables made of them.

use std::collections::HashMap;

use crate::codec::{CodecError, Compression, Compressor};
use crate::format::{METADATA_SIZE, MetaHeader, MetaRef};

/// Compressed inode blocks are filled up to a multiple of this, see [`MetaWriter::steady`].
const STEP: usize = 256;
/// First bytes of a zstd frame that decoders skip; its length follows as a `u32`.
const SKIPPABLE: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();

/// A table under construction: bytes go in, full blocks are compressed as they fill up.
pub(super) struct MetaWriter<'a> {
    compressor: &'a mut Compressor,
    /// Finished blocks with their headers.
    done: Vec<u8>,
    /// Positions in `done` where blocks start.
    starts: Vec<u64>,
    /// Bytes of the block that is not full yet.
    open: Vec<u8>,
    scratch: Vec<u8>,
    steady: bool,
}

impl<'a> MetaWriter<'a> {
    pub(super) fn new(compressor: &'a mut Compressor) -> Self {
        let open = Vec::with_capacity(METADATA_SIZE);
        let (done, starts, scratch) = (Vec::new(), Vec::new(), Vec::new());
        Self { compressor, done, starts, open, scratch, steady: false }
    }

    /// A table of which others name blocks by position. Compressed blocks take a multiple of
    /// [`STEP`] bytes, so that a change in one does not move those behind it and with them every
    /// reference; it costs a few per cent of the table. Only zstd has a way to fill up a block.
    pub(super) fn steady(compressor: &'a mut Compressor) -> Self {
        let steady = compressor.compression() == Compression::Zstd;
        Self { steady, ..Self::new(compressor) }
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> MetaRef {
        MetaRef::new(self.done.len() as u64, self.open.len() as u16)
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), CodecError> {
        while !bytes.is_empty() {
            let room = METADATA_SIZE - self.open.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.open.extend_from_slice(now);
            bytes = later;
            // At once: a position never points at the end of a full block.
            if self.open.len() == METADATA_SIZE {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// The table's bytes and the position of each of its blocks.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, Vec<u64>), CodecError> {
        if !self.open.is_empty() {
            self.flush()?;
        }
        Ok((self.done, self.starts))
    }

    fn flush(&mut self) -> Result<(), CodecError> {
        let compressed = self.compressor.compress(&self.open, &mut self.scratch)?;
        if compressed && self.steady {
            fill_up(&mut self.scratch, self.open.len());
        }
        let stored = if compressed { &self.scratch } else { &self.open };
        self.starts.push(self.done.len() as u64);
        let header = MetaHeader { stored: stored.len() as u16, compressed };
        self.done.extend_from_slice(&header.encode());
        self.done.extend_from_slice(stored);
        self.open.clear();
        Ok(())
    }
}

/// Appends a skippable frame, if that leaves the block shorter than `raw` bytes.
fn fill_up(block: &mut Vec<u8>, raw: usize) {
    let header = SKIPPABLE.len() + 4;
    let size = MetaHeader::SIZE + block.len();
    let mut filled = size.next_multiple_of(STEP);
    if filled != size && filled - size < header {
        filled += STEP;
    }
    if filled == size || filled - MetaHeader::SIZE >= raw {
        return;
    }
    let rest = filled - size - header;
    block.extend_from_slice(&SKIPPABLE);
    block.extend_from_slice(&(rest as u32).to_le_bytes());
    block.resize(filled - MetaHeader::SIZE, 0);
}

/// The metadata blocks of a table, and what follows them as one piece.
pub(super) fn pieces(mut table: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let header = table.first_chunk().and_then(|header| MetaHeader::decode(*header).ok());
        let length = header.map_or(table.len(), |header| MetaHeader::SIZE + header.stored as usize);
        let (piece, rest) = table.split_at(length.min(table.len()));
        table = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A table of two levels that starts at `at` in the image: its bytes, and where its positions are.
pub(super) fn two_levels(
    entries: &[u8],
    at: u64,
    compressor: &mut Compressor,
) -> Result<(Vec<u8>, u64), CodecError> {
    let mut table = MetaWriter::new(compressor);
    table.write(entries)?;
    let (mut bytes, starts) = table.finish()?;
    let positions = at + bytes.len() as u64;
    bytes.extend(starts.iter().flat_map(|start| (at + start).to_le_bytes()));
    Ok((bytes, positions))
}

/// Owners and groups, each stored once and named by its index, in order of first use.
#[derive(Default)]
pub(super) struct Ids {
    index: HashMap<u32, u16>,
    pub(super) bytes: Vec<u8>,
}

impl Ids {
    /// The index of `id`; `None` when the table, which has 65536 places, is full.
    pub(super) fn index(&mut self, id: u32) -> Option<u16> {
        if let Some(index) = self.index.get(&id) {
            return Some(*index);
        }
        // The superblock counts them in 16 bits.
        let index = u16::try_from(self.index.len()).ok().filter(|&index| index < u16::MAX)?;
        self.index.insert(id, index);
        self.bytes.extend_from_slice(&id.to_le_bytes());
        Some(index)
    }

    pub(super) fn len(&self) -> u16 {
        self.index.len() as u16
    }
}
