//! The digest of a file's content.

use std::io;

use super::data::is_zero;
use super::tree::Content;

/// Contents are hashed in pieces of this size, whatever the block size of an image.
const PIECE: u64 = 128 << 10;

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

/// A digest of the content: BLAKE3 over its size and the BLAKE3 hash of each piece of 128 KiB that
/// is not all zeros, so that the holes of a sparse file need not be read.
pub fn content_digest(
    content: &dyn Content,
    buffer: &mut Vec<u8>,
) -> Result<blake3::Hash, ContentDigestError> {
    let (open, size) = (content.open()?, content.size());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
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
            hasher.update(&offset.to_le_bytes());
            hasher.update(blake3::hash(buffer).as_bytes());
        }
        offset += length;
        data_from = data_from.max(offset);
    }
    if open.is_unchanged()? { Ok(hasher.finalize()) } else { Err(ContentDigestError::Changed) }
}
