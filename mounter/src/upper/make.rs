//! Making and removing entries of the upper so that a crash leaves the old state or the new one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::{Res, UpperDir, proc_path, statx_fd};

/// Owner and mode an inode is to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits, set-id and sticky included.
    pub(crate) mode: u32,
}

/// A file without a name that is still in use, under a name in the work directory: where there is no descriptor left for
/// it. A crash leaves it to the next mount, which removes it.
pub(crate) struct Parked {
    pub(crate) work: Arc<OwnedFd>,
    pub(crate) name: Box<[u8]>,
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::unlinkat(&self.work, &*self.name, AtFlags::empty()) {
            tracing::debug!(%error, "cannot remove a file that nobody uses");
        }
    }
}

impl UpperDir {
    /// Keeps a file that is about to lose its last name.
    pub(crate) fn park(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<Parked> {
        let parked = self.temporary();
        self.link((dir, name), (self.work(), &parked))?;
        Ok(Parked { work: Arc::clone(&self.work), name: parked.into() })
    }

    pub(crate) fn work(&self) -> BorrowedFd<'_> {
        (*self.work).as_fd()
    }

    /// A name in the work directory that nobody uses.
    pub(crate) fn temporary(&self) -> Vec<u8> {
        format!("#{}", self.next_temporary.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Removes a temporary; what can't be removed now is removed at the next mount.
    pub(crate) fn discard(&self, temporary: &[u8]) {
        if let Err(error) = self.remove_tree(self.work(), temporary) {
            tracing::debug!(%error, "cannot remove a temporary of the upper");
        }
    }

    /// Renames in the upper.
    pub(crate) fn rename(
        &self,
        from: (BorrowedFd<'_>, &[u8]),
        to: (BorrowedFd<'_>, &[u8]),
        flags: RenameFlags,
    ) -> Res<()> {
        // A directory that gets another parent is written itself.
        self.allowed_at(from.0, from.1, || {
            let rename = || match flags.is_empty() {
                true => rustix::fs::renameat(from.0, from.1, to.0, to.1),
                false => rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags),
            };
            match flags.contains(RenameFlags::EXCHANGE) {
                true => self.allowed_at(to.0, to.1, rename),
                false => self.allowed(to.0, rename),
            }
        })
    }

    /// Makes a hard link in the upper.
    pub(crate) fn link(
        &self,
        from: (BorrowedFd<'_>, &[u8]),
        to: (BorrowedFd<'_>, &[u8]),
    ) -> Res<()> {
        self.allowed(from.0, || {
            let link = || rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty());
            self.allowed(to.0, link)
        })
    }

    /// Moves a finished temporary to a name that doesn't exist in the upper.
    pub(crate) fn place(&self, temporary: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Res<()> {
        match self.rename((self.work(), temporary), (dir, name), RenameFlags::NOREPLACE) {
            // Some file systems don't know the flag; nobody else writes here.
            Err(Errno::INVAL | Errno::NOSYS) => {
                self.rename((self.work(), temporary), (dir, name), RenameFlags::empty())
            }
            result => result,
        }
    }

    /// Moves a finished temporary over what is there, in one step; what was there is removed with all it holds. `is_dir`:
    /// one of the two is a directory.
    pub(crate) fn place_over(
        &self,
        temporary: &[u8],
        is_dir: bool,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Res<()> {
        let (from, to) = ((self.work(), temporary), (dir, name));
        if !is_dir {
            return self.rename(from, to, RenameFlags::empty());
        }
        self.rename(from, to, RenameFlags::EXCHANGE)?;
        self.discard(temporary);
        Ok(())
    }

    /// Puts a whiteout in place of what is there, in one step; what was there is removed with all it holds.
    pub(crate) fn replace_by_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        is_dir: bool,
    ) -> Res<()> {
        let temporary = self.temporary();
        self.make_whiteout_for(dir, &temporary)?;
        let placed = self.place_over(&temporary, is_dir, dir, name);
        if placed.is_err() {
            self.discard(&temporary);
        }
        placed
    }

    /// Removes a directory whose only entries, if any, are whiteouts.
    pub(crate) fn remove_emptied_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<()> {
        match self.allowed(dir, || rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let temporary = self.temporary();
                self.rename((dir, name), (self.work(), &temporary), RenameFlags::empty())?;
                self.discard(&temporary);
                Ok(())
            }
            result => result,
        }
    }

    /// Gives a fresh inode its owner and mode, asking the kernel only for what differs.
    pub(crate) fn set_owner(&self, fd: impl AsFd, want: Owner, is_link: bool) -> Res<()> {
        let stat = statx_fd(&fd)?;
        if (stat.stx_uid, stat.stx_gid) != (want.uid, want.gid) {
            let (uid, gid) = (Uid::from_raw(want.uid), Gid::from_raw(want.gid));
            rustix::fs::chownat(&fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        } else if u32::from(stat.stx_mode) & 0o7777 == want.mode {
            return Ok(());
        }
        if is_link {
            return Ok(());
        }
        // chmod goes through /proc: descriptors opened with O_PATH have no fchmod.
        rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(want.mode))
    }

    /// An empty directory in the work directory.
    pub(crate) fn temporary_dir(&self) -> Res<(Vec<u8>, OwnedFd)> {
        let name = self.temporary();
        rustix::fs::mkdirat(self.work(), &name, Mode::RWXU)?;
        let fd = self.open_dir(self.work(), &name)?;
        Ok((name, fd))
    }

    /// Removes `name` with all it holds. The tree is at most as deep as the job made it.
    pub(super) fn remove_tree(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<()> {
        match self.remove_at(dir, name) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(Errno::NOENT) => return Ok(()),
            result => return result,
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            result => return result,
        }
        self.open_up(dir, name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        for (child, _) in self.list(&inner)? {
            self.remove_tree(inner.as_fd(), &child)?;
        }
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
    }
}

impl UpperDir {
    /// Removes a file that is in the upper alone.
    pub(crate) fn remove_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Res<()> {
        self.remove_at(dir, name)
    }

    /// Takes back an entry that couldn't be finished.
    pub(crate) fn remove_made(&self, dir: BorrowedFd<'_>, name: &[u8], is_dir: bool) {
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        if let Err(error) = self.allowed(dir, || rustix::fs::unlinkat(dir, name, flags)) {
            tracing::warn!(%error, "cannot take back an entry that could not be made");
        }
    }
}
