//! Content of files.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::attr::{At, drop_set_id};
use super::node::{InUpper, Node, OpenFile, Rest};
use super::{Res, Tree};
use crate::kind::Kind;
use crate::lower::{Store, Wish};
use crate::upper::{proc_path, statx_fd};

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Open {
    pub(crate) write: bool,
    pub(crate) truncate: bool,
    /// Truncating takes the set-id bits.
    pub(crate) drop_set_id: bool,
}

impl Tree {
    /// Opens a file: brings it up if it is to be written.
    pub(crate) fn open(&self, node: &Arc<Node>, how: Open) -> Res<()> {
        if node.kind == Kind::Directory {
            return Err(Errno::ISDIR);
        }
        if how.write || how.truncate {
            self.bring_up(node, how.truncate)?;
            let file = self.writable_file(node)?;
            if how.truncate {
                match node.partial() {
                    Some(partial) => {
                        let mut marks = partial.exclusive();
                        self.look(|| self.truncate_partial(&file, &mut marks, 0))?;
                    }
                    None => rustix::fs::ftruncate(&file, 0)?,
                }
                if how.drop_set_id {
                    drop_set_id(&*file)?;
                }
            }
        }
        self.opened(node);
        Ok(())
    }

    /// Counts an open of the node.
    pub(crate) fn opened(&self, node: &Node) {
        node.state().opens += 1;
    }

    /// Counts a close; after the last one the upper's file is closed.
    pub(crate) fn release(&self, node: &Node) {
        let mut state = node.state();
        state.opens = state.opens.saturating_sub(1);
        let closed = if state.opens == 0 { state.file.take() } else { None };
        drop(state);
        drop(closed); // closing may wait for a disk: not under the lock
    }

    pub(super) fn writable_file(&self, node: &Arc<Node>) -> Res<Arc<File>> {
        self.upper_file(node, true)
    }

    /// The upper's file, if all of a file's content is in it and a write takes nothing from it.
    pub(crate) fn whole_file(&self, node: &Arc<Node>) -> Option<Arc<File>> {
        let whole = {
            let state = node.state();
            matches!(state.rest, Rest::Nowhere) && !matches!(state.upper, InUpper::No)
        };
        if !whole || node.kind != Kind::File {
            return None;
        }
        let file = self.upper_file(node, false).ok()?;
        let mode = u32::from(statx_fd(&file).ok()?.stx_mode);
        (mode & (libc::S_ISUID | libc::S_ISGID) == 0).then_some(file)
    }

    /// The upper's file; one for all who have the node open.
    fn upper_file(&self, node: &Arc<Node>, write: bool) -> Res<Arc<File>> {
        if let Some(file) = open_file(node, write) {
            return Ok(file);
        }
        self.look(|| self.upper_file_locked(node, write))
    }

    /// The same for callers that hold the namespace lock: else the name may be another file's when it is opened.
    pub(super) fn upper_file_locked(&self, node: &Arc<Node>, write: bool) -> Res<Arc<File>> {
        if let Some(file) = open_file(node, write) {
            return Ok(file);
        }
        let (file, writable) = match self.open_upper(node, OFlags::RDWR) {
            Ok(file) => (file, true),
            // Without privileges the server can open only what its user may open.
            Err(Errno::ACCESS | Errno::PERM) if write => {
                (self.open_upper(node, OFlags::WRONLY)?, true)
            }
            Err(Errno::ACCESS | Errno::PERM) => (self.open_upper(node, OFlags::RDONLY)?, false),
            Err(errno) => return Err(errno),
        };
        let file = Arc::new(file);
        let mut state = node.state();
        if state.opens > 0 || matches!(state.upper, InUpper::Removed(_)) {
            state.file = Some(OpenFile { file: Arc::clone(&file), writable });
            drop(state);
            drop(self.open_files.opened(Arc::downgrade(node)));
        }
        Ok(file)
    }

