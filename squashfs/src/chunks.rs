//! The chunk table that lies beside an image, `IMAGE.chunks`.
//!
//! An image is cut into chunks on the boundaries of its blocks, by the blocks' content and not by
//! their position: what did not change between two images gives equal chunks, wherever it moved.
//! Chunks of data are 32-256 KiB, 40-60 KiB on average, unless a single block or a whole image is
//! outside of that.
//! The table serves fetching of differences, resuming, fetching on demand and verifying on read.
//!
//! ```text
//! offset  bytes
//! 0       8      "micachnk"
//! 8       4      format version, 1
//! 12      4      number of chunks, n
//! 16      8      length of the image, the sum of all lengths
//! 24      36 n   per chunk: length (u32), BLAKE3 (32 bytes)
//! ```
//!
//! Numbers are little endian. Chunks follow each other from offset 0 and cover the whole file, XAR
//! header included. A reader refuses other versions, lengths of 0 or above 16 MiB, and sums that do
//! not match; there is nothing after the last chunk.

/// What a table starts with.
pub const MAGIC: [u8; 8] = *b"micachnk";
/// Longest chunk that a table may hold.
pub const LENGTH_MAX: u32 = 16 << 20;
const VERSION: u32 = 1;
const HEADER: usize = 24;
const ENTRY: usize = 36;

/// A run of bytes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length.
    pub length: u32,
    /// BLAKE3 of its bytes.
    pub digest: [u8; 32],
}

impl Chunk {
    /// Where it ends in the file.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }

    /// Whether `bytes` are this chunk's.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == u64::from(self.length)
            && *blake3::hash(bytes).as_bytes() == self.digest
    }
}

/// All chunks of an image, in order, without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkTable {
    chunks: Vec<Chunk>,
}

/// Bytes that are no chunk table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkTableError {
    /// The magic is missing.
    #[error("not a chunk table")]
    Magic,
    /// A version this program does not know.
    #[error("chunk table of version {0}")]
    Version(u32),
    /// Longer or shorter than the number of chunks says.
    #[error("the chunk table is {have} bytes long instead of {want}")]
    Length {
        /// Its length.
        have: u64,
        /// What it should be.
        want: u64,
    },
    /// A chunk of length 0 or beyond [`LENGTH_MAX`].
    #[error("chunk {index} is {length} bytes long")]
    Chunk {
        /// Which one.
        index: usize,
        /// Its length.
        length: u32,
    },
    /// The lengths do not add up to the image's.
    #[error("the chunks cover {have} bytes of an image of {want}")]
    Sum {
        /// Bytes covered.
        have: u64,
        /// Length of the image.
        want: u64,
    },
}

impl ChunkTable {
    /// Appends a chunk behind the last one.
    pub fn push(&mut self, length: u32, digest: [u8; 32]) {
        let offset = self.image_len();
        self.chunks.push(Chunk { offset, length, digest });
    }

    /// The chunks.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Length of the image.
    pub fn image_len(&self) -> u64 {
        self.chunks.last().map_or(0, Chunk::end)
    }

    /// The longest table, in bytes, that an image of `size` bytes has any use for: an entry for each 4 KiB, and some more,
    /// which is more than any packer cuts.
    pub fn longest(size: u64) -> u64 {
        HEADER as u64 + ENTRY as u64 * (1024 + size / 4096)
    }

    /// The chunks that hold any of the `length` bytes at `offset`.
    pub fn covering(&self, offset: u64, length: u64) -> &[Chunk] {
        let end = offset.saturating_add(length);
        let first = self.chunks.partition_point(|chunk| chunk.end() <= offset);
        let last = self.chunks.partition_point(|chunk| chunk.offset < end);
        if length == 0 { &[] } else { &self.chunks[first.min(last)..last] }
    }

    /// The table as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + ENTRY * self.chunks.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.image_len().to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.length.to_le_bytes());
            bytes.extend_from_slice(&chunk.digest);
        }
        bytes
    }

    /// Reads a stored table.
    ///
    /// ```
    /// use mica_squashfs::chunks::ChunkTable;
    ///
    /// let mut table = ChunkTable::default();
    /// table.push(5, *blake3::hash(b"hello").as_bytes());
    /// assert_eq!(ChunkTable::parse(&table.encode())?, table);
    /// assert!(table.chunks()[0].matches(b"hello"));
    /// # Ok::<(), mica_squashfs::chunks::ChunkTableError>(())
    /// ```
    pub fn parse(bytes: &[u8]) -> Result<Self, ChunkTableError> {
        let (header, entries) = bytes.split_at_checked(HEADER).ok_or(ChunkTableError::Magic)?;
        if header[..8] != MAGIC {
            return Err(ChunkTableError::Magic);
        }
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        if word(8) != VERSION {
            return Err(ChunkTableError::Version(word(8)));
        }
        let want = HEADER as u64 + ENTRY as u64 * u64::from(word(12));
        if bytes.len() as u64 != want {
            return Err(ChunkTableError::Length { have: bytes.len() as u64, want });
        }
        let mut table = Self::default();
        for (index, entry) in entries.chunks_exact(ENTRY).enumerate() {
            let length = u32::from_le_bytes([0, 1, 2, 3].map(|i| entry[i]));
            if length == 0 || length > LENGTH_MAX {
                return Err(ChunkTableError::Chunk { index, length });
            }
            let mut digest = [0; 32];
            digest.copy_from_slice(&entry[4..]);
            table.push(length, digest);
        }
        let (have, want) = (table.image_len(), u64::from(word(16)) | u64::from(word(20)) << 32);
        if have == want { Ok(table) } else { Err(ChunkTableError::Sum { have, want }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> ChunkTable {
        let mut table = ChunkTable::default();
        table.push(10, [1; 32]);
        table.push(20, [2; 32]);
        table.push(30, [3; 32]);
        table
    }

    #[test]
    fn chunks_are_found_by_range() {
        let table = table();
        let lengths = |offset, length| -> Vec<u32> {
            table.covering(offset, length).iter().map(|chunk| chunk.length).collect()
        };
        assert_eq!(lengths(0, 60), [10, 20, 30]);
        assert_eq!(lengths(9, 1), [10]);
        assert_eq!(lengths(9, 2), [10, 20]);
        assert_eq!(lengths(30, u64::MAX), [30]);
        assert_eq!(lengths(60, 5), [0; 0]);
        assert_eq!(lengths(5, 0), [0; 0]);
    }

    #[test]
    fn damage_is_refused() {
        let good = table().encode();
        assert_eq!(ChunkTable::parse(&good), Ok(table()));
        for length in 0..good.len() {
            assert!(ChunkTable::parse(&good[..length]).is_err());
        }
        for at in (0..24).chain(24..28) {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            assert!(ChunkTable::parse(&bad).is_err(), "{at}");
        }
        assert!(ChunkTable::parse(&[&good[..], &[0]].concat()).is_err());
    }
}
