//! A file that appears under its name only when it is complete.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// A file being written. Dropped before [`Unfinished::finish`], it leaves nothing behind; killed,
/// at most a file with a temporary name, and nothing on file systems that know `O_TMPFILE`.
pub(crate) struct Unfinished {
    file: File,
    target: PathBuf,
    temporary: PathBuf,
    /// The file has its temporary name.
    named: bool,
}

impl Unfinished {
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.{:?}.tmp", std::process::id(), std::thread::current().id()));
        let dir = parent(target);
        let temporary = dir.join(temporary);
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
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if !self.named {
            // A link cannot replace a file, a rename can.
            let _ = rustix::fs::unlink(&self.temporary);
            let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::linkat(CWD, open, CWD, &self.temporary, AtFlags::SYMLINK_FOLLOW)?;
            self.named = true;
        }
        rustix::fs::rename(&self.temporary, &self.target)?;
        self.named = false;
        File::open(parent(&self.target))?.sync_all()
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

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
