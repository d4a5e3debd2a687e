//! Completing files that were copied up in part: in the background, when the mount ends, or when somebody asks for it.
//!
//! A file is completed piece by piece. Whoever uses it waits for a piece at most, and is not told that anything was
//! written: times, mode and capabilities are put back before anybody can look. The marks go last, after the data is on
//! the disk, so a crash leaves a file that is still incomplete. What a killed server left is found by its marks and
//! completed by the next one.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, XattrFlags};
use rustix::io::Errno;

use super::attr::{set_times, times_of};
use super::copyup::write_all;
use super::node::{Node, Rest};
use super::partial::{Partial, runs};
use super::{Res, Tree};
use crate::kind::Kind;
use crate::upper::{Under, kind, proc_path, statx_fd};

/// How much is copied while others wait.
const PIECE: u64 = 256 << 10;

/// Files to be completed.
#[derive(Default)]
pub(crate) struct Incompletes {
    nodes: HashMap<u64, Arc<Node>>,
    /// Nothing is to be done in the background any more.
    ended: bool,
}

impl Tree {
    fn incompletes(&self) -> MutexGuard<'_, Incompletes> {
        self.incompletes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that a file is to be completed.
    pub(super) fn note_incomplete(&self, node: &Arc<Node>, partial: Partial) {
        node.state().rest = Rest::InLayer(Arc::new(partial));
        self.incompletes().nodes.insert(node.ino, Arc::clone(node));
        self.incomplete.notify_all();
    }

    pub(super) fn drop_incomplete(&self, node: &Node) {
        let dropped = self.incompletes().nodes.remove(&node.ino);
        drop(dropped);
    }

    /// Completes files, each some time after it was copied up, until [`Tree::end_background`]. At most half of a
    /// processor goes into it.
    pub(crate) fn complete_in_background(&self, delay: Duration) {
        let mut failed = HashSet::new();
        loop {
            let idle = |list: &mut Incompletes| {
                !list.ended && list.nodes.keys().all(|ino| failed.contains(ino))
            };
            let list = self.incomplete.wait_while(self.incompletes(), idle);
            drop(list);
            if self.ends_within(delay) {
                return;
            }
            let nodes: Vec<_> = self.incompletes().nodes.values().cloned().collect();
            for node in nodes {
                if failed.contains(&node.ino) {
                    continue;
                }
                let mut started = Instant::now();
                let done = self.complete_by(&node, || {
                    let ends = self.ends_within(started.elapsed());
                    started = Instant::now();
                    !ends
                });
                match done {
                    Ok(true) => self.forget_if_unused(node),
                    Ok(false) => return,
                    Err(error) => {
                        tracing::warn!(path = node.path(), %error, "a file of the upper stays incomplete for now");
                        failed.insert(node.ino);
                    }
                }
            }
        }
    }

