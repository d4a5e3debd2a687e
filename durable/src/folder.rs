//! An open directory, and what may be done with its own entries.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::{FileError, Named, found};

/// The longest name of an entry, in bytes (NAME_MAX).
pub const MAX_NAME: usize = 255;

/// An open directory. Its operations take the name of one entry, never a path; none of them follows a symbolic link.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
}

impl Folder {
    /// Opens the folder at `path`. Links on the way are followed: whoever chose the path chose them.
    ///
    /// # Errors
    /// There is none, or it can't be opened.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).named("open", path)?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the folder at `path`; makes it, and the folders above it, with exactly this mode where they are not there.
    ///
    /// # Errors
    /// It can't be made or opened.
    pub fn create(path: &Path, mode: u32) -> Result<Self, FileError> {
        match Self::open(path) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        let above = Self::create(above.unwrap_or(Path::new(".")), mode)?;
        match path.file_name() {
            Some(name) => above.create_folder(name, mode),
            None => Self::open(path),
        }
    }

    /// Where it is, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata of the folder itself.
    ///
    /// # Errors
    /// fstat(2) failed.
    pub fn metadata(&self) -> Result<Stat, FileError> {
        rustix::fs::fstat(&self.fd).named("stat", &self.path)
    }

    /// Fails unless the folder is the caller's (the effective user's) or root's, and nobody else can write it.
    ///
    /// # Errors
    /// `PermissionDenied`, with the owner or mode that is wrong.
    pub fn refuse_foreign(&self) -> Result<(), FileError> {
        let stat = self.metadata()?;
        let reason = crate::trusted::distrust(&stat, rustix::process::geteuid().as_raw(), false);
        match reason {
            None => Ok(()),
            Some(reason) => {
                let source = io::Error::new(io::ErrorKind::PermissionDenied, reason);
                Err(FileError { verb: "use", path: self.path.clone(), source })
            }
        }
    }

    /// The folder of this name; `None` where there is none.
    ///
    /// # Errors
    /// What has the name is a link or no folder, or can't be opened.
    pub fn folder(&self, name: impl AsRef<OsStr>) -> Result<Option<Self>, FileError> {
        let path = self.entry(name.as_ref())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = rustix::fs::openat(&self.fd, name.as_ref(), flags, Mode::empty());
        Ok(found(open).named("open", &path)?.map(|fd| Self { fd, path }))
    }

