//! Where a file's blocks are.
//!
//! An inode lists the stored size of each block; a block's position is the sum of all sizes before it. For random
//! access the sums are kept: for usual files next to the sizes themselves, one for every 64 blocks; for huge files (more
//! than 256 Ki blocks: 32 GiB at 128 KiB) at most 4096, one for every 2048 blocks or more, with the place in the inode
//! table to go on from, found as far as somebody asked. So an image that claims a file of a petabyte costs nobody memory.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::core::Core;
use super::cursor::{Cursor, Place};
use super::error::ReadError;
use super::inode::{Inode, InodeKind};
use crate::format::{BlockSize, METADATA_SIZE};

/// Sums are kept for every so many blocks.
const STRIDE: usize = 64;
/// Files of up to so many blocks have their list in memory (1 MiB).
const IN_MEMORY: u64 = 1 << 18;
/// Blocks between two marks of a huge file, at least: as many sizes as fill a metadata block.
const MARK_STRIDE: u64 = (METADATA_SIZE / 4) as u64;
/// Marks that are kept of a huge file; of larger ones they are further apart.
const MARKS: u64 = 4096;

/// How far [`FileBlocks::next_kind`] looks at once.
const SCAN: u64 = 1 << 20;

/// A stored block. Its position identifies it in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Position in the file system; [`super::Image::start`] more in the file.
    pub offset: u64,
    /// Bytes stored.
    pub stored: u32,
    /// Whether they are compressed.
    pub compressed: bool,
}

impl BlockRef {
    pub(crate) fn new(offset: u64, size: BlockSize) -> Self {
        Self { offset, stored: size.stored(), compressed: size.is_compressed() }
    }
}

/// Where the content of one block of a file is; `len` is what the file has of it: the block size, or less in the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Zeros that are not stored.
    Hole {
        /// Bytes of the file.
        len: u32,
    },
    /// A block of its own, which decodes to exactly `len` bytes.
    Data {
        /// The stored block.
        block: BlockRef,
        /// Bytes of the file.
        len: u32,
    },
    /// A part of a block that several files share.
    Fragment {
        /// The stored block, which decodes to at least `start + len` bytes.
        block: BlockRef,
        /// Where the file's bytes start in the decoded block.
        start: u32,
        /// Bytes of the file.
        len: u32,
    },
}

impl Block {
    /// Bytes of the file.
    pub fn len(&self) -> u32 {
        match *self {
            Self::Hole { len } | Self::Data { len, .. } | Self::Fragment { len, .. } => len,
        }
    }

    /// Never: a file has no blocks without bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The blocks of one file, for random access from many threads.
pub struct FileBlocks {
    core: Arc<Core>,
    size: u64,
    /// Blocks in the list: all, but for a tail in a fragment.
    listed: u64,
    tail: Option<(BlockRef, u32)>,
    list: List,
}

enum List {
    Memory {
        sizes: Vec<BlockSize>,
        /// Position of every [`STRIDE`]th block.
        sums: Vec<u64>,
    },
    /// Marks found so far, one for every `stride` blocks; there is always the first.
    Marks {
        stride: u64,
        found: Mutex<Vec<Mark>>,
        /// Where the block after the one found last is: who reads in sequence goes on there.
        next: Mutex<(u64, Mark)>,
    },
}

/// Where the list goes on, and where the data.
#[derive(Clone, Copy)]
struct Mark {
    list: Place,
    position: u64,
}

impl FileBlocks {
    pub(crate) fn new(core: Arc<Core>, inode: &Inode) -> Result<Self, ReadError> {
        let InodeKind::File { size, content } = inode.kind else {
            return Err(inode.wrong_kind("regular file"));
        };
        let block_size = u64::from(core.superblock.block_size);
        let fragment = content.fragment.filter(|_| size % block_size != 0);
        let listed = match fragment {
            Some(_) => size / block_size,
            None => size.div_ceil(block_size),
        };
        // No metadata block takes less than three bytes, so the rest of the table cannot hold more sizes than this.
        let table_left = core.superblock.directory_table.saturating_sub(content.list.block);
        if listed > (table_left / 3 + 1).saturating_mul(MARK_STRIDE) {
            return Err(ReadError::Range { what: "file size", value: size });
        }
        let tail = match fragment {
            None => None,
            Some(position) => {
                let entry = core.fragment(position.index)?;
                let end = u64::from(position.offset) + size % block_size;
                if end > block_size {
                    return Err(ReadError::Range { what: "end of a fragment", value: end });
                }
                Some((BlockRef::new(entry.start, entry.size), position.offset))
            }
        };
        let first = Mark { list: content.list, position: content.start };
        let list = if listed <= IN_MEMORY {
            read_list(&core, first, listed)?
        } else {
            let stride = listed.div_ceil(MARKS).next_multiple_of(MARK_STRIDE);
            List::Marks { stride, found: Mutex::new(vec![first]), next: Mutex::new((0, first)) }
        };
        Ok(Self { core, size, listed, tail, list })
    }

