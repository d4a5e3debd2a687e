//! Opening files; those of the upper that the kernel reads and writes by itself (passthrough).
//!
//! The kernel wants all who have a file open to have it open the same way: whether it is read through the page cache or
//! directly is decided at the first open and stays until the last close. A file that is open while it is copied up
//! therefore goes on as before.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, Generation, INodeNo, Notifier, OpenAccMode,
    OpenFlags, ReplyCreate, ReplyOpen, Request,
};

use rustix::thread::CapabilitySet;

use super::common::{drops_set_id, reply};
use super::convert::file_attr;
use super::{KEEP, Server};
use crate::stats::Op;
use crate::tree::{New, Open};

#[derive(Default)]
pub(crate) struct Backings {
    /// Of every file that is open.
    files: Mutex<HashMap<u64, Backing>>,
    /// The kernel has passthrough, and has not refused this server yet.
    allowed: AtomicBool,
    /// Tells the kernel to ask for attributes again.
    notifier: OnceLock<Notifier>,
}

struct Backing {
    id: Option<Arc<BackingId>>,
    opens: u32,
    /// Somebody has it open for writing.
    written: bool,
}

/// Registers a file in the name of somebody who may not keep set-id bits of what he writes: the kernel writes it in this
/// thread's, which is root's, and asks nobody whether the writer may.
fn without_fsetid<T>(register: impl FnOnce() -> T) -> T {
    let Ok(all) = rustix::thread::capabilities(None) else { return register() };
    let mut less = all;
    less.effective.remove(CapabilitySet::FSETID);
    if rustix::thread::set_capabilities(None, less).is_err() {
        return register();
    }
    let result = register();
    if let Err(error) = rustix::thread::set_capabilities(None, all) {
        tracing::error!(%error, "a thread of the server lost a capability");
    }
    result
}

impl Backings {
    fn files(&self) -> MutexGuard<'_, HashMap<u64, Backing>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn allow(&self) {
        self.allowed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn start(&self, notifier: Notifier) {
        // A mount has one session.
        let _ = self.notifier.set(notifier);
    }

    /// Counts an open, for writing or not. The first one decides: `file` is what may be handed to the kernel, `register`
    /// does it.
    pub(super) fn open(
        &self,
        ino: u64,
        write: bool,
        file: impl FnOnce() -> Option<Arc<File>>,
        register: impl FnOnce(&File) -> std::io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let mut files = self.files();
        let backing = files.entry(ino).or_insert_with(|| {
            let file = if self.allowed.load(Ordering::Relaxed) { file() } else { None };
            let id = file.and_then(|file| match without_fsetid(|| register(&file)) {
                Ok(id) => Some(Arc::new(id)),
                Err(error) => {
                    // Only root may, and not on every file system.
                    tracing::debug!(%error, "the kernel leaves the upper's files to the server");
                    self.allowed.store(false, Ordering::Relaxed);
                    None
                }
            });
            Backing { id, opens: 0, written: false }
        });
        backing.opens += 1;
        let begins = write && !backing.written && backing.id.is_some();
        backing.written |= write;
        let id = backing.id.clone();
        drop(files);
        // From now on times and size change without a request (mmap): what the kernel knows of them is not to be kept.
        if begins
            && let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino), -1, 0)
        {
            tracing::debug!(%error, "attributes of a file may be old");
        }
        id
    }

    /// Counts a close.
    pub(super) fn close(&self, ino: u64) {
        let mut files = self.files();
        let Some(backing) = files.get_mut(&ino) else { return };
        backing.opens = backing.opens.saturating_sub(1);
        if backing.opens == 0 {
            files.remove(&ino);
        }
    }

    /// Whether the kernel writes the file without telling: what is known of it is not to be kept.
    pub(super) fn is_passed(&self, ino: u64) -> bool {
        self.allowed.load(Ordering::Relaxed)
            && self.files().get(&ino).is_some_and(|backing| backing.written && backing.id.is_some())
    }
}

/// Writes are complete when they are answered. Other flags the kernel refuses with passthrough.
const PASSED: FopenFlags = FopenFlags::FOPEN_NOFLUSH;
/// And nobody else changes files.
const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(PASSED);

impl Server {
    pub(super) fn open_file(
        &self,
        request: &Request,
        ino: INodeNo,
        flags: OpenFlags,
        reply: ReplyOpen,
    ) {
        if !self.tree().is_writable() {
            return reply.error(Errno::ENOSYS);
        }
        let open = Open {
            write: flags.acc_mode() != OpenAccMode::O_RDONLY,
            truncate: flags.0 & libc::O_TRUNC != 0,
            drop_set_id: drops_set_id(request),
        };
        let writes = open.write || open.truncate;
        reply!(reply, self.node(ino), node => {
            self.pass(Op::Open, node, writes, reply, move |shared, node, reply| {
                if !writes {
                    shared.pusher.before_open(&shared.tree, node);
                }
                reply!(reply, shared.tree.open(node, open), () => {
                    let file = || shared.tree.whole_file(node);
                    let register = |file: &File| reply.open_backing(file);
                    match shared.backings.open(node.ino, writes, file, register) {
                        Some(id) => reply.opened_passthrough(FileHandle(0), PASSED, &id),
                        None => reply.opened(FileHandle(0), OPENED),
                    }
                });
            });
        });
    }

    pub(super) fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        reply: ReplyCreate,
    ) {
        let made = self.make(request, parent, name, New::File { mode }).and_then(|seen| {
            let attr = self.tree().attr_of(&seen.node, seen.stat.as_deref())?;
            self.tree().opened(&seen.node);
            self.tree().remember(&seen.node);
            Ok((attr, seen.node))
        });
        reply!(reply, made, (attr, node) => {
            let file = || self.tree().whole_file(&node);
            let register = |file: &File| reply.open_backing(file);
            let (fh, attr, first) = (FileHandle(0), file_attr(&attr), Generation(0));
            match self.shared.backings.open(node.ino, true, file, register) {
                Some(id) => reply.created_passthrough(&KEEP, &attr, first, fh, PASSED, &id),
                None => reply.created(&KEEP, &attr, first, fh, OPENED),
            }
        });
    }
}
