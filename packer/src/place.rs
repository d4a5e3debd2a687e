//! A file that appears under its name only when it is complete.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// What temporary names end in.
const END: &str = ".tmp";

/// A file being written. Dropped before it has its name, it leaves nothing behind; killed, at most
/// a file with a temporary name, which the next one for the same target removes, and nothing on
/// file systems that know `O_TMPFILE`.
pub(crate) struct Unfinished {
    /// Locked for as long as it is open, so that nobody takes it for garbage.
    file: File,
    target: PathBuf,
    temporary: PathBuf,
    /// The file has its temporary name.
    named: bool,
}

impl Unfinished {
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let (mut start, dir) = (OsString::from("."), parent(target));
        start.push(name);
        start.push(".");
        sweep(dir, start.as_bytes());
        start.push(format!("{}.{:?}{END}", std::process::id(), std::thread::current().id()));
        let temporary = dir.join(start);
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        let (fd, named) = match rustix::fs::open(dir, flags | OFlags::TMPFILE, mode) {
            Ok(fd) => (fd, false),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let flags = flags | OFlags::CREATE | OFlags::TRUNC;
                (rustix::fs::open(&temporary, flags, mode)?, true)
            }
            Err(error) => return Err(error.into()),
        };
        // Where files cannot be locked, nobody can sweep either.
        let _ = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive);
        Ok(Self { file: fd.into(), target: target.to_owned(), temporary, named })
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Writes go through this: it has the kernel write to disk as it goes, so that the final sync
    /// has little left to wait for.
    pub(crate) fn writer(&mut self) -> Steady<'_> {
        Steady { file: &mut self.file, position: 0, started: 0 }
    }

    /// Makes the content durable and gives it its name, replacing what had it.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        let parent = parent(&self.target).to_owned();
        self.name()?;
        File::open(parent)?.sync_all()
    }

    /// Gives the file its name, replacing what had it, whenever the kernel writes its content.
    pub(crate) fn name(mut self) -> io::Result<()> {
        if !self.named {
            // A link cannot replace a file, a rename can.
            let _ = rustix::fs::unlink(&self.temporary);
            let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::linkat(CWD, open, CWD, &self.temporary, AtFlags::SYMLINK_FOLLOW)?;
            self.named = true;
        }
        rustix::fs::rename(&self.temporary, &self.target)?;
        self.named = false;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.named {
            let _ = rustix::fs::unlink(&self.temporary);
        }
    }
}

/// A file whose dirty pages start their way to the disk every few MiB.
pub(crate) struct Steady<'f> {
    file: &'f mut File,
    position: u64,
    /// Up to here the kernel was told.
    started: u64,
}

impl Write for Steady<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const STEP: u64 = 8 << 20;
        let written = self.file.write(bytes)?;
        self.position += written as u64;
        if self.position >= self.started + STEP {
            let length = std::num::NonZeroU64::new(self.position - self.started);
            // Pages that are dirty stay in the cache; it only starts to write them. No more than
            // a hint, so no error matters.
            let _ = rustix::fs::fadvise(&*self.file, self.started, length, Advice::DontNeed);
            self.started = self.position;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Steady<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = self.file.seek(to)?;
        Ok(self.position)
    }
}

/// Removes what killed processes left in `dir` under names with this start. What cannot be removed
/// stays: it is in nobody's way.
fn sweep(dir: &Path, start: &[u8]) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_bytes();
        if name.starts_with(start)
            && name.ends_with(END.as_bytes())
            && let Ok(file) = File::open(entry.path())
            && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = rustix::fs::unlink(entry.path());
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
