//! Large files that were copied up in part.
//!
//! Copying up a large file makes a sparse file of its size: what is a hole in it is still in the layer. The file system's
//! own map of the file says which is which, so data and map cannot disagree, whenever the server or the machine
//! stops. Only file systems whose map is exact take part; on others files are copied whole.
//!
//! ```text
//!  0                                       limit        size
//!  ├── hole ──┬── data ──┬───── hole ───────┼──── hole ───┤
//!   the layer  the upper   the layer           zeros
//! ```
//!
//! Writing into a block of the file system first fills it from the layer. Truncating lowers the limit, behind which holes
//! are zeros. Marks on the file (see [`Incomplete`]) say where the rest is, in overlayfs's form for files of which only
//! the metadata was copied: overlayfs never shows the holes as zeros. [`super::complete`] brings the rest later.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{SeekFrom, Statx};
use rustix::io::Errno;

use super::copyup::write_all;
use super::file::{read_full, write_some};
use super::node::{LowerPart, Node, Rest};
use super::{Res, Tree};
use crate::ids::Attr;
use crate::kind::Kind;
use crate::overlay::Found;
use crate::upper::{Incomplete, statx_fd};

/// Files from this size on are copied up in part.
pub(super) const LARGE: u64 = 256 << 10;

/// The part of a file that is still in its layer.
pub(crate) struct Partial {
    /// The layer's file; `None` if the layers don't have it any more.
    pub(super) source: Option<LowerPart>,
    /// What stat(2) tells of the layer's file, in units of 512 bytes.
    blocks: u64,
    /// Locked shared by readers, exclusively by whoever changes which bytes are here; before the namespace.
    marks: RwLock<Incomplete>,
}

impl Partial {
    pub(super) fn new(source: Option<LowerPart>, blocks: u64, marks: Incomplete) -> Partial {
        Partial { source, blocks, marks: RwLock::new(marks) }
    }

    /// Blocks of the whole file: without the layer's, some would take for holes what is not here.
    pub(super) fn blocks(&self, stat: &Statx) -> u64 {
        let most = stat.stx_size.div_ceil(512).max(stat.stx_blocks);
        stat.stx_blocks.saturating_add(self.blocks).min(most)
    }

