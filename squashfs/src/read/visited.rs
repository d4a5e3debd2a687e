//! Telling a tree from what only looks like one.
//!
//! In an image that a packer made every directory has one name, and no two directories share bytes of the directory
//! table. A walk that insists on both ends in time and memory that are linear in the table, whatever the image holds:
//! loops, one directory under many names (n levels with two names each are 2^n paths), many directories that share one
//! long listing, or the ends of one.

use std::collections::HashSet;

use super::dir::ReadDir;
use super::inode::{Inode, InodeKind, InodeRef};
use crate::format::{METADATA_SIZE, MetaRef};

/// The directory was met before, or shares its entries with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the directory is at a second place in the tree")]
pub struct Repeated;

/// The directories of one image that a walk has met.
#[derive(Debug, Default)]
pub struct Visited {
    directories: HashSet<InodeRef>,
    listings: HashSet<MetaRef>,
    /// Metadata blocks in which entries were, and how many bytes of entries.
    blocks: HashSet<u64>,
    bytes: u64,
}

impl Visited {
    /// Notes that a directory is entered. Other inodes are let pass: hard links are in order.
    ///
    /// # Errors
    /// It was entered before, or one with the same entries.
    pub fn enter(&mut self, inode: &Inode) -> Result<(), Repeated> {
        let InodeKind::Directory { listing, .. } = inode.kind else { return Ok(()) };
        let is_new = self.directories.insert(inode.reference)
            // The listing of an empty directory may point anywhere.
            && (listing.size == 0 || self.listings.insert(listing.start));
        if is_new { Ok(()) } else { Err(Repeated) }
    }

    /// Notes how far a directory was read, after each entry.
    ///
    /// # Errors
    /// More bytes were read than the directories can have if each has its own.
    pub fn read(&mut self, entries: &mut ReadDir<'_>) -> Result<(), Repeated> {
        let (bytes, block) = entries.progress();
        self.bytes += bytes;
        self.blocks.insert(block);
        // One more for each directory: its first entry may have begun in a block that was left since.
        let most = (self.blocks.len() + self.directories.len() + 1) * METADATA_SIZE;
        if self.bytes > most as u64 { Err(Repeated) } else { Ok(()) }
    }
}
