//! Chunk tables for images that have none.

use std::io;
use std::path::Path;

use mica_graph::Digest;
use mica_squashfs::Source;
use mica_squashfs::chunks::ChunkTable;

use crate::cache::Held;
use crate::file;

/// What is read at a time, and later verified.
const CHUNK: u64 = 128 << 10;

/// An image for which no table was made.
#[derive(Debug, thiserror::Error)]
pub enum MadeTableError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// It is not what the manifest names.
    #[error("it has digest {found}, the manifest says {expected}")]
    WrongImage {
        /// What the manifest says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
}

/// A table of an image, made while the digest of the whole is compared. Whatever is compared with the table later is then what
/// had that digest, also if somebody changes the file in between.
///
/// # Errors
/// It is another image, or cannot be read.
pub fn made_table(image: &Held, expected: &Digest) -> Result<ChunkTable, MadeTableError> {
    match image {
        Held::Whole(path) => made(&open(path)?, expected),
        Held::Borrowed(image) => made(image, expected),
    }
}

fn open(path: &Path) -> io::Result<std::fs::File> {
    file::open(path).map_err(|error| error.source)
}

fn made(image: &dyn Source, expected: &Digest) -> Result<ChunkTable, MadeTableError> {
    let (mut table, mut whole) = (ChunkTable::default(), blake3::Hasher::new());
    let size = image.len()?;
    let mut buffer = Vec::new();
    while table.image_len() < size {
        let left = size - table.image_len();
        buffer.resize(left.min(CHUNK) as usize, 0);
        image.read_exact_at(&mut buffer, table.image_len())?;
        whole.update(&buffer);
        table.push(buffer.len() as u32, *blake3::hash(&buffer).as_bytes());
    }
    let found: Digest = whole.finalize().into();
    if found != *expected {
        return Err(MadeTableError::WrongImage { expected: *expected, found });
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_made_of_the_image_that_was_named_and_of_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut bytes: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let (image, digest) = (Held::Whole(path.clone()), Digest::of(&bytes));
        let table = made_table(&image, &digest).unwrap();
        assert_eq!(table.image_len(), 300_000);
        assert!(
            table.chunks().iter().all(|c| c.matches(&bytes[c.offset as usize..c.end() as usize]))
        );
        bytes[290_000] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(made_table(&image, &digest), Err(MadeTableError::WrongImage { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(made_table(&image, &digest), Err(MadeTableError::Read(_))));
    }
}