    /// The folder of this name, made with exactly this mode where there is none.
    ///
    /// # Errors
    /// What has the name is a link or no folder; it can't be made.
    pub fn create_folder(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<Self, FileError> {
        let (name, path) = (name.as_ref(), self.entry(name.as_ref())?);
        let made = match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error).named("create", &path),
        };
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let folder = self.folder(name)?.ok_or_else(gone).named("open", &path)?;
        if made {
            // mkdir(2) heeds the umask.
            rustix::fs::fchmod(&folder.fd, Mode::from_raw_mode(mode))
                .named("set the mode of", &path)?;
        }
        Ok(folder)
    }

    /// Opens a regular file for reading; `None` where there is none.
    ///
    /// # Errors
    /// What has the name is a link, a FIFO, a device or a folder; it can't be opened.
    pub fn open_file(&self, name: impl AsRef<OsStr>) -> Result<Option<File>, FileError> {
        self.open_regular(name.as_ref(), OFlags::RDONLY, 0)
    }

    /// Opens a regular file for appending, made with this mode where there is none.
    ///
    /// # Errors
    /// As of [`Folder::open_file`].
    pub fn append_file(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<File, FileError> {
        let path = self.entry(name.as_ref())?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        self.open_regular(name.as_ref(), flags, mode)?.ok_or_else(gone).named("open", &path)
    }

    fn open_regular(
        &self,
        name: &OsStr,
        flags: OFlags,
        mode: u32,
    ) -> Result<Option<File>, FileError> {
        regular(self.fd.as_fd(), Path::new(name), self.entry(name)?, flags, mode)
    }

    /// Makes a file that is not there, for reading and writing, with at most this mode; `None` where there is something.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create_file(
        &self,
        name: impl AsRef<OsStr>,
        mode: u32,
    ) -> Result<Option<File>, FileError> {
        let path = self.entry(name.as_ref())?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name.as_ref(), flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::EXIST) => Ok(None),
            Err(error) => Err(error).named("create", &path),
        }
    }

    /// Moves an entry to a place in another folder of the same file system, over what may be there.
    ///
    /// # Errors
    /// renameat(2) failed.
    pub fn rename(
        &self,
        name: impl AsRef<OsStr>,
        to: &Self,
        new: impl AsRef<OsStr>,
    ) -> Result<(), FileError> {
        let (_, path) = (self.entry(name.as_ref())?, to.entry(new.as_ref())?);
        rustix::fs::renameat(&self.fd, name.as_ref(), &to.fd, new.as_ref())
            .named("rename to", &path)
    }

    /// Sets the mode of the folder itself.
    ///
    /// # Errors
    /// It is not the caller's.
    pub fn set_mode(&self, mode: u32) -> Result<(), FileError> {
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode)).named("set the mode of", &self.path)
    }

    /// The whole of a regular file; `None` where there is none. More than `limit` bytes is an error, not memory.
    ///
    /// # Errors
    /// As of [`Folder::open_file`]; `FileTooLarge`.
    pub fn read(&self, name: impl AsRef<OsStr>, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.entry(name.as_ref())?;
        let Some(file) = self.open_file(name)? else { return Ok(None) };
        read_bounded(file, &path, limit).map(Some)
    }

    /// Replaces the file `name`, or makes it, with exactly this mode. Readers see the old content or the new one, also
    /// after a power failure; when this returns, it is the new one.
    ///
    /// # Errors
    /// It can't be written; then the old content stays.
    pub fn replace(
        &self,
        name: impl AsRef<OsStr>,
        bytes: &[u8],
        mode: u32,
    ) -> Result<(), FileError> {
        self.replace_with(name.as_ref(), bytes, mode, true)?;
        self.sync()
    }

    /// The same for what is worth nothing after a power failure: then it may be empty or gone.
    ///
    /// # Errors
    /// As of [`Folder::replace`].
    pub fn replace_unsynced(
        &self,
        name: impl AsRef<OsStr>,
        bytes: &[u8],
        mode: u32,
    ) -> Result<(), FileError> {
        self.replace_with(name.as_ref(), bytes, mode, false)
    }

    fn replace_with(
        &self,
        name: &OsStr,
        bytes: &[u8],
        mode: u32,
        sync: bool,
    ) -> Result<(), FileError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let path = self.entry(name)?;
        let (process, serial) = (std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{process}-{serial}.tmp"));
        self.write_new(&temporary, bytes, mode, sync)
            .and_then(|()| {
                rustix::fs::renameat(&self.fd, &temporary, &self.fd, name).named("rename to", &path)
            })
            .inspect_err(|_| {
                rustix::fs::unlinkat(&self.fd, &temporary, AtFlags::empty()).ok();
            })
    }

    fn write_new(
        &self,
        name: &OsStr,
        bytes: &[u8],
        mode: u32,
        sync: bool,
    ) -> Result<(), FileError> {
        let path = self.entry(name)?;
        // Of a dead process that had our number.
        found(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())).named("remove", &path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(fd.named("create", &path)?);
        file.write_all(bytes).named("write", &path)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).named("set the mode of", &path)?;
        if sync { file.sync_all().named("sync", &path) } else { Ok(()) }
    }

    /// Waits until the names in the folder are on the disk.
    ///
    /// # Errors
    /// fsync(2) failed.
    pub fn sync(&self) -> Result<(), FileError> {
        rustix::fs::fsync(&self.fd).named("sync", &self.path)
    }

    /// Removes a file or link of this name; whether there was one.
    ///
    /// # Errors
    /// It is a folder, or can't be removed.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<bool, FileError> {
        let path = self.entry(name.as_ref())?;
        let removed = rustix::fs::unlinkat(&self.fd, name.as_ref(), AtFlags::empty());
        Ok(found(removed).named("remove", &path)?.is_some())
    }

    /// The metadata of an entry, of a link itself; `None` where there is none.
    ///
    /// # Errors
    /// fstatat(2) failed.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> Result<Option<Stat>, FileError> {
        let path = self.entry(name.as_ref())?;
        found(rustix::fs::statat(&self.fd, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW))
            .named("stat", &path)
    }

    /// The names of all entries but `.` and `..`, in order.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn names(&self) -> Result<Vec<OsString>, FileError> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).named("list", &self.path)? {
            let entry = entry.named("list", &self.path)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The entry's path, for messages. What is no name of an entry is refused.
    pub(crate) fn entry(&self, name: &OsStr) -> Result<PathBuf, FileError> {
        let bytes = name.as_bytes();
        let wrong = bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.len() > MAX_NAME;
        if wrong || bytes.iter().any(|byte| *byte == b'/' || *byte == 0) {
            let source =
                io::Error::new(io::ErrorKind::InvalidFilename, "it is not the name of an entry");
            return Err(FileError { verb: "use", path: self.path.join(name), source });
        }
        Ok(self.path.join(name))
    }
}

