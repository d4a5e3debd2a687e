//! Marks in the upper: whiteouts, opaque directories, redirects.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, Statx, XattrFlags};
use rustix::io::Errno;

use super::{Res, UpperDir, proc_path, statx_at};
use crate::overlay::Marks;

/// Which attributes carry the marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkSpace {
    /// `trusted.overlay.*`: only root sees them.
    Trusted,
    /// `user.overlay.*`, the form of an overlayfs mounted with `userxattr`.
    User,
}

impl MarkSpace {
    pub(super) fn name(self) -> &'static str {
        match self {
            MarkSpace::Trusted => "trusted.overlay",
            MarkSpace::User => "user.overlay",
        }
    }

    fn of(self, trusted: &'static str, user: &'static str) -> &'static str {
        match self {
            MarkSpace::Trusted => trusted,
            MarkSpace::User => user,
        }
    }
    fn opaque(self) -> &'static str {
        self.of("trusted.overlay.opaque", "user.overlay.opaque")
    }
    fn redirect(self) -> &'static str {
        self.of("trusted.overlay.redirect", "user.overlay.redirect")
    }
    fn whiteout(self) -> &'static str {
        self.of("trusted.overlay.whiteout", "user.overlay.whiteout")
    }
    fn metacopy(self) -> &'static str {
        self.of("trusted.overlay.metacopy", "user.overlay.metacopy")
    }
    /// Ours: overlayfs ignores it.
    fn partial(self) -> &'static str {
        self.of("trusted.overlay.mica", "user.overlay.mica")
    }
}

/// What is written on a file that was copied up in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Incomplete {
    /// Where the layers have the file, from the root; empty: under its own name.
    pub(crate) path: Box<[u8]>,
    /// Below this offset, what is a hole in the upper is still in the layer.
    pub(crate) limit: u64,
    /// Size and modification time of the layer's file: another file is not its rest. Overlayfs says nothing of it.
    pub(crate) source: Option<(u64, i64)>,
}

impl Incomplete {
    fn text(&self) -> String {
        let (size, mtime) = self.source.unwrap_or_default();
        format!("{} {size} {mtime}", self.limit)
    }

    fn parse(text: &[u8], path: Box<[u8]>) -> Option<Incomplete> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let limit = words.next()?.parse().ok()?;
        let source = Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?));
        Some(Incomplete { path, limit, source })
    }
}

