//! Where files are in the contents of an image.

use std::ops::Range;

use super::{Contents, ContentsError};
use crate::read::{Block, InodeKind, Walk, WalkEntry, WalkFault, walk};

/// Where a file's content is in the contents of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContents {
    /// Path from the image's root, without a leading `/`.
    pub path: Vec<u8>,
    /// Its bytes but for holes, in order; neighbours are joined, so most files have one range. Files with the same
    /// content may have the same ranges. Blocks that the contents hold compressed are left out.
    pub ranges: Vec<Range<u64>>,
}

impl Contents<'_> {
    /// The regular files with content, in the order of paths. Files that are damaged are left out.
    pub fn files(&self) -> Files<'_> {
        Files { contents: self, walk: walk(self.image()) }
    }

    fn file(&self, entry: WalkEntry) -> Result<Option<FileContents>, ContentsError> {
        if !matches!(entry.inode.kind, InodeKind::File { size, .. } if size > 0) {
            return Ok(None);
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let blocks = match self.image().blocks(&entry.inode) {
            Err(error) if error.is_io() => return Err(error.into()),
            Err(_) => return Ok(None),
            Ok(blocks) => blocks,
        };
        for index in 0..blocks.count() {
            let found = match blocks.block(index) {
                Ok(Block::Hole { .. }) => continue,
                Ok(Block::Data { block, len }) => self.range_of(&block, 0, len),
                Ok(Block::Fragment { block, start, len }) => self.range_of(&block, start, len),
                Err(error) if error.is_io() => return Err(error.into()),
                Err(_) => return Ok(None),
            };
            let Some((start, end)) = found else { continue };
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        Ok((!ranges.is_empty()).then_some(FileContents { path: entry.path, ranges }))
    }
}

/// The iterator of [`Contents::files`].
pub struct Files<'a> {
    contents: &'a Contents<'a>,
    walk: Walk<'a>,
}

impl Iterator for Files<'_> {
    type Item = Result<FileContents, ContentsError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let found = match self.walk.next()? {
                Ok(entry) => self.contents.file(entry),
                Err(error) => match error.fault {
                    WalkFault::Read(error) if error.is_io() => Err(error.into()),
                    _ => Ok(None),
                },
            };
            if let Some(item) = found.transpose() {
                return Some(item);
            }
        }
    }
}