    /// Whether the background's end comes within that time.
    fn ends_within(&self, time: Duration) -> bool {
        let waited =
            self.incomplete.wait_timeout_while(self.incompletes(), time, |list| !list.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Makes [`Tree::complete_in_background`] return soon.
    pub(crate) fn end_background(&self) {
        self.incompletes().ended = true;
        self.incomplete.notify_all();
    }

    fn forget_if_unused(&self, node: Arc<Node>) {
        let ino = node.ino;
        drop(node);
        self.forget(ino, 0);
    }

    /// Copies the rest of a file, if a part of it is still in its layer.
    pub(super) fn complete(&self, node: &Arc<Node>) -> Res<()> {
        self.complete_by(node, || true).map(drop)
    }

    /// [`Tree::complete`] while `goes_on`, which is asked after each piece; says whether the file is complete.
    fn complete_by(&self, node: &Arc<Node>, mut goes_on: impl FnMut() -> bool) -> Res<bool> {
        let Some(partial) = node.partial() else { return Ok(true) };
        let inode = self.look(|| self.path_fd(node))?;
        let file = self.writable_file(node)?;
        let mut at = 0;
        while let Some(next) = self.complete_piece(node, &partial, (&file, &inode), at)? {
            at = next;
            if !goes_on() {
                return Ok(false);
            }
        }
        // What was a hole and is filled stays so: nobody punches holes into a file that isn't complete.
        if !self.upper()?.volatile {
            rustix::fs::fdatasync(&file)?;
        }
        let mut marks = partial.exclusive();
        if node.partial().is_none() {
            return Ok(true); // somebody else did
        }
        self.unseen(&inode, || self.upper()?.set_complete(&*file))?;
        marks.limit = 0;
        drop(marks);
        node.state().rest = Rest::Nowhere;
        self.drop_incomplete(node);
        Ok(true)
    }

    /// Copies the first piece from `at` on that is still in the layer; says where to go on.
    fn complete_piece(
        &self,
        node: &Arc<Node>,
        partial: &Partial,
        (file, inode): (&File, &OwnedFd),
        at: u64,
    ) -> Res<Option<u64>> {
        let marks = partial.exclusive();
        if node.partial().is_none() {
            return Ok(None);
        }
        let Some(piece) = self.next_piece(node, partial, at..marks.limit)? else { return Ok(None) };
        let mut rest = Vec::new();
        for (run, _) in runs(file, piece.clone())?.into_iter().filter(|(_, here)| !here) {
            let mut bytes = Vec::with_capacity((run.end - run.start) as usize);
            self.read_rest(node, partial, run.clone(), |_, read| {
                bytes.extend_from_slice(read);
                Ok(())
            })?;
            rest.push((run.start, bytes));
        }
        if !rest.is_empty() {
            let write = || rest.iter().try_for_each(|(at, bytes)| write_all(file, bytes, *at));
            self.unseen(inode, write)?;
        }
        Ok(Some(piece.end))
    }

    /// What of a range is to be copied next, in whole blocks of the upper's file system; holes of the layer's file stay
    /// holes.
    fn next_piece(
        &self,
        node: &Arc<Node>,
        partial: &Partial,
        range: Range<u64>,
    ) -> Res<Option<Range<u64>>> {
        if range.is_empty() {
            return Ok(None);
        }
        let part = partial.source.ok_or(Errno::IO)?;
        let seek = |at, hole| {
            let found = self.lower.seek(part, at, hole);
            found.map_err(|error| self.damaged(node, &error))
        };
        let Some(start) = seek(range.start, false)?.filter(|&start| start < range.end) else {
            return Ok(None);
        };
        let end = seek(start, true)?.unwrap_or(range.end).min(start + PIECE);
        let grain = self.upper()?.grain.unwrap_or(1);
        Ok(Some(start / grain * grain..end.next_multiple_of(grain).min(range.end)))
    }

    /// Does what leaves a file as it was for all who look at it, and puts back what tells of it.
    fn unseen<T>(&self, inode: &OwnedFd, change: impl FnOnce() -> Res<T>) -> Res<T> {
        let _changing = self.exclusive();
        let before = statx_fd(inode)?;
        let path = proc_path(inode);
        let mut capability = [0; 64];
        let capability_len = rustix::fs::getxattr(&*path, CAPABILITY, &mut capability).unwrap_or(0);
        let changed = change();
        let mode = u32::from(before.stx_mode) & 0o7777;
        if u32::from(statx_fd(inode)?.stx_mode) & 0o7777 != mode {
            rustix::fs::chmod(&*path, Mode::from_raw_mode(mode))?;
        }
        if capability_len > 0 {
            let value = &capability[..capability_len];
            rustix::fs::setxattr(&*path, CAPABILITY, value, XattrFlags::empty())?;
        }
        set_times(inode, &times_of(&before))?;
        changed
    }

    /// Completes all files, those an earlier server left included. What can't be completed stays marked.
    pub(crate) fn complete_all(&self) {
        let Ok(upper) = self.upper() else { return };
        if upper.was_left_incomplete() {
            self.find_all_rests();
        }
        let nodes: Vec<Arc<Node>> = self.incompletes().nodes.values().cloned().collect();
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
        let _changing = self.exclusive();
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
}

/// Taken from a file by every write to it.
const CAPABILITY: &str = "security.capability";
