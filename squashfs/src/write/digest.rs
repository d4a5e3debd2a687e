//! The digest of a file's content.

use std::io;

use super::data::is_zero;
use super::tree::Content;

/// Contents are hashed in pieces of this size, whatever the block size of an image.
pub(super) const PIECE: u64 = 128 << 10;

/// What a content is, without its bytes: its size, and BLAKE3 of each piece of 128 KiB that is not
/// all zeros, so that the holes of a sparse file need not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentDigest {
    size: u64,
    pieces: Pieces,
}

type Piece = (u64, [u8; 32]);

/// Most files are one piece, and trees have many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pieces {
    One(Piece),
    Many(Box<[Piece]>),
}

impl ContentDigest {
    /// From the hashes of the pieces that are not all zeros, by ascending offset.
    pub fn new(size: u64, pieces: impl IntoIterator<Item = (u64, [u8; 32])>) -> Self {
        let mut pieces = pieces.into_iter();
        let pieces = match (pieces.next(), pieces.next()) {
            (Some(one), None) => Pieces::One(one),
            (first, second) => {
                Pieces::Many(first.into_iter().chain(second).chain(pieces).collect())
            }
        };
        Self { size, pieces }
    }

    /// Length of the content.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Offset and hash of each piece that is not all zeros.
    pub fn pieces(&self) -> &[(u64, [u8; 32])] {
        match &self.pieces {
            Pieces::One(one) => std::slice::from_ref(one),
            Pieces::Many(many) => many,
        }
    }

    /// All of it in one hash.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.size.to_le_bytes());
        for (offset, hash) in self.pieces() {
            hasher.update(&offset.to_le_bytes());
            hasher.update(hash);
        }
        hasher.finalize()
    }

    /// The first piece at or after `offset` that is not all zeros.
    pub(super) fn next(&self, offset: u64) -> Option<&Piece> {
        let pieces = self.pieces();
        pieces.get(pieces.partition_point(|(at, _)| *at < offset))
    }
}

/// Why a content has no digest.
#[derive(Debug, thiserror::Error)]
pub enum ContentDigestError {
    /// It cannot be read.
    #[error("cannot read a file")]
    Read(#[source] io::Error),
    /// It is not what it was when its size was taken.
    #[error("a file changed while it was read")]
    Changed,
}

impl From<io::Error> for ContentDigestError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Changed,
            _ => Self::Read(error),
        }
    }
}

/// Reads a content for its digest.
pub fn content_digest(
    content: &dyn Content,
    buffer: &mut Vec<u8>,
) -> Result<ContentDigest, ContentDigestError> {
    let (open, size) = (content.open()?, content.size());
    let mut pieces = Vec::new();
    let (mut offset, mut data_from) = (0, 0);
    while offset < size {
        if data_from <= offset {
            data_from = open.next_data(offset)?.unwrap_or(size).clamp(offset, size);
            if data_from >= size {
                break;
            }
            offset = data_from / PIECE * PIECE;
        }
        let length = PIECE.min(size - offset);
        buffer.resize(length as usize, 0);
        open.read_exact_at(buffer, offset)?;
        if !is_zero(buffer) {
            pieces.push((offset, *blake3::hash(buffer).as_bytes()));
        }
        offset += length;
        data_from = data_from.max(offset);
    }
    if open.is_unchanged()? {
        Ok(ContentDigest::new(size, pieces))
    } else {
        Err(ContentDigestError::Changed)
    }
}
