//! Files of the input: opened below a directory that is held open, and checked after reading.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mica_squashfs::write::{Content, ContentDigest, OpenContent};
use rustix::fs::{Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::joined;
use crate::scan_cache::IDENTITY;

/// A directory of the input: what is read is found below it and nowhere else, whatever is renamed in the meantime.
#[derive(Debug)]
pub(super) struct Root {
    dir: Dir,
    /// When the scan began.
    began: Duration,
}

#[derive(Debug)]
enum Dir {
    /// Held open.
    Held(OwnedFd),
    /// Opened each time, and then still the one that it was: a module may have more outputs than there are descriptors.
    Named { path: PathBuf, dev: u64, ino: u64 },
}

/// A directory that is open for as long as it is needed.
pub(super) enum Opened<'a> {
    Held(BorrowedFd<'a>),
    New(OwnedFd),
}

impl AsFd for Opened<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(fd) => *fd,
            Self::New(fd) => fd.as_fd(),
        }
    }
}

/// A change within the same tick of a file system's clock leaves no trace. Ticks of up to 10 ms are
/// common, and FAT's are 2 seconds; it and its like have whole seconds only.
const FINE_TICK: Duration = Duration::from_millis(100);
const COARSE_TICK: Duration = Duration::from_secs(2);

/// One system call takes a path of less than 4096 bytes.
const LONGEST: usize = 4000;

impl Root {
    pub(super) fn held(fd: OwnedFd) -> Self {
        Self { dir: Dir::Held(fd), began: now() }
    }

    /// The directory that is open as `fd` and is at `path`.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // types differ by architecture
    pub(super) fn named(fd: &OwnedFd, path: &Path) -> rustix::io::Result<Self> {
        let (stat, path) = (rustix::fs::fstat(fd)?, path.to_owned());
        let dir = Dir::Named { path, dev: stat.st_dev.into(), ino: stat.st_ino.into() };
        Ok(Self { dir, began: now() })
    }

    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // types differ by architecture
    fn dir(&self) -> rustix::io::Result<Opened<'_>> {
        match &self.dir {
            Dir::Held(fd) => Ok(Opened::Held(fd.as_fd())),
            Dir::Named { path, dev, ino } => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd = rustix::fs::open(path, flags, Mode::empty())?;
                let stat = rustix::fs::fstat(&fd)?;
                let found: (u64, u64) = (stat.st_dev.into(), stat.st_ino.into());
                if found == (*dev, *ino) { Ok(Opened::New(fd)) } else { Err(Errno::STALE) }
            }
        }
    }

    /// Whether something so young was found that it may change and look the same.
    pub(super) fn is_racy(&self, identity: &Identity) -> bool {
        let tick = if identity.ctime.1 == 0 { COARSE_TICK } else { FINE_TICK };
        let (seconds, nanos) = identity.ctime.max(identity.mtime);
        let Ok(seconds) = u64::try_from(seconds) else { return false };
        Duration::from_secs(seconds) + Duration::from_nanos(nanos) + tick >= self.began
    }

    /// Opens `path` (components split by `/`, empty for the root itself), following no symlink.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (mut at, mut rest) = (self.dir()?, path);
        while rest.len() > LONGEST {
            let cut = rest[..LONGEST].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
            let fd = open_at(
                at.as_fd(),
                &rest[..cut],
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            )?;
            at = Opened::New(fd);
            rest = &rest[cut + 1..];
        }
        let rest = if rest.is_empty() { b"." } else { rest };
        open_at(at.as_fd(), rest, flags)
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn open_at(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
        // Before Linux 5.6, or forbidden by an old seccomp filter.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(dir, path, flags, Mode::empty()),
        other => other,
    }
}

/// What tells that a file is still the one that was scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) mtime: (i64, u64),
    pub(super) ctime: (i64, u64),
}

impl Identity {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // types differ by architecture
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev.into(),
            ino: stat.st_ino.into(),
            size: stat.st_size as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; IDENTITY] {
        let Self { dev, ino, size, mtime, ctime } = self;
        let numbers = [dev, ino, size, mtime.0 as u64, mtime.1, ctime.0 as u64, ctime.1];
        let mut bytes = [0; IDENTITY];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// A regular file found by the scan.
#[derive(Debug)]
pub(super) struct ScannedFile {
    pub(super) root: Arc<Root>,
    /// Its directory below the root.
    pub(super) dir: Arc<[u8]>,
    pub(super) name: Box<[u8]>,
    pub(super) identity: Identity,
    /// It takes less room than its size on disk, so looking for holes pays.
    pub(super) sparse: bool,
    /// What it is, if that is known from an earlier time or has been found out.
    pub(super) digest: OnceLock<ContentDigest>,
}

impl Content for ScannedFile {
    fn size(&self) -> u64 {
        self.identity.size
    }

    fn identity(&self) -> Option<Vec<u8>> {
        (!self.root.is_racy(&self.identity)).then(|| self.identity.to_bytes().to_vec())
    }

    fn known_digest(&self) -> Option<&ContentDigest> {
        self.digest.get()
    }

    fn remember_digest(&self, digest: ContentDigest) {
        // Whoever comes first; the digest is the same.
        let _ = self.digest.set(digest);
    }

    fn open(&self) -> io::Result<Box<dyn OpenContent + '_>> {
        // NONBLOCK: if it became a fifo, opening must not wait for a writer.
        let path = joined(&self.dir, &self.name);
        let fd = self.root.open(&path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        Ok(Box::new(OpenFile { file: fd.into(), scanned: self }))
    }
}

struct OpenFile<'a> {
    file: std::fs::File,
    scanned: &'a ScannedFile,
}

impl OpenContent for OpenFile<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        if !self.scanned.sparse {
            return Ok(Some(from));
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(from)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(from)),
            Err(error) => Err(error.into()),
        }
    }

    fn is_unchanged(&self) -> io::Result<bool> {
        Ok(Identity::of(&rustix::fs::fstat(&self.file)?) == self.scanned.identity)
    }
}