    fn shared(&self) -> RwLockReadGuard<'_, Incomplete> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn exclusive(&self) -> RwLockWriteGuard<'_, Incomplete> {
        self.marks.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    /// Looks once whether a file of the upper that was found in `dir` is all there.
    pub(super) fn find_rest(
        &self,
        node: &Arc<Node>,
        dir: impl AsFd,
        name: &[u8],
        stat: &Statx,
    ) -> Res<()> {
        if node.kind != Kind::File || !matches!(node.state().rest, Rest::Unknown) {
            return Ok(());
        }
        let marks = match stat.stx_size {
            0 => None,
            _ => self.upper()?.incomplete(dir.as_fd(), name)?,
        };
        let Some(mut marks) = marks else {
            node.state().rest = Rest::Nowhere;
            return Ok(());
        };
        let place = node.place().ok_or(Errno::NOENT)?;
        let found = match marks.path.first() {
            Some(b'/') => self.find_path(&marks.path).map(|(found, _)| found),
            Some(_) => self.find_lower(&place.parent.lowers(), &marks.path),
            None => self.find_lower(&place.parent.lowers(), name),
        };
        let found = found.map_err(|error| self.damaged(node, &error))?;
        let mut source = match found {
            Found::Single(part) if part.node.kind == Kind::File => Some(part),
            _ => None,
        };
        let mut blocks = 0;
        if let Some(part) = source {
            let attr = self.lower.attr(part).map_err(|error| self.damaged(node, &error))?;
            marks.limit = marks.limit.min(stat.stx_size).min(attr.size);
            blocks = attr.blocks;
            source = source.filter(|_| marks.source.is_none_or(|was| was == identity(&attr)));
        }
        if source.is_none() {
            tracing::error!(
                path = node.path(),
                "the layers no longer have the file of which the upper has a part"
            );
        }
        self.note_incomplete(node, Partial::new(source, blocks, marks));
        Ok(())
    }

    pub(super) fn read_partial(
        &self,
        node: &Arc<Node>,
        partial: &Partial,
        file: &File,
        range: Range<u64>,
    ) -> Res<Vec<u8>> {
        let marks = partial.shared();
        let end = range.end.min(statx_fd(file)?.stx_size);
        let mut out = vec![0; end.saturating_sub(range.start) as usize];
        let within =
            |run: &Range<u64>| (run.start - range.start) as usize..(run.end - range.start) as usize;
        for (run, here) in runs(file, range.start..end)? {
            if here {
                read_full(file, &mut out[within(&run)], run.start)?; // zeros, if truncated meanwhile
                continue;
            }
            let run = run.start..run.end.min(marks.limit);
            if !run.is_empty() {
                let target = &mut out[within(&run)];
                self.read_rest(node, partial, run, |at, bytes| {
                    target[at..at + bytes.len()].copy_from_slice(bytes);
                    Ok(())
                })?;
            }
        }
        Ok(out)
    }

    /// Hands out the layer's bytes of a range, and where in it they are.
    pub(super) fn read_rest(
        &self,
        node: &Arc<Node>,
        partial: &Partial,
        range: Range<u64>,
        mut sink: impl FnMut(usize, &[u8]) -> Res<()>,
    ) -> Res<()> {
        const PIECE: u64 = 1 << 20;
        let part = partial.source.ok_or(Errno::IO)?;
        let mut at = range.start;
        while at < range.end {
            let size = (range.end - at).min(PIECE) as usize;
            let mut read = 0;
            let done = self.lower.read(part, at, size, |bytes| {
                read = bytes.len();
                sink((at - range.start) as usize, bytes)
            });
            done.map_err(|error| self.damaged(node, &error))??;
            if read == 0 {
                return Err(Errno::IO); // shorter than its inode said
            }
            at += read as u64;
        }
        Ok(())
    }

    /// Writes into a file of which a part is still in its layer.
    pub(super) fn write_partial(
        &self,
        node: &Arc<Node>,
        partial: &Partial,
        file: &File,
        offset: u64,
        data: &[u8],
    ) -> Res<usize> {
        let marks = partial.exclusive();
        let grain = self.upper()?.grain.unwrap_or(1);
        let end = offset + data.len() as u64;
        let down = |at: u64| at / grain * grain;
        // The blocks that are written in part; usually the first and the last.
        for at in [offset, end] {
            let block = down(at)..(down(at) + grain).min(marks.limit);
            if at % grain != 0 && !block.is_empty() {
                self.fill(node, partial, file, block)?;
            }
        }
        write_some(file, data, offset)
    }

    /// Copies what of a range is still in the layer. The caller holds the marks exclusively.
    fn fill(&self, node: &Arc<Node>, partial: &Partial, file: &File, range: Range<u64>) -> Res<()> {
        for (run, here) in runs(file, range)? {
            if here {
                continue;
            }
            let start = run.start;
            self.read_rest(node, partial, run, |at, bytes| {
                write_all(file, bytes, start + at as u64)
            })?;
        }
        Ok(())
    }

    /// Truncates a file of which a part is still in its layer.
    pub(super) fn truncate_partial(
        &self,
        file: &File,
        marks: &mut Incomplete,
        size: u64,
    ) -> Res<()> {
        // In this order: after a crash in between, the smaller of limit and size counts.
        rustix::fs::ftruncate(file, size)?;
        if size < marks.limit {
            marks.limit = size;
            self.upper()?.set_limit(file, marks)?;
        }
        Ok(())
    }

    /// Where a node is in its layer, for the marks of its copy.
    pub(super) fn rest_of(&self, node: &Node, attr: &Attr) -> Incomplete {
        let place = node.place();
        let path = place.map_or_else(Box::default, |place| {
            super::lookup::join(&place.parent.lowers().path, &place.name)
        });
        Incomplete { path, limit: attr.size, source: Some(identity(attr)) }
    }
}

/// What tells a layer's file from another.
fn identity(attr: &Attr) -> (u64, i64) {
    (attr.size, attr.mtime.seconds)
}

/// The runs of data and of holes in a range.
pub(super) fn runs(file: &File, range: Range<u64>) -> Res<Vec<(Range<u64>, bool)>> {
    let mut runs = Vec::new();
    let mut at = range.start;
    while at < range.end {
        // The position of the shared descriptor is nobody's: reads and writes carry their own.
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(range.end),
            Err(Errno::NXIO) => range.end,
            Err(errno) => return Err(errno),
        };
        if data > at {
            runs.push((at..data, false));
        }
        at = data;
        if at < range.end {
            let hole = rustix::fs::seek(file, SeekFrom::Hole(at))?.min(range.end);
            runs.push((at..hole, true));
            at = hole;
        }
    }
    Ok(runs)
}
