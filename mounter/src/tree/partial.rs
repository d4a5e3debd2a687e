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
//! the metadata was copied: overlayfs never shows the holes as zeros. When the mount ends its files are completed, so
//! that the upper is whole; what a killed server left is found by its marks and completed by the next.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{Mode, SeekFrom, Statx, XattrFlags};
use rustix::io::Errno;

use super::attr::{set_times, times_of};
use super::copyup::write_all;
use super::file::{read_full, write_some};
use super::node::{Incompletes, LowerPart, Node, Rest};
use super::{Res, Tree};
use crate::ids::Attr;
use crate::kind::Kind;
use crate::overlay::Found;
use crate::upper::{Incomplete, Under, kind, proc_path, statx_fd};

/// Files from this size on are copied up in part.
pub(super) const LARGE: u64 = 256 << 10;

/// The part of a file that is still in its layer.
pub(crate) struct Partial {
    /// The layer's file; `None` if the layers don't have it any more.
    source: Option<LowerPart>,
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
    fn incompletes(&self) -> MutexGuard<'_, Incompletes> {
        self.incompletes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that a file is to be completed.
    pub(super) fn note_incomplete(&self, node: &Arc<Node>, partial: Partial) {
        node.state().rest = Rest::InLayer(Arc::new(partial));
        self.incompletes().insert(node.ino, Arc::clone(node));
    }

    pub(super) fn drop_incomplete(&self, node: &Node) {
        let dropped = self.incompletes().remove(&node.ino);
        drop(dropped);
    }

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
    fn read_rest(
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

    /// Copies the rest of a file, if a part of it is still in its layer.
    pub(super) fn complete(&self, node: &Arc<Node>) -> Res<()> {
        let Some(partial) = node.partial() else { return Ok(()) };
        let mut marks = partial.exclusive();
        if node.partial().is_none() {
            return Ok(()); // somebody else did
        }
        let looking = self.shared();
        let inode = self.path_fd(node)?;
        drop(looking);
        let before = statx_fd(&inode)?;
        let path = proc_path(&inode);
        let mode = u32::from(before.stx_mode) & 0o7777;
        // Without privileges the server can write only what its user may write.
        if mode & libc::S_IWUSR == 0 {
            rustix::fs::chmod(&*path, Mode::from_raw_mode(mode | libc::S_IWUSR))?;
        }
        let mut capability = [0; 64];
        let capability_len = rustix::fs::getxattr(&*path, CAPABILITY, &mut capability).unwrap_or(0);
        let filled = self.writable_file(node).and_then(|file| {
            self.fill_all(node, &partial, &file, marks.limit)?;
            if !self.upper()?.volatile {
                rustix::fs::fdatasync(&file)?;
            }
            self.upper()?.set_complete(&*file)
        });
        // Writing took what writing takes; nobody wrote.
        if u32::from(statx_fd(&inode)?.stx_mode) & 0o7777 != mode {
            rustix::fs::chmod(&*path, Mode::from_raw_mode(mode))?;
        }
        if capability_len > 0 {
            let value = &capability[..capability_len];
            rustix::fs::setxattr(&*path, CAPABILITY, value, XattrFlags::empty())?;
        }
        set_times(&*inode, &times_of(&before))?;
        filled?;
        marks.limit = 0;
        drop(marks);
        node.state().rest = Rest::Nowhere;
        self.drop_incomplete(node);
        Ok(())
    }

    /// [`Tree::fill`] for all of a file; holes of the layer's file stay holes.
    fn fill_all(&self, node: &Arc<Node>, partial: &Partial, file: &File, limit: u64) -> Res<()> {
        let mut at = 0;
        while at < limit {
            let part = partial.source.ok_or(Errno::IO)?;
            let data = self.lower.seek(part, at, false);
            let data = data.map_err(|error| self.damaged(node, &error))?;
            let Some(start) = data.filter(|&start| start < limit) else { break };
            let hole = self.lower.seek(part, start, true);
            let hole = hole.map_err(|error| self.damaged(node, &error))?;
            let end = hole.unwrap_or(limit).min(limit);
            self.fill(node, partial, file, start..end)?;
            at = end;
        }
        Ok(())
    }

    /// Completes all files, those an earlier server left included. What can't be completed stays marked.
    pub(crate) fn complete_all(&self) {
        let Ok(upper) = self.upper() else { return };
        if upper.was_left_incomplete() {
            self.find_all_rests();
        }
        let nodes: Vec<Arc<Node>> = self.incompletes().values().cloned().collect();
        let mut failed = 0;
        for node in nodes {
            if let Err(error) = self.complete(&node) {
                failed += 1;
                tracing::error!(path = node.path(), %error, "cannot complete a file in the upper");
            }
        }
        if failed == 0
            && let Err(error) = upper.note_all_complete()
        {
            tracing::debug!(%error, "the next mount looks for incomplete files once more");
        }
    }

    /// Goes through the upper for files that an earlier server left incomplete.
    fn find_all_rests(&self) {
        let mut todo = vec![Arc::clone(self.root())];
        while let Some(dir) = todo.pop() {
            let found = self.find_rests_in(&dir, &mut todo);
            if let Err(error) = found {
                tracing::error!(path = dir.path(), %error, "cannot look for incomplete files");
            }
            self.forget(dir.ino, 0);
        }
    }

    fn find_rests_in(&self, dir: &Arc<Node>, todo: &mut Vec<Arc<Node>>) -> Res<()> {
        let _looking = self.shared();
        let (upper, fd) = (self.upper()?, self.dir_fd(dir)?);
        for (name, _) in upper.list(&*fd)? {
            let Under::Entry(stat) = upper.look((*fd).as_fd(), &name)? else { continue };
            if !matches!(kind(&stat), Kind::File | Kind::Directory) {
                continue;
            }
            let Some(seen) = self.child(dir, &name)? else { continue };
            match seen.node.kind {
                Kind::Directory => todo.push(seen.node),
                _ => self.forget(seen.node.ino, 0),
            }
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

/// Taken from a file by every write to it.
const CAPABILITY: &str = "security.capability";

/// The runs of data and of holes in a range.
fn runs(file: &File, range: Range<u64>) -> Res<Vec<(Range<u64>, bool)>> {
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
