//! What a worker does to a block.

use super::data::{ReadFailure, is_zero};
use super::layout::Stored;
use super::pool::Worker;
use crate::format::BlockSize;

impl Worker {
    /// Stores `bytes`, which are not looked at for being all zeros.
    pub(super) fn store(&mut self, bytes: Vec<u8>) -> Result<Stored, ReadFailure> {
        self.raw = bytes;
        self.store_block()
    }

    /// Stores what was read into `raw`, or a hole.
    pub(super) fn store_raw(&mut self) -> Result<Stored, ReadFailure> {
        if is_zero(&self.raw) {
            let size = BlockSize::HOLE;
            return Ok(Stored { bytes: Vec::new(), size, hashes: None, reused: false });
        }
        self.store_block()
    }

    fn store_block(&mut self) -> Result<Stored, ReadFailure> {
        let wanted = self.index || self.previous.is_some();
        let raw = wanted.then(|| blake3::hash(&self.raw));
        if let Some((previous, raw)) = self.previous.as_ref().zip(raw)
            && let Some((bytes, entry)) = previous.find(&raw, self.raw.len())
        {
            let hashes = Some((entry.raw, entry.stored));
            return Ok(Stored { bytes, size: entry.size, hashes, reused: true });
        }
        let (bytes, size) = self.compress()?;
        let hashes = match (self.index, raw) {
            (true, Some(raw)) => Some((*raw.as_bytes(), *blake3::hash(&bytes).as_bytes())),
            _ => None,
        };
        Ok(Stored { bytes, size, hashes, reused: false })
    }

    fn compress(&mut self) -> Result<(Vec<u8>, BlockSize), ReadFailure> {
        let shrunk = self.compressor.compress(&self.raw, &mut self.compressed);
        let shrunk = shrunk.map_err(ReadFailure::Codec)?;
        // A copy of the right size: what waits to be written should not hold the room that
        // compressing needed, and that room is not given back and asked for again.
        let bytes = if shrunk { &self.compressed } else { &self.raw };
        Ok((bytes.clone(), BlockSize::new(bytes.len() as u32, shrunk)))
    }
}
