//! The compressed blocks of an image, by what they are.

use std::collections::HashMap;

use super::{Contents, ContentsError, Form};

/// The compressed blocks of data that an old image has, for [`describe`](super::describe()): so many of the new image's as are
/// the same need not be compressed again.
pub struct Stored {
    /// BLAKE3 of a block, and where it lies in the file.
    blocks: HashMap<[u8; 32], u64>,
}

impl Stored {
    /// Reads all of the image; keeps 40 bytes per block.
    pub fn of(contents: &Contents<'_>) -> Result<Self, ContentsError> {
        let (mut blocks, mut bytes) = (HashMap::new(), Vec::new());
        for span in contents.spans().filter(|span| span.form == Form::Data) {
            contents.stored(&span, &mut bytes)?;
            blocks.entry(*blake3::hash(&bytes).as_bytes()).or_insert(span.position);
        }
        Ok(Self { blocks })
    }

    /// Where such a block is.
    pub(super) fn find(&self, block: &[u8]) -> Option<u64> {
        self.blocks.get(blake3::hash(block).as_bytes()).copied()
    }
}