    fn open_upper(&self, node: &Arc<Node>, access: OFlags) -> Res<File> {
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match self.at(node)? {
            At::Name(dir, name) => {
                let flags = flags | OFlags::NOFOLLOW;
                let open = || rustix::fs::openat(&dir, &*name, flags, Mode::empty());
                let fd = self.upper()?.allowed_at(&dir, &name, open)?;
                // Somebody who changes the upper behind the server's back sees that he does.
                if node
                    .state()
                    .number
                    .is_some_and(|known| statx_fd(&fd).map(|s| s.stx_ino) != Ok(known))
                {
                    return Err(Errno::STALE);
                }
                fd
            }
            // Through /proc: the only way to an inode without a name.
            At::Fd(fd) => {
                let open = || rustix::fs::open(proc_path(&fd), flags, Mode::empty());
                self.upper()?.allowed(&fd, open)?
            }
        };
        Ok(File::from(fd))
    }

    /// Reads; `reply` is called once with what there is. `keep_atime`: it doesn't count as an access.
    pub(crate) fn read<T>(
        &self,
        node: &Arc<Node>,
        offset: u64,
        size: usize,
        keep_atime: bool,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Res<T> {
        let lower = {
            let state = node.state();
            match state.upper {
                InUpper::No => state.lower,
                _ => None,
            }
        };
        if let Some(part) = lower {
            return self
                .lower
                .read(part, offset, size, reply)
                .map_err(|error| self.damaged(node, &error));
        }
        // The descriptor that is shared by all counts accesses.
        let apart = match keep_atime {
            true => {
                let _looking = self.shared();
                self.open_upper(node, OFlags::RDONLY | OFlags::NOATIME).ok()
            }
            false => None,
        };
        let file = match apart {
            Some(file) => Arc::new(file),
            None => self.upper_file(node, false)?,
        };
        if let Some(partial) = node.partial() {
            let range = offset..offset.saturating_add(size as u64);
            return Ok(reply(&self.read_partial(node, &partial, &file, range)?));
        }
        let mut buffer = vec![0; size];
        let filled = read_full(&file, &mut buffer, offset)?;
        Ok(reply(&buffer[..filled]))
    }

    /// [`Lower::hand_over`](crate::lower::Lower::hand_over) of a layer's file. Whoever reads it sees why it can't be read.
    pub(crate) fn hand_over(
        &self,
        node: &Node,
        wish: Wish,
        limit: u64,
        store: Store<'_>,
    ) -> Option<u64> {
        let part = node.state().lower?;
        let stored = self.lower.hand_over(part, wish, limit, store).ok().flatten();
        node.state().handed_over |= stored.is_some();
        stored
    }

    /// The same of [`Lower::hand_over_rest`](crate::lower::Lower::hand_over_rest).
    pub(crate) fn hand_over_rest(&self, node: &Node, range: Range<u64>, store: Store<'_>) {
        let lower = node.state().lower;
        drop(lower.map(|part| self.lower.hand_over_rest(part, range, store)));
    }

    pub(crate) fn write(
        &self,
        node: &Arc<Node>,
        offset: u64,
        data: &[u8],
        takes_set_id: bool,
    ) -> Res<usize> {
        self.bring_up(node, false)?;
        let file = self.writable_file(node)?;
        let written = match node.partial() {
            Some(partial) => self.write_partial(node, &partial, &file, offset, data)?,
            None => write_some(&file, data, offset)?,
        };
        if takes_set_id {
            drop_set_id(&*file)?;
        }
        Ok(written)
    }

    pub(crate) fn allocate(
        &self,
        node: &Arc<Node>,
        mode: FallocateFlags,
        (offset, len): (u64, u64),
        takes_set_id: bool,
    ) -> Res<()> {
        self.bring_up(node, false)?;
        // What space is allocated to is no hole any more.
        self.complete(node)?;
        let file = self.writable_file(node)?;
        rustix::fs::fallocate(&file, mode, offset, len)?;
        if takes_set_id { drop_set_id(&*file) } else { Ok(()) }
    }

    /// The next data or hole at or after `offset`.
    pub(crate) fn seek(&self, node: &Arc<Node>, offset: u64, hole: bool) -> Res<u64> {
        let lower = (!node.in_upper()).then(|| node.state().lower).flatten();
        if let Some(part) = lower {
            let found = self.lower.seek(part, offset, hole);
            return found.map_err(|error| self.damaged(node, &error))?.ok_or(Errno::NXIO);
        }
        // The position of the shared descriptor is nobody's: reads and writes carry their own.
        let file = self.upper_file(node, false)?;
        if node.is_partial() {
            // A hole may be data of the layer: all counts as data, as it may.
            let size = statx_fd(&file)?.stx_size;
            let at = if hole { size } else { offset };
            return if offset < size { Ok(at) } else { Err(Errno::NXIO) };
        }
        let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        rustix::fs::seek(&file, from)
    }

    pub(crate) fn sync(&self, node: &Arc<Node>, data_only: bool) -> Res<()> {
        if !node.in_upper() {
            return Ok(());
        }
        if node.kind == Kind::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = self.look(|| {
                let (upper, dir) = (self.upper()?, self.dir_fd(node)?);
                upper.allowed(&dir, || rustix::fs::openat(&dir, c".", flags, Mode::empty()))
            })?;
            return rustix::fs::fsync(dir); // a disk may take its time
        }
        let file = self.upper_file(node, false)?;
        // Marks of a file are no data, but tell what is.
        let data_only = data_only && !node.is_partial();
        if data_only { rustix::fs::fdatasync(&file) } else { rustix::fs::fsync(&file) }
    }