    /// Size of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of every block but the last.
    pub fn block_size(&self) -> u32 {
        self.core.superblock.block_size
    }

    /// Number of blocks, a tail in a fragment and holes included.
    pub fn count(&self) -> u64 {
        self.listed + u64::from(self.tail.is_some())
    }

    /// Position of the fragment block that holds the tail, if one does.
    pub(crate) fn fragment_offset(&self) -> Option<u64> {
        self.tail.map(|(block, _)| block.offset)
    }

    /// Block `index`, which holds the bytes from `index * block_size` on.
    pub fn block(&self, index: u64) -> Result<Block, ReadError> {
        if index >= self.count() {
            return Err(ReadError::Range { what: "block index", value: index });
        }
        let block_size = u64::from(self.block_size());
        let len = (self.size - index * block_size).min(block_size) as u32;
        if let Some((block, start)) = self.tail.filter(|_| index == self.listed) {
            return Ok(Block::Fragment { block, start, len });
        }
        let (position, size) = self.find(index)?;
        if size.is_hole() {
            return Ok(Block::Hole { len });
        }
        if size.stored() > self.block_size() {
            let value = size.stored().into();
            return Err(ReadError::Range { what: "stored size of a block", value });
        }
        Ok(Block::Data { block: BlockRef::new(position, size), len })
    }

    /// Decodes block `index` into `out`: exactly the bytes the file has there. Fragment blocks go through the image's
    /// cache, since the next file is likely to be in the same one.
    pub fn read(&self, index: u64, out: &mut Vec<u8>) -> Result<(), ReadError> {
        match self.block(index)? {
            Block::Hole { len } => {
                out.clear();
                out.resize(len as usize, 0);
                Ok(())
            }
            Block::Data { block, len } => self.core.exact_block(&block, len, out),
            Block::Fragment { block, start, len } => {
                out.resize(len as usize, 0);
                let whole = self.core.cached_fragment(&block)?;
                copy(&whole, start as usize, out, &block)
            }
        }
    }