/// Opens the regular file at `path` for reading, in a folder that others may write; `None` where there is none.
///
/// Links on the way are followed, the path itself is none.
///
/// # Errors
/// It is a link, a FIFO, a device or a folder; it can't be opened.
pub fn open_regular(path: &Path) -> Result<Option<File>, FileError> {
    regular(here(), path, path.to_owned(), OFlags::RDONLY, 0)
}

/// The rest of an open file, whose path is for messages. More than `limit` bytes is an error, not memory.
///
/// # Errors
/// It can't be read; `FileTooLarge`.
pub fn read_bounded(file: File, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).named("read", path)?;
    if bytes.len() as u64 > limit {
        let reason = format!("it has more than {limit} bytes");
        let source = io::Error::new(io::ErrorKind::FileTooLarge, reason);
        return Err(FileError { verb: "read", path: path.to_owned(), source });
    }
    Ok(bytes)
}

/// Opens a regular file, by no link.
pub(crate) fn regular(
    at: BorrowedFd<'_>,
    name: &Path,
    path: PathBuf,
    flags: OFlags,
    mode: u32,
) -> Result<Option<File>, FileError> {
    // Without NONBLOCK a FIFO that somebody put there would hold us for ever.
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(at, name, flags, Mode::from_raw_mode(mode));
    let Some(fd) = found(open).named("open", &path)? else { return Ok(None) };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd).named("stat", &path)?.st_mode);
    if kind != FileType::RegularFile {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
        return Err(FileError { verb: "open", path, source });
    }
    Ok(Some(fd.into()))
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where relative paths start, unless a folder is named.
pub(crate) fn here() -> BorrowedFd<'static> {
    CWD
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn scratch() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let (dir, folder) = scratch();
        for content in [&b"one"[..], b"two"] {
            folder.replace("file", content, 0o640).unwrap();
            assert_eq!(folder.read("file", 3).unwrap().unwrap(), content);
        }
        assert_eq!(std::fs::metadata(dir.path().join("file")).unwrap().mode() & 0o777, 0o640);
        assert_eq!(folder.names().unwrap(), ["file"]);
        assert_eq!(folder.read("file", 2).unwrap_err().source.kind(), io::ErrorKind::FileTooLarge);
        assert!(folder.read("none", 2).unwrap().is_none());
        std::fs::create_dir(dir.path().join("occupied")).unwrap();
        folder.replace("occupied", b"x", 0o600).unwrap_err();
        assert_eq!(folder.names().unwrap(), ["file", "occupied"]);
    }

    #[test]
    fn a_link_is_not_followed_by_any_operation() {
        let (dir, folder) = scratch();
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("target");
        std::fs::write(&target, "secret").unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        symlink(outside.path(), dir.path().join("dirlink")).unwrap();
        folder.open_file("link").unwrap_err();
        folder.append_file("link", 0o600).unwrap_err();
        folder.folder("dirlink").unwrap_err();
        folder.create_folder("dirlink", 0o700).unwrap_err();
        folder.replace("link", b"mine", 0o600).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"secret");
        assert_eq!(folder.read("link", 10).unwrap().unwrap(), b"mine");
    }

    #[test]
    fn a_fifo_holds_nobody() {
        let (_dir, folder) = scratch();
        rustix::fs::mknodat(&folder, "fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
        folder.open_file("fifo").unwrap_err();
        folder.append_file("fifo", 0o600).unwrap_err();
    }

    #[test]
    fn only_entries_have_names() {
        let (_dir, folder) = scratch();
        for name in ["", ".", "..", "a/b", "/etc", "a\0b", &"n".repeat(256)] {
            folder.read(name, 1).unwrap_err();
            folder.replace(name, b"", 0o600).unwrap_err();
        }
    }

    #[test]
    fn folders_above_are_made_with_the_same_mode() {
        let (dir, _folder) = scratch();
        Folder::create(&dir.path().join("a/b/c"), 0o700).unwrap();
        for path in ["a", "a/b", "a/b/c"] {
            let mode = std::fs::metadata(dir.path().join(path)).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o700, "{path}");
        }
        Folder::create(&dir.path().join("a/b/c"), 0o755).unwrap();
    }
}