    /// Copies between two files of the upper; `XDEV` tells the kernel to do it by reading and writing.
    pub(crate) fn copy_range(
        &self,
        from: (&Arc<Node>, u64),
        to: (&Arc<Node>, u64),
        len: usize,
        takes_set_id: bool,
    ) -> Res<usize> {
        if [from.0, to.0].iter().any(|node| !node.in_upper() || node.is_partial()) {
            return Err(Errno::XDEV);
        }
        let source = self.upper_file(from.0, false)?;
        let target = self.writable_file(to.0)?;
        let (mut from_offset, mut to_offset) = (from.1, to.1);
        let (source_at, target_at) = (Some(&mut from_offset), Some(&mut to_offset));
        let copied = rustix::fs::copy_file_range(&source, source_at, &target, target_at, len)?;
        if takes_set_id {
            drop_set_id(&*target)?;
        }
        Ok(copied)
    }

    pub(crate) fn read_link(&self, node: &Arc<Node>) -> Res<Vec<u8>> {
        self.look(|| self.read_link_locked(node))
    }

    fn read_link_locked(&self, node: &Arc<Node>) -> Res<Vec<u8>> {
        if node.kind != Kind::Symlink {
            return Err(Errno::INVAL);
        }
        let lower = (!node.in_upper()).then(|| node.state().lower).flatten();
        if let Some(part) = lower {
            return self.lower.read_link(part).map_err(|error| self.damaged(node, &error));
        }
        let target = match self.at(node)? {
            At::Name(dir, name) => {
                let read = || rustix::fs::readlinkat(&dir, &*name, Vec::new());
                self.upper()?.allowed(&dir, read)?
            }
            At::Fd(fd) => rustix::fs::readlinkat(&fd, c"", Vec::new())?,
        };
        Ok(target.into_bytes())
    }
}

/// The upper's file, if it is open as wanted.
fn open_file(node: &Node, write: bool) -> Option<Arc<File>> {
    let state = node.state();
    let open = state.file.as_ref().filter(|open| open.writable || !write);
    open.map(|open| Arc::clone(&open.file))
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> Res<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(filled)
}

/// Writes as much as can be written: at least something, or it is an error.
pub(super) fn write_some(file: &File, data: &[u8], offset: u64) -> Res<usize> {
    let mut written = 0;
    while written < data.len() {
        match rustix::io::pwrite(file, &data[written..], offset + written as u64) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(Errno::INTR) => {}
            Err(_) if written > 0 => break, // a short write now, the error next time
            Err(errno) => return Err(errno),
        }
    }
    Ok(written)
}
