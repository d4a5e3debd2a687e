//! Reading along a run of metadata blocks.

use std::sync::Arc;

use super::core::{Core, MetaBlock};
use super::error::ReadError;
use crate::format::{FormatError, MetaRef};

/// A place in a run of metadata blocks: position of a block in the file system, offset in it when decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) block: u64,
    pub(crate) offset: u32,
}

impl Place {
    /// Where `reference` points in the table that starts at `table`.
    pub(crate) fn in_table(table: u64, reference: MetaRef) -> Self {
        // 48 bits of block and a table below 2^62 cannot overflow.
        Self { block: table + reference.block(), offset: reference.offset().into() }
    }
}

/// Goes forward only, and only to blocks behind the current one, so it ends within the size of the image.
pub(crate) struct Cursor<'a> {
    core: &'a Core,
    block: Arc<MetaBlock>,
    position: u64,
    offset: usize,
    /// No block may end behind this.
    limit: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(core: &'a Core, place: Place, limit: u64) -> Result<Self, ReadError> {
        let block = core.meta_block(place.block, limit)?;
        let offset = place.offset as usize;
        if offset > block.bytes.len() {
            return Err(ReadError::Range {
                what: "offset in a metadata block",
                value: offset as u64,
            });
        }
        Ok(Self { core, block, position: place.block, offset, limit })
    }

    pub(crate) fn place(&self) -> Place {
        Place { block: self.position, offset: self.offset as u32 }
    }

    /// The rest of the current block, or the next block where nothing is left; never empty.
    pub(crate) fn chunk(&mut self) -> Result<&[u8], ReadError> {
        if self.offset == self.block.bytes.len() {
            self.position = self.block.next;
            self.block = self.core.meta_block(self.position, self.limit)?;
            self.offset = 0;
        }
        Ok(&self.block.bytes[self.offset..])
    }

    pub(crate) fn read(&mut self, mut buf: &mut [u8]) -> Result<(), ReadError> {
        while !buf.is_empty() {
            let chunk = self.chunk()?;
            let n = chunk.len().min(buf.len());
            let (head, rest) = buf.split_at_mut(n);
            head.copy_from_slice(&chunk[..n]);
            buf = rest;
            self.offset += n;
        }
        Ok(())
    }

    pub(crate) fn skip(&mut self, mut count: u64) -> Result<(), ReadError> {
        while count > 0 {
            let n = (self.chunk()?.len() as u64).min(count);
            self.offset += n as usize;
            count -= n;
        }
        Ok(())
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Appends `len` bytes to `out`. It grows as they are found, not as far as `len` claims.
    pub(crate) fn append(&mut self, mut len: usize, out: &mut Vec<u8>) -> Result<(), ReadError> {
        while len > 0 {
            let chunk = self.chunk()?;
            let n = chunk.len().min(len);
            out.extend_from_slice(&chunk[..n]);
            self.offset += n;
            len -= n;
        }
        Ok(())
    }

    /// Puts a decoding error to the block it was found in.
    pub(crate) fn check<T>(&self, result: Result<T, FormatError>) -> Result<T, ReadError> {
        result.map_err(|source| ReadError::Format { position: self.position, source })
    }
}
