//! What the requests have in common: finding nodes, sending entries, going through directories.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, Generation, INodeNo, InitFlags, KernelConfig, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEntry, ReplyXattr, Request,
};

use super::Server;
use super::convert::{bare_attr, file_attr};
use crate::kind::Kind;
use crate::tree::{Caller, Entry, New, Node, Seen};

pub(super) type Res<T> = Result<T, rustix::io::Errno>;

/// Asked for at the start, where the kernel has it: one request less here or there.
pub(super) const WANTED: [InitFlags; 8] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_HAS_RESEND,
    // Handles of files (name_to_handle_at) could not be opened once the kernel has forgotten the file: none are given.
    InitFlags::FUSE_NO_EXPORT_SUPPORT,
];

/// Sends what a result holds: the value or the error.
macro_rules! reply {
    ($reply:ident, $result:expr, $value:pat => $send:expr) => {
        match $result {
            Ok($value) => $send,
            Err(error) => $reply.error(crate::server::convert::errno(error)),
        }
    };
}
pub(super) use reply;

/// Entries that are told at once of a directory that is being changed.
const AT_ONCE: usize = 32;

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

/// Whether the caller loses set-id bits of a file it changes; the kernel says so where the protocol lets it.
pub(super) fn drops_set_id(request: &Request) -> bool {
    request.uid() != 0
}

impl Server {
    pub(super) fn node(&self, ino: INodeNo) -> Res<Arc<Node>> {
        self.tree().node(ino.0)
    }

    pub(super) fn send_entry(&self, reply: ReplyEntry, seen: Res<Seen>) {
        let attr = seen.and_then(|seen| {
            let attr = self.tree().attr_of(&seen.node, seen.stat.as_deref())?;
            self.tree().remember(&seen.node);
            Ok(attr)
        });
        reply!(reply, attr, attr => {
            reply.entry(self.shared.keep(attr.ino), &file_attr(&attr), Generation(0));
        });
    }

    pub(super) fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: New<'_>,
    ) -> Res<Seen> {
        self.tree().make(&self.node(parent)?, name.as_bytes(), caller(request), new)
    }

    pub(super) fn xattr_reply<T: Borrow<Vec<u8>>>(reply: ReplyXattr, size: u32, value: Res<T>) {
        let value = value.as_ref().map(Borrow::borrow);
        reply!(reply, value.map_err(|&errno| errno), value => match size {
            0 => reply.size(value.len() as u32),
            size if value.len() > size as usize => reply.error(Errno::ERANGE),
            _ => reply.data(value),
        });
    }

    /// Goes through a directory from `offset`; `add` returns whether the reply is full.
    pub(super) fn each_entry(
        &self,
        ino: INodeNo,
        offset: u64,
        mut add: impl FnMut(&[u8], u64, Entry) -> bool,
    ) -> Res<()> {
        let dir = self.node(ino)?;
        let listing = self.listing(&dir, offset == 0)?;
        let parent = self.tree().parent(&dir).ino;
        for (index, (name, ino)) in [(b".".as_slice(), dir.ino), (b"..", parent)].iter().enumerate()
        {
            let next = index as u64 + 1;
            let entry = Entry::Damaged { ino: *ino, kind: Kind::Directory };
            if next > offset && add(name, next, entry) {
                return Ok(());
            }
        }
        // Whoever waits to change the directory waits for this answer.
        let mut left = if self.tree().is_changing(&dir) { AT_ONCE } else { usize::MAX };
        let from = listing.entries.partition_point(|listed| listed.position <= offset);
        for listed in &listing.entries[from..] {
            let entry = self.tree().entry(&dir, listed)?;
            if matches!(entry, Entry::Gone) {
                continue;
            }
            left -= 1;
            if add(&listed.name, listed.position, entry) || left == 0 {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Asks for what [`WANTED`] names, for large writes, and where wished for passthrough; says whether that is to be had.
pub(super) fn negotiate(config: &mut KernelConfig, passthrough: bool) -> bool {
    for flag in WANTED {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!(?flag, "the kernel doesn't offer a FUSE capability");
        }
    }
    if let Err(max) = config.set_max_write(1 << 20) {
        tracing::debug!(max, "writes come in smaller pieces");
    }
    passthrough
        && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(1).is_ok()
}

impl Server {
    /// The names in a directory, from `offset` on, as many as fit.
    pub(super) fn list(&self, mut reply: ReplyDirectory, ino: INodeNo, offset: u64) {
        let done = self.each_entry(ino, offset, |name, next, entry| {
            let (ino, kind) = match entry {
                Entry::Seen(node, _) => (node.ino, node.kind),
                Entry::Damaged { ino, kind } => (ino, kind),
                Entry::Gone => return false,
            };
            reply.add(INodeNo(ino), next, kind.fuse(), OsStr::from_bytes(name))
        });
        reply!(reply, done, () => reply.ok());
    }

    /// The same with each entry's attributes, which the kernel then need not ask for.
    pub(super) fn list_plus(&self, mut reply: ReplyDirectoryPlus, ino: INodeNo, offset: u64) {
        let mut is_end = true;
        let done = self.each_entry(ino, offset, |name, next, entry| {
            is_end = false;
            let (node, attr, keep) = match entry {
                Entry::Seen(node, attr) => {
                    let keep = *self.shared.keep(attr.ino);
                    (Some(node), file_attr(&attr), keep)
                }
                // Nothing to keep: whoever wants more asks again and gets the error.
                Entry::Damaged { ino, kind } => (None, bare_attr(ino, kind), Duration::ZERO),
                Entry::Gone => return false,
            };
            let name = OsStr::from_bytes(name);
            let full = reply.add(attr.ino, next, name, &keep, &attr, Generation(0));
            if let (Some(node), false) = (node, full) {
                self.tree().remember(&node);
            }
            full
        });
        if let (true, Ok(dir)) = (is_end, self.node(ino))
            && let Ok(listing) = self.listing(&dir, false)
            && let Some(first) = listing.first_file()
        {
            self.shared.pusher.after_listing(self.tree(), first);
        }
        reply!(reply, done, () => reply.ok());
    }
}
