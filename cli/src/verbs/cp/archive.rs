//! A tree of files into a tar archive, whatever happens to the tree meanwhile.
//!
//! Folders are gone through by descriptors, two at a time and one for each folder on the way whose listing is not at its end,
//! and never by long paths: a job chooses how deep its folders are. What vanishes meanwhile is left out; a file that grows
//! or shrinks has the length that it had when its turn came.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use tar::{EntryType, Header};

use crate::output::note;

/// Of files that claim to be empty, as those of `/proc`, so much is read.
const LARGEST_UNKNOWN: u64 = 16 << 20;

/// Writes what is at `path` as an archive whose first entry is called like it.
pub(super) fn read(path: &Path, follow: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let failed = || format!("cannot read {}", path.display());
    let real = match follow {
        true => path.canonicalize().with_context(failed)?,
        false => path.to_owned(),
    };
    let stat = statat(CWD, &real, AtFlags::SYMLINK_NOFOLLOW).with_context(failed)?;
    let name = match path.file_name() {
        Some(name) if !means_content(path) => PathBuf::from(name),
        _ => PathBuf::from("."),
    };
    let mut reader = Reader { tar: tar::Builder::new(out), links: HashMap::new(), failures: 0 };
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Socket {
        bail!("{} is a socket, which has no content", path.display());
    }
    if kind == FileType::Directory {
        let folder = openat(CWD, &real, FOLDER, Mode::empty()).with_context(failed)?;
        reader.entry(&name, &folder, OsStr::new("."), &stat)?;
        reader.folder(name, folder)?;
    } else {
        let above = match real.parent().filter(|above| !above.as_os_str().is_empty()) {
            Some(above) => above,
            None => Path::new("."),
        };
        let folder = openat(CWD, above, FOLDER, Mode::empty()).with_context(failed)?;
        let last = real.file_name().with_context(failed)?;
        reader.entry(&name, &folder, last, &stat)?;
    }
    reader.tar.into_inner().and_then(Write::flush).with_context(failed)?;
    match reader.failures {
        0 => Ok(()),
        count => bail!("{count} of the files could not be read"),
    }
}

