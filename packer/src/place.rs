//! A file that appears under its name only when it is complete.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
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

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
