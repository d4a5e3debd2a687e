//! Files of the input: opened below a directory that is held open, and checked after reading.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mica_squashfs::write::{Content, OpenContent};
use rustix::fs::{Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

/// A directory of the input, held open: what is read is found below it and nowhere else,
/// whatever is renamed in the meantime.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) fd: OwnedFd,
}

/// The coarsest time stamps of a file system (FAT's) are this far apart.
const RACY_SECONDS: i64 = 2;

/// One system call takes a path of less than 4096 bytes.
const LONGEST: usize = 4000;

impl Root {
    /// Opens `path` (components split by `/`, empty for the root itself), following no symlink.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (mut at, mut rest): (Option<OwnedFd>, &[u8]) = (None, path);
        while rest.len() > LONGEST {
            let cut = rest[..LONGEST].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
            let fd = open_at(
                at.as_ref().map_or(self.fd.as_fd(), |fd| fd.as_fd()),
                &rest[..cut],
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            )?;
            at = Some(fd);
            rest = &rest[cut + 1..];
        }
        let rest = if rest.is_empty() { b"." } else { rest };
        open_at(at.as_ref().map_or(self.fd.as_fd(), |fd| fd.as_fd()), rest, flags)
    }
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
pub(super) struct Identity {
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) mtime: (i64, u64),
    pub(super) ctime: (i64, u64),
}

impl Identity {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // types differ by architecture
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev.into(),
            ino: stat.st_ino.into(),
            size: stat.st_size as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }
}

/// A regular file found by the scan.
#[derive(Debug)]
pub(super) struct ScannedFile {
    pub(super) root: Arc<Root>,
    /// Below the root.
    pub(super) path: Box<[u8]>,
    pub(super) identity: Identity,
    /// It takes less room than its size on disk, so looking for holes pays.
    pub(super) sparse: bool,
    /// When the scan began.
    pub(super) scanned: SystemTime,
}

impl Content for ScannedFile {
    fn size(&self) -> u64 {
        self.identity.size
    }

    fn identity(&self) -> Option<Vec<u8>> {
        let Identity { dev, ino, size, mtime, ctime } = self.identity;
        // A change within the same tick of the clock leaves no trace: such a file has no identity
        // to rely on until some time has passed.
        let age = self.scanned.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs() as i64);
        if ctime.0.max(mtime.0) + RACY_SECONDS >= age {
            return None;
        }
        let numbers = [dev, ino, size, mtime.0 as u64, mtime.1, ctime.0 as u64, ctime.1]
            .map(u64::to_le_bytes);
        Some(numbers.concat())
    }

    fn open(&self) -> io::Result<Box<dyn OpenContent + '_>> {
        // NONBLOCK: if it became a fifo, opening must not wait for a writer.
        let fd = self.root.open(&self.path, OFlags::RDONLY | OFlags::NONBLOCK)?;
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