/// Whether an attribute belongs to the overlay, and is neither shown nor set through the mount.
pub(crate) fn is_private(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn path_at(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

impl UpperDir {
    /// An attribute of what is under `name`; `None` if there is none.
    fn attribute(&self, dir: BorrowedFd<'_>, name: &[u8], what: &str) -> Res<Option<Vec<u8>>> {
        let path = path_at(dir, name);
        self.allowed_at(dir, name, || {
            let mut value = vec![0; 4096];
            match rustix::fs::lgetxattr(&*path, what, &mut value) {
                Ok(len) => {
                    value.truncate(len);
                    Ok(Some(value))
                }
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
                Err(errno) => Err(errno),
            }
        })
    }

    /// Sets an attribute of an inode.
    fn set_attribute(
        &self,
        inode: impl AsFd,
        what: &str,
        value: &[u8],
        how: XattrFlags,
    ) -> Res<()> {
        let path = proc_path(&inode);
        self.allowed(&inode, || rustix::fs::setxattr(&*path, what, value, how))
    }

    pub(super) fn is_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8], stat: &Statx) -> Res<bool> {
        let mode = u32::from(stat.stx_mode) & libc::S_IFMT;
        if mode == libc::S_IFCHR {
            return Ok(stat.stx_rdev_major == 0 && stat.stx_rdev_minor == 0);
        }
        // Where mknod isn't allowed a whiteout is an empty file with an attribute.
        if mode != libc::S_IFREG || stat.stx_size != 0 || !self.has_attribute_whiteouts(dir)? {
            return Ok(false);
        }
        Ok(self.attribute(dir, name, self.marks.whiteout())?.is_some())
    }

    /// Whether a listed entry is a whiteout.
    pub(crate) fn hides(&self, dir: impl AsFd, name: &[u8]) -> Res<bool> {
        match self.stat_at(&dir, name) {
            Ok(stat) => self.is_whiteout(dir.as_fd(), name, &stat),
            Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    /// Whether a directory says that it holds whiteouts made of attributes.
    pub(crate) fn has_attribute_whiteouts(&self, dir: impl AsFd) -> Res<bool> {
        Ok(self.attribute(dir.as_fd(), b".", self.marks.opaque())?.is_some_and(|v| v == b"x"))
    }

    /// Puts a whiteout under a name that doesn't exist.
    pub(crate) fn make_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<()> {
        let kind = rustix::fs::FileType::CharacterDevice;
        match self.allowed(dir, || rustix::fs::mknodat(dir, name, kind, Mode::empty(), 0)) {
            Err(Errno::PERM) => self.make_attribute_whiteout(dir, name),
            result => result,
        }
    }

    fn make_attribute_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<()> {
        let temporary = self.temporary();
        let kind = rustix::fs::FileType::RegularFile;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(self.work(), &temporary, kind, mode, 0)?;
        let path = path_at(self.work(), &temporary);
        let marked =
            rustix::fs::lsetxattr(&*path, self.marks.whiteout(), b"y", XattrFlags::empty())
                .and_then(|()| self.announce_whiteouts(dir))
                .and_then(|()| self.place(&temporary, dir, name));
        if marked.is_err() {
            self.discard(&temporary);
        }
        marked
    }

    /// Says on a directory that whiteouts made of attributes are in it, as overlayfs wants it.
    fn announce_whiteouts(&self, dir: BorrowedFd<'_>) -> Res<()> {
        match self.set_attribute(dir, self.marks.opaque(), b"x", XattrFlags::CREATE) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    /// Makes a whiteout in the work directory that is to go to `dir`.
    pub(super) fn make_whiteout_for(&self, dir: BorrowedFd<'_>, temporary: &[u8]) -> Res<()> {
        self.make_whiteout(self.work(), temporary)?;
        if u32::from(statx_at(self.work(), temporary)?.stx_mode) & libc::S_IFMT == libc::S_IFREG {
            self.announce_whiteouts(dir)?;
        }
        Ok(())
    }

    /// The marks of the upper directory `name` in `dir`.
    pub(crate) fn dir_marks(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<Marks> {
        let opaque =
            self.attribute(dir, name, self.marks.opaque())?.is_some_and(|value| value == b"y");
        let redirect = self.attribute(dir, name, self.marks.redirect())?.map(Vec::into_boxed_slice);
        Ok(Marks { opaque, redirect })
    }

    /// What says of the file `name` in `dir` that a part of it is still in its layer.
    pub(crate) fn incomplete(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<Option<Incomplete>> {
        if self.attribute(dir, name, self.marks.metacopy())?.is_none() {
            return Ok(None);
        }
        let at = self
            .attribute(dir, name, self.marks.redirect())?
            .unwrap_or_default()
            .into_boxed_slice();
        match self.attribute(dir, name, self.marks.partial())? {
            Some(text) => Ok(Some(Incomplete::parse(&text, at).ok_or(Errno::IO)?)),
            // Overlayfs with `metacopy=on` wrote it: all of it is in the layer.
            None => Ok(Some(Incomplete { path: at, limit: u64::MAX, source: None })),
        }
    }

    /// Says of a file that a part of it is still in its layer. Overlayfs takes it for a file of which only the metadata was
    /// copied: it refuses to open it, or with `metacopy=on` reads the layer's.
    pub(crate) fn set_incomplete(&self, fd: impl AsFd, what: &Incomplete) -> Res<()> {
        let set = |name, value: &[u8]| self.set_attribute(&fd, name, value, XattrFlags::empty());
        set(self.marks.partial(), what.text().as_bytes())?;
        set(self.marks.redirect(), &what.path)?;
        // An empty value is lost by some tools; this one means the same.
        set(self.marks.metacopy(), &[0, 4, 0, 0])
    }

    /// Changes where the part that is still in the layer ends.
    pub(crate) fn set_limit(&self, fd: impl AsFd, what: &Incomplete) -> Res<()> {
        let text = what.text();
        self.set_attribute(fd, self.marks.partial(), text.as_bytes(), XattrFlags::empty())
    }

    /// Says that all of a file is here.
    pub(crate) fn set_complete(&self, fd: impl AsFd) -> Res<()> {
        let path = proc_path(&fd);
        // The first one counts; a crash may leave the others.
        for name in [self.marks.metacopy(), self.marks.redirect(), self.marks.partial()] {
            match self.allowed(&fd, || rustix::fs::removexattr(&*path, name)) {
                Err(Errno::NODATA) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Hides everything below the directory.
    pub(crate) fn set_opaque(&self, dir: impl AsFd) -> Res<()> {
        self.set_attribute(dir, self.marks.opaque(), b"y", XattrFlags::empty())
    }

    /// Records where the layers below have the directory.
    pub(crate) fn set_redirect(&self, dir: impl AsFd, path: &[u8]) -> Res<()> {
        self.set_attribute(dir, self.marks.redirect(), path, XattrFlags::empty())
    }

    pub(super) fn remove_at(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<()> {
        self.allowed(dir, || rustix::fs::unlinkat(dir, name, AtFlags::empty()))
    }
}
