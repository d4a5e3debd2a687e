//! Opening an upper: folders, lock, which marks it can carry.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::{MarkSpace, Res, UpperDir, proc_path, statx_fd};

/// Why an upper can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpperError {
    /// A folder of the upper can't be made or opened.
    #[error("cannot use {} as upper", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another mount holds the upper.
    #[error("the upper {} is in use by another mount", path.display())]
    InUse {
        /// The work folder that is locked.
        path: PathBuf,
    },
    /// Files could not be renamed from one to the other.
    #[error("upper {} and work folder {} are on different file systems", upper.display(), work.display())]
    TwoFileSystems {
        /// The upper.
        upper: PathBuf,
        /// The work folder.
        work: PathBuf,
    },
    /// Whiteouts and renamed directories of the upper would not be recognised.
    #[error("the upper {} carries {have} marks", path.display())]
    OtherMarks {
        /// The upper.
        path: PathBuf,
        /// The form it carries.
        have: &'static str,
    },
    /// Renamed and replaced directories could not be marked.
    #[error("the file system of {} keeps no extended attributes for this user", path.display())]
    NoAttributes {
        /// The work folder.
        path: PathBuf,
    },
}

fn folder(path: &Path) -> Result<(OwnedFd, bool), UpperError> {
    let error = |errno: Errno| UpperError::Folder { path: path.into(), source: errno.into() };
    let made = match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(error(errno)),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::open(path, flags, Mode::empty()).map_err(error)?, made))
}

impl UpperDir {
    /// Opens an upper, making its folders where they are missing. Also says whether the upper is new.
    pub(crate) fn open(
        upper: &Path,
        work: &Path,
        marks: Option<MarkSpace>,
        volatile: bool,
    ) -> Result<(UpperDir, bool), UpperError> {
        let (root, new) = folder(upper)?;
        let (outer, _) = folder(work)?;
        let error = |errno: Errno| UpperError::Folder { path: work.into(), source: errno.into() };
        let device =
            |fd: &OwnedFd| statx_fd(fd).map(|s| (s.stx_dev_major, s.stx_dev_minor)).map_err(error);
        if device(&root)? != device(&outer)? {
            return Err(UpperError::TwoFileSystems { upper: upper.into(), work: work.into() });
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&outer, c"mica.lock", flags, Mode::RUSR | Mode::WUSR)
            .map_err(error)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(UpperError::InUse { path: work.into() }),
            result => result.map_err(error)?,
        }
        let inner = work_folder(&outer).map_err(error)?;
        let mut dir = UpperDir {
            root,
            work: Arc::new(inner),
            lock,
            marks: MarkSpace::Trusted,
            grain: None,
            volatile,
            next_temporary: AtomicU64::new(0),
            passes_modes: super::force::passes_modes(),
            forced: AtomicBool::new(false),
            incomplete: AtomicBool::new(false),
            left_incomplete: false,
        };
        dir.grain = grain(&dir.root).map_err(error)?;
        for (name, _) in dir.list(&dir.work).map_err(error)? {
            dir.discard(&name);
        }
        // Marks of the other form would not be seen: an upper keeps the form it began with.
        let (recorded, incomplete) = recorded(&dir.lock).map_err(error)?;
        (dir.incomplete, dir.left_incomplete) = (AtomicBool::new(incomplete), incomplete);
        if let (Some(want), Some(have)) = (marks, recorded)
            && want != have
        {
            return Err(UpperError::OtherMarks { path: upper.into(), have: have.name() });
        }
        dir.marks = match marks.or(recorded) {
            Some(space) if dir.can_mark(space) => space,
            None if dir.can_mark(MarkSpace::Trusted) => MarkSpace::Trusted,
            None if dir.can_mark(MarkSpace::User) => MarkSpace::User,
            _ => return Err(UpperError::NoAttributes { path: work.into() }),
        };
        if recorded.is_none() {
            rustix::io::pwrite(&dir.lock, dir.marks.name().as_bytes(), 0).map_err(error)?;
        }
        Ok((dir, new))
    }

    fn can_mark(&self, space: MarkSpace) -> bool {
        let (set, unset) = match space {
            MarkSpace::Trusted => ("trusted.overlay.opaque", c"trusted.overlay.opaque"),
            MarkSpace::User => ("user.overlay.opaque", c"user.overlay.opaque"),
        };
        // On the work folder, where a mark left by a kill means nothing.
        let path = proc_path(&self.work);
        rustix::fs::setxattr(&path, set, b"y", XattrFlags::empty())
            .and_then(|()| rustix::fs::removexattr(&path, unset))
            .is_ok()
    }
}

impl Drop for UpperDir {
    fn drop(&mut self) {
        // Said, not only closed: a child that another thread is just starting has the descriptor, too.
        if let Err(error) = rustix::fs::flock(&self.lock, FlockOperation::Unlock) {
            tracing::debug!(%error, "an upper stays locked until its lock is closed");
        }
    }
}

/// The form of the marks that an earlier mount wrote, and whether it left files incomplete.
fn recorded(lock: &OwnedFd) -> Res<(Option<MarkSpace>, bool)> {
    let mut text = [0; 64];
    let len = rustix::io::pread(lock, &mut text, 0)?;
    let (text, incomplete) = match text[..len].strip_suffix(INCOMPLETE) {
        Some(text) => (text, true),
        None => (&text[..len], false),
    };
    let space = [MarkSpace::Trusted, MarkSpace::User]
        .into_iter()
        .find(|space| text == space.name().as_bytes());
    Ok((space, incomplete))
}

/// What the lock file says behind the form of the marks.
const INCOMPLETE: &[u8] = b" incomplete";

impl UpperDir {
    /// Before the first file is copied in part.
    pub(crate) fn note_incomplete(&self) -> Res<()> {
        if self.incomplete.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        rustix::io::pwrite(&self.lock, INCOMPLETE, self.marks.name().len() as u64)?;
        if self.volatile { Ok(()) } else { rustix::fs::fdatasync(&self.lock) }
    }

    /// When no incomplete file is left.
    pub(crate) fn note_all_complete(&self) -> Res<()> {
        match self.incomplete.load(Ordering::Relaxed) {
            true => rustix::fs::ftruncate(&self.lock, self.marks.name().len() as u64),
            false => Ok(()),
        }
    }

    /// Whether an earlier mount left incomplete files.
    pub(crate) fn was_left_incomplete(&self) -> bool {
        self.left_incomplete
    }
}

/// The block size of a file system whose `SEEK_HOLE` tells of every block exactly whether it was written.
fn grain(root: &OwnedFd) -> Res<Option<u64>> {
    // EXT4, XFS and BTRFS of <linux/magic.h>. Others round up, or take zeros that were written for holes.
    const EXACT: [rustix::fs::FsWord; 3] = [0xef53, 0x5846_5342, 0x9123_683e];
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let stat = rustix::fs::fstatfs(rustix::fs::openat(root, c".", flags, Mode::empty())?)?;
    let block = u64::try_from(stat.f_bsize).unwrap_or(0).max(4096);
    Ok(EXACT.contains(&stat.f_type).then_some(block))
}

fn work_folder(outer: &OwnedFd) -> Res<OwnedFd> {
    match rustix::fs::mkdirat(outer, c"mica", Mode::RWXU) {
        Err(Errno::EXIST) => {}
        result => result?,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(outer, c"mica", flags, Mode::empty())?;
    rustix::fs::accessat(&fd, c".", rustix::fs::Access::WRITE_OK, AtFlags::EACCESS)?;
    Ok(fd)
}