/// Whether the path asks for what a folder holds: `FOLDER/.`.
pub(super) fn means_content(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/.") || path == Path::new(".")
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

struct Reader<W: Write> {
    tar: tar::Builder<W>,
    /// The first name of each file that has several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    failures: u64,
}

/// A folder on the way down.
struct Level {
    /// What is still to be looked at in it, the next one last.
    left: Vec<OsString>,
    identity: (u64, u64),
}

impl<W: Write> Reader<W> {
    /// All that is in a folder. The way up is `..`, and must lead where the way down came from.
    fn folder(&mut self, mut path: PathBuf, top: OwnedFd) -> anyhow::Result<()> {
        let mut at = top;
        let mut levels = vec![level(&path, &at)?];
        while let Some(current) = levels.last_mut() {
            let Some(entry) = current.left.pop() else {
                levels.pop();
                let Some(above) = levels.last() else { return Ok(()) };
                at = openat(&at, "..", FOLDER, Mode::empty())?;
                if identity(&at)? != above.identity {
                    bail!("{} was moved while it was read", path.display());
                }
                path.pop();
                continue;
            };
            path.push(&entry);
            match self.look(&path, &at, &entry)? {
                Some(below) => {
                    levels.push(level(&path, &below)?);
                    at = below;
                }
                None => drop(path.pop()),
            }
        }
        Ok(())
    }

    /// Copies one entry of a folder; a folder is returned, to be gone through.
    fn look(
        &mut self,
        path: &Path,
        at: &OwnedFd,
        entry: &OsStr,
    ) -> anyhow::Result<Option<OwnedFd>> {
        let stat = match statat(at, entry, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return self.missed(path, error.into()).map(|()| None),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            // It is a name for a process, and no file.
            FileType::Socket => Ok(None),
            FileType::Directory => {
                match openat(at, entry, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(below) => {
                        self.entry(path, &below, OsStr::new("."), &stat)?;
                        Ok(Some(below))
                    }
                    Err(error) => self.missed(path, error.into()).map(|()| None),
                }
            }
            _ => self.entry(path, at, entry, &stat).map(|()| None),
        }
    }

    /// Says that something is missing in the archive, unless it has vanished. The rest is copied, as `cp` does.
    #[allow(clippy::unnecessary_wraps)] // where it is called, the alternative can fail
    fn missed(&mut self, path: &Path, error: io::Error) -> anyhow::Result<()> {
        if error.kind() != io::ErrorKind::NotFound {
            self.failures += 1;
            note(format_args!("error: cannot read {}: {error}", path.display()));
        }
        Ok(())
    }

    /// One entry of a folder.
    fn entry(
        &mut self,
        path: &Path,
        folder: &OwnedFd,
        name: &OsStr,
        stat: &Stat,
    ) -> anyhow::Result<()> {
        let failed = || format!("cannot write the archive at {}", path.display());
        let mut header = header(stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.tar.append_link(&mut header, path, first).with_context(failed);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        match kind {
            FileType::RegularFile => return self.file(header, path, folder, name),
            FileType::Symlink => {
                let target = match readlinkat(folder, name, Vec::new()) {
                    Ok(target) => target,
                    Err(error) => return self.missed(path, error.into()),
                };
                header.set_entry_type(EntryType::Symlink);
                let target = OsStr::from_bytes(target.to_bytes());
                return self.tar.append_link(&mut header, path, target).with_context(failed);
            }
            FileType::Directory => header.set_entry_type(EntryType::Directory),
            FileType::Fifo => header.set_entry_type(EntryType::Fifo),
            FileType::BlockDevice | FileType::CharacterDevice => {
                header.set_entry_type(match kind {
                    FileType::BlockDevice => EntryType::Block,
                    _ => EntryType::Char,
                });
                header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
            }
            _ => return Ok(()),
        }
        self.tar.append_data(&mut header, path, io::empty()).with_context(failed)
    }

    /// A file, with the length that it has now.
    fn file(
        &mut self,
        mut header: Header,
        path: &Path,
        folder: &OwnedFd,
        name: &OsStr,
    ) -> anyhow::Result<()> {
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = openat(folder, name, flags, Mode::empty()).map_err(io::Error::from);
        let file = opened.and_then(|fd| {
            let file = File::from(fd);
            match file.metadata()? {
                meta if meta.is_file() => Ok((file, meta.len())),
                _ => Err(io::Error::other("it is another kind of file now")),
            }
        });
        let (mut file, size) = match file {
            Ok(file) => file,
            Err(error) => return self.missed(path, error),
        };
        let failed = || format!("cannot write the archive at {}", path.display());
        header.set_entry_type(EntryType::Regular);
        if size == 0 {
            let mut bytes = Vec::new();
            if let Err(error) = (&mut file).take(LARGEST_UNKNOWN).read_to_end(&mut bytes) {
                return self.missed(path, error);
            }
            header.set_size(bytes.len() as u64);
            return self.tar.append_data(&mut header, path, &bytes[..]).with_context(failed);
        }
        header.set_size(size);
        let mut exact = Exact { file, left: size, error: None };
        self.tar.append_data(&mut header, path, &mut exact).with_context(failed)?;
        match exact.error {
            Some(error) => self.missed(path, error),
            None => Ok(()),
        }
    }
}

/// What a file holds up to a length; zeros where it holds less or can't be read.
struct Exact {
    file: File,
    left: u64,
    error: Option<io::Error>,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        let read = match self.error {
            None => loop {
                match self.file.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.error = Some(error);
                        break 0;
                    }
                    Ok(count) => break count,
                }
            },
            Some(_) => 0,
        };
        if read == 0 {
            buffer.fill(0);
        }
        let read = if read == 0 { most } else { read };
        self.left -= read as u64;
        Ok(read)
    }
}

fn level(path: &Path, folder: &OwnedFd) -> anyhow::Result<Level> {
    let failed = || format!("cannot list {}", path.display());
    let mut left = Vec::new();
    for entry in Dir::read_from(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let entry = OsStr::from_bytes(entry.file_name().to_bytes());
        if entry != "." && entry != ".." {
            left.push(entry.to_owned());
        }
    }
    left.sort_unstable_by(|a, b| b.cmp(a));
    Ok(Level { left, identity: identity(folder)? })
}

fn identity(folder: impl AsFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}