    /// Reads from `offset`: as many bytes as fit `buf` or the file has. Decoded blocks go through the image's cache.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let block_size = u64::from(self.block_size());
        let end = offset.saturating_add(buf.len() as u64).min(self.size);
        let mut at = offset;
        let mut rest = buf;
        while at < end {
            let within = (at % block_size) as usize;
            let block = self.block(at / block_size)?;
            let n = (block.len() as usize - within).min((end - at) as usize);
            let (head, tail) = rest.split_at_mut(n);
            match block {
                Block::Hole { .. } => head.fill(0),
                Block::Data { block, len } => {
                    let bytes =
                        self.core.cached(block, |out| self.core.exact_block(&block, len, out))?;
                    // Another file may claim the same block with another length.
                    copy(&bytes, within, head, &block)?;
                }
                Block::Fragment { block, start, .. } => {
                    let bytes = self.core.cached_fragment(&block)?;
                    copy(&bytes, start as usize + within, head, &block)?;
                }
            }
            at += n as u64;
            rest = tail;
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    /// The first block from `index` on that is stored, or with `hole` is not; `Err` of the block at which it was given up
    /// after as many as `SCAN`. The count of blocks where there is none.
    pub fn next_kind(&self, index: u64, hole: bool) -> Result<Result<u64, u64>, ReadError> {
        let until = self.listed.min(index.saturating_add(SCAN));
        let mut at = index;
        match &self.list {
            List::Memory { sizes, .. } => {
                while at < until && sizes[at as usize].is_hole() != hole {
                    at += 1;
                }
            }
            List::Marks { .. } if at < until => {
                let mut cursor = self.cursor(self.place_of(at)?)?;
                while at < until && BlockSize(u32::from_le_bytes(cursor.array()?)).is_hole() != hole
                {
                    at += 1;
                }
            }
            List::Marks { .. } => {}
        }
        Ok(match at == until && until < self.listed {
            true => Err(at),
            // The tail is data.
            false if at == self.listed && hole => Ok(self.count()),
            false => Ok(at),
        })
    }

    /// The blocks that are stored among those of a range, in order, with their indices: holes cost next to nothing.
    pub fn stored(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = (u64, Result<Block, ReadError>)> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            while at < range.end {
                match self.next_kind(at, false) {
                    Ok(Ok(index)) if index < range.end => {
                        at = index + 1;
                        return Some((index, self.block(index)));
                    }
                    Ok(Err(so_far)) => at = so_far,
                    Ok(Ok(_)) => at = range.end,
                    Err(error) => {
                        let index = std::mem::replace(&mut at, range.end);
                        return Some((index, Err(error)));
                    }
                }
            }
            None
        })
    }

    /// Where the size of a block is in the list of a huge file.
    fn place_of(&self, index: u64) -> Result<Place, ReadError> {
        let List::Marks { stride, found, .. } = &self.list else {
            return Err(ReadError::Range { what: "block index", value: index });
        };
        let mark = self.mark(*stride, found, index / stride)?;
        let mut cursor = self.cursor(mark.list)?;
        cursor.skip(index % stride * 4)?;
        Ok(cursor.place())
    }

    fn find(&self, index: u64) -> Result<(u64, BlockSize), ReadError> {
        match &self.list {
            List::Memory { sizes, sums } => {
                let index = index as usize;
                let stride = index / STRIDE;
                let before = &sizes[stride * STRIDE..index];
                let position = sums[stride].saturating_add(stored(before));
                Ok((position, sizes[index]))
            }
            List::Marks { stride, found, next } => {
                let lock = || next.lock().unwrap_or_else(PoisonError::into_inner);
                let (mut at, mut mark) = *lock();
                if at > index || index - at > index % stride {
                    (at, mark) =
                        (index - index % stride, self.mark(*stride, found, index / stride)?);
                }
                let (mut cursor, mut position) = (self.cursor(mark.list)?, mark.position);
                while index - at >= MARK_STRIDE {
                    position =
                        position.saturating_add(stored(&read_sizes(&mut cursor, MARK_STRIDE)?));
                    at += MARK_STRIDE;
                }
                let sizes = read_sizes(&mut cursor, index - at + 1)?;
                let (last, before) = sizes
                    .split_last()
                    .ok_or(ReadError::Range { what: "block index", value: index })?;
                let position = position.saturating_add(stored(before));
                let behind = position.saturating_add(last.stored().into());
                *lock() = (index + 1, Mark { list: cursor.place(), position: behind });
                Ok((position, *last))
            }
        }
    }

