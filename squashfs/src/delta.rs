//! What a node that holds one image lacks of another.

use std::collections::HashSet;

use crate::format::{MetaHeader, NO_TABLE};
use crate::read::{Block, BlockRef, Image, InodeKind, ReadError, WalkError, walk};

/// Bytes to ship for an image, if another is there already. Blocks are compared as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta {
    /// Size of the new file system.
    pub total: u64,
    /// Bytes of data and fragment blocks that the old image does not hold.
    pub data: u64,
    /// Bytes of inode and directory blocks that the old image does not hold.
    pub metadata: u64,
    /// Superblock and the other tables: always shipped.
    pub tables: u64,
    /// Stored blocks in the new image.
    pub blocks: u64,
    /// Of these, how many the old image does not hold.
    pub new_blocks: u64,
}

impl Delta {
    /// Bytes to ship in all.
    pub fn bytes(&self) -> u64 {
        self.data + self.metadata + self.tables
    }
}

/// An image whose blocks cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// A part of the tree cannot be read.
    #[error("cannot walk the image")]
    Walk(#[from] WalkError),
    /// A file's blocks, or a table, cannot be read.
    #[error("cannot read the image's blocks")]
    Read(#[from] ReadError),
}

/// Compares two images, block by stored block. Nothing is decoded but metadata; memory is 32 bytes a block.
pub fn delta(old: &Image, new: &Image) -> Result<Delta, DeltaError> {
    let mut held = HashSet::new();
    each_block(old, &mut |_, hash, _| {
        held.insert(hash);
    })?;
    let sb = new.superblock();
    let mut delta = Delta { total: sb.bytes_used, ..Delta::default() };
    let mut covered = 0;
    each_block(new, &mut |kind, hash, len| {
        delta.blocks += 1;
        covered += len;
        // What the new image holds twice is shipped once.
        if held.insert(hash) {
            delta.new_blocks += 1;
            match kind {
                Kind::Data => delta.data += len,
                Kind::Metadata => delta.metadata += len,
            }
        }
    })?;
    delta.tables = sb.bytes_used.saturating_sub(covered);
    Ok(delta)
}

enum Kind {
    Data,
    Metadata,
}

type Visit<'a> = &'a mut dyn FnMut(Kind, [u8; 32], u64);

/// Visits every stored block once.
fn each_block(image: &Image, visit: Visit<'_>) -> Result<(), DeltaError> {
    let mut seen = HashSet::new();
    let mut bytes = Vec::new();
    let mut data = |block: BlockRef, visit: Visit<'_>| -> Result<(), ReadError> {
        if seen.insert(block.offset) {
            image.read_stored(&block, &mut bytes)?;
            visit(Kind::Data, *blake3::hash(&bytes).as_bytes(), bytes.len() as u64);
        }
        Ok(())
    };
    for entry in walk(image) {
        let inode = entry?.inode;
        if let InodeKind::File { .. } = inode.kind {
            let blocks = image.blocks(&inode)?;
            for (_, block) in blocks.stored(0..blocks.count()) {
                match block? {
                    Block::Hole { .. } => {}
                    Block::Data { block, .. } | Block::Fragment { block, .. } => {
                        data(block, visit)?
                    }
                }
            }
        }
    }
    metadata_blocks(image, visit)?;
    Ok(())
}

fn metadata_blocks(image: &Image, visit: Visit<'_>) -> Result<(), ReadError> {
    let sb = image.superblock();
    let mut bytes = Vec::new();
    let end = directories_end(image)?;
    for (mut at, end) in [(sb.inode_table, sb.directory_table), (sb.directory_table, end)] {
        while at < end {
            let mut header = [0; MetaHeader::SIZE];
            image.read_raw(at, &mut header)?;
            let header = MetaHeader::decode(header)
                .map_err(|source| ReadError::Format { position: at, source })?;
            let len = MetaHeader::SIZE + usize::from(header.stored);
            bytes.resize(len, 0);
            image.read_raw(at, &mut bytes)?;
            visit(Kind::Metadata, *blake3::hash(&bytes).as_bytes(), len as u64);
            at += len as u64;
        }
    }
    Ok(())
}

/// Where the directory table ends: at the first block of the table that comes next, whichever that is.
pub(crate) fn directories_end(image: &Image) -> Result<u64, ReadError> {
    let sb = image.superblock();
    let mut end = sb.bytes_used;
    let mut note = |position: u64| {
        if position >= sb.directory_table {
            end = end.min(position);
        }
    };
    let first = |positions: u64| -> Result<u64, ReadError> {
        let mut bytes = [0; 8];
        image.read_raw(positions, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    note(sb.id_table);
    note(first(sb.id_table)?);
    if sb.fragments > 0 {
        note(sb.fragment_table);
        note(first(sb.fragment_table)?);
    }
    for table in [sb.export_table, sb.xattr_table] {
        if table != NO_TABLE {
            // The xattr table's first field is the position of its values.
            note(table);
            note(first(table)?);
        }
    }
    Ok(end)
}
