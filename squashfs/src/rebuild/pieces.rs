//! Where the blocks of an image are: all that are compressed, found through the tree and the tables.

use std::collections::{HashMap, HashSet};

use super::Form;
use crate::format::table::{self, EXPORT_SIZE, ID_SIZE};
use crate::format::xattr::{XattrId, XattrTable};
use crate::format::{FragmentEntry, MetaHeader, NO_TABLE};
use crate::read::{Block, Image, InodeKind, ReadError, WalkFault, walk};

/// A compressed block: its place in the file and its length when decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) position: u64,
    pub(super) stored: u32,
    pub(super) len: u32,
    pub(super) form: Form,
}

/// All compressed blocks in the order of the file, none overlapping another. What is damaged is passed over; only
/// a source that fails is an error.
pub(super) fn find(image: &Image) -> Result<Vec<Found>, ReadError> {
    let mut found = Vec::new();
    data(image, &mut found)?;
    let mut metadata = Metadata { image, found: &mut found };
    metadata.all()?;
    found.sort_by_key(|one| (one.position, std::cmp::Reverse(one.len)));
    let mut end = 0;
    found.retain(|one| {
        let free = one.position >= end;
        if free {
            end = one.position + u64::from(one.stored);
        }
        free
    });
    Ok(found)
}

/// Data blocks, and fragment blocks as far as files use them.
fn data(image: &Image, found: &mut Vec<Found>) -> Result<(), ReadError> {
    let start = image.start();
    let mut fragments = HashMap::new();
    let mut seen = HashSet::new();
    for entry in walk(image) {
        let inode = match entry {
            Ok(entry) => entry.inode,
            Err(error) => match error.fault {
                WalkFault::Read(error) if error.is_io() => return Err(error),
                _ => continue,
            },
        };
        // Of hard links the first.
        if !matches!(inode.kind, InodeKind::File { .. })
            || (inode.nlink > 1 && !seen.insert(inode.reference))
        {
            continue;
        }
        let Some(blocks) = usable(image.blocks(&inode))? else { continue };
        for (_, block) in blocks.stored(0..blocks.count()) {
            match usable(block)? {
                Some(Block::Data { block, len }) if block.compressed => found.push(Found {
                    position: start.saturating_add(block.offset),
                    stored: block.stored,
                    len,
                    form: Form::Data,
                }),
                Some(Block::Fragment { block, start, len }) if block.compressed => {
                    let used = fragments.entry((block.offset, block.stored)).or_insert(0);
                    *used = (*used).max(start.saturating_add(len));
                }
                Some(_) => {}
                None => break,
            }
        }
    }
    found.extend(fragments.into_iter().map(|((offset, stored), len)| Found {
        position: start.saturating_add(offset),
        stored,
        len,
        form: Form::Data,
    }));
    let end = start + image.superblock().bytes_used;
    let fits = |one: &Found| one.position.checked_add(one.stored.into()).is_some_and(|e| e <= end);
    found.retain(|one| fits(one) && one.stored > 0 && one.len > 0);
    Ok(())
}

/// `None` for what is damaged.
fn usable<T>(result: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_io() => Err(error),
        Err(_) => Ok(None),
    }
}

struct Metadata<'a> {
    image: &'a Image,
    found: &'a mut Vec<Found>,
}

impl Metadata<'_> {
    fn all(&mut self) -> Result<(), ReadError> {
        let sb = self.image.superblock();
        self.run(sb.inode_table, sb.directory_table)?;
        self.run(sb.directory_table, crate::delta::directories_end(self.image)?)?;
        self.table(sb.fragment_table, sb.fragments.into(), FragmentEntry::SIZE)?;
        self.table(sb.export_table, sb.inodes.into(), EXPORT_SIZE)?;
        self.table(sb.id_table, sb.ids.into(), ID_SIZE)?;
        let Some(xattrs) = self.image.core().xattrs.filter(|table| table.ids > 0) else {
            return Ok(());
        };
        let positions = sb.xattr_table + XattrTable::SIZE as u64;
        let first = self.position(positions)?.unwrap_or(xattrs.values);
        self.run(xattrs.values, first)?;
        self.table(positions, xattrs.ids.into(), XattrId::SIZE)
    }

    /// The blocks of a table of two levels.
    fn table(&mut self, positions: u64, entries: u64, size: usize) -> Result<(), ReadError> {
        if positions == NO_TABLE {
            return Ok(());
        }
        for index in 0..table::blocks(entries, size) {
            let Some(position) = self.position(positions + index * 8)? else { return Ok(()) };
            self.block(position, self.image.superblock().bytes_used)?;
        }
        Ok(())
    }

    fn position(&self, at: u64) -> Result<Option<u64>, ReadError> {
        let mut bytes = [0; 8];
        Ok(usable(self.image.read_raw(at, &mut bytes))?.map(|()| u64::from_le_bytes(bytes)))
    }

    /// The blocks from `at` to `end`.
    fn run(&mut self, mut at: u64, end: u64) -> Result<(), ReadError> {
        while at < end {
            match self.block(at, end)? {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(())
    }

    /// The block at `position`; gives the position behind it.
    fn block(&mut self, position: u64, limit: u64) -> Result<Option<u64>, ReadError> {
        let mut header = [0; MetaHeader::SIZE];
        if usable(self.image.read_raw(position, &mut header))?.is_none() {
            return Ok(None);
        }
        let Some(block) = usable(self.image.core().meta_block(position, limit))? else {
            return Ok(None);
        };
        if MetaHeader::decode(header).is_ok_and(|header| header.compressed) {
            self.found.push(Found {
                position: self.image.start() + position,
                stored: (block.next - position) as u32,
                len: block.bytes.len() as u32,
                form: Form::Meta,
            });
        }
        Ok(Some(block.next))
    }
}