    /// Mark number `target`; marks up to it are found and kept. No lock is held while reading.
    fn mark(&self, stride: u64, marks: &Mutex<Vec<Mark>>, target: u64) -> Result<Mark, ReadError> {
        let lock = || marks.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (known, mark) = {
                let marks = lock();
                let nearest = (target as usize).min(marks.len() - 1);
                (marks.len(), marks[nearest])
            };
            if (target as usize) < known {
                return Ok(mark);
            }
            let mut cursor = self.cursor(mark.list)?;
            let mut position = mark.position;
            for _ in 0..stride / MARK_STRIDE {
                let sizes = read_sizes(&mut cursor, MARK_STRIDE)?;
                position = position.saturating_add(stored(&sizes));
            }
            let next = Mark { list: cursor.place(), position };
            let mut marks = lock();
            if marks.len() == known {
                marks.push(next);
            }
        }
    }

    fn cursor(&self, place: Place) -> Result<Cursor<'_>, ReadError> {
        Cursor::new(&self.core, place, self.core.superblock.directory_table)
    }

    /// Bytes this list takes in memory, at most.
    pub fn weight(&self) -> usize {
        let list = match &self.list {
            List::Memory { sizes, sums } => sizes.len() * 4 + sums.len() * 8,
            List::Marks { .. } => MARKS as usize * 2 * size_of::<Mark>(),
        };
        list + size_of::<Self>()
    }
}

fn copy(bytes: &[u8], from: usize, to: &mut [u8], block: &BlockRef) -> Result<(), ReadError> {
    let want = from + to.len();
    let part = bytes.get(from..want).ok_or(ReadError::BlockLength {
        position: block.offset,
        have: bytes.len(),
        want,
    })?;
    to.copy_from_slice(part);
    Ok(())
}

fn stored(sizes: &[BlockSize]) -> u64 {
    sizes.iter().map(|size| u64::from(size.stored())).sum()
}

fn read_sizes(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<BlockSize>, ReadError> {
    let mut bytes = Vec::new();
    cursor.append(count as usize * 4, &mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| BlockSize(u32::from_le_bytes(*b))).collect())
}

fn read_list(core: &Core, first: Mark, listed: u64) -> Result<List, ReadError> {
    if listed == 0 {
        return Ok(List::Memory { sizes: Vec::new(), sums: Vec::new() });
    }
    let mut cursor = Cursor::new(core, first.list, core.superblock.directory_table)?;
    let sizes = read_sizes(&mut cursor, listed)?;
    let sums = sizes
        .chunks(STRIDE)
        .scan(first.position, |position, chunk| {
            let start = *position;
            // Only a start near 2^64 gets to the end of the numbers, and reading there fails.
            *position = position.saturating_add(stored(chunk));
            Some(start)
        })
        .collect();
    Ok(List::Memory { sizes, sums })
}

impl Core {
    /// The decoded block from the cache, or by `decode`.
    fn cached(
        &self,
        block: BlockRef,
        decode: impl FnOnce(&mut Vec<u8>) -> Result<(), ReadError>,
    ) -> Result<Arc<Vec<u8>>, ReadError> {
        if let Some(bytes) = self.data.get(block.offset) {
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        decode(&mut bytes)?;
        let bytes = Arc::new(bytes);
        self.data.put(block.offset, Arc::clone(&bytes), bytes.capacity());
        Ok(bytes)
    }

    /// Reads a block without decoding it.
    pub(crate) fn stored_block(
        &self,
        block: &BlockRef,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        if block.stored == 0 || block.stored > self.superblock.block_size {
            let value = block.stored.into();
            return Err(ReadError::Range { what: "stored size of a block", value });
        }
        out.resize(block.stored as usize, 0);
        self.read(block.offset, out)
    }

    /// Reads a data block that must decode to exactly `len` bytes.
    pub(crate) fn exact_block(
        &self,
        block: &BlockRef,
        len: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let want = len as usize;
        self.data_block(block.offset, block.stored, block.compressed, want, out)?;
        if out.len() != want {
            return Err(ReadError::BlockLength { position: block.offset, have: out.len(), want });
        }
        Ok(())
    }

    /// A fragment block, decoded, through the cache.
    pub(crate) fn cached_fragment(&self, block: &BlockRef) -> Result<Arc<Vec<u8>>, ReadError> {
        let max = self.superblock.block_size as usize;
        let (at, stored, compressed) = (block.offset, block.stored, block.compressed);
        self.cached(*block, |out| self.data_block(at, stored, compressed, max, out))
    }
}
