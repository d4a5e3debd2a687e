//! Unpacking an image into a directory.
//!
//! One thread walks the image and makes directories, symlinks, devices, fifos and sockets; others create and fill
//! regular files, in batches that follow the image's order so that files of one fragment block meet in one thread, and
//! large files in pieces. What has to wait until everything exists comes last: hard links, then the attributes of
//! directories, innermost first.
//!
//! **Nothing escapes.** The target is a new or empty directory, every name is a single component (the reader refuses
//! others), everything is created relative to a directory's descriptor and must not exist before, and a path is only ever
//! resolved again below the target's descriptor without following symlinks (`place`).
//!
//! **Nothing is lost in silence.** As root, owners, modes, times, xattrs, devices, hard links and holes are restored. What
//! the system refuses, to an ordinary user above all, is in [`Unpacked`]: owners as a number, the rest by path.

mod file;
mod place;

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use self::file::{Batch, Job};
use self::place::{Owner, Target};
use crate::jobs;
use crate::read::{Image, InodeKind, InodeRef, ReadError, WalkEntry, WalkError, walk};

/// How to unpack.
#[derive(Debug, Clone, Default)]
pub struct UnpackOptions {
    /// Threads that write files; `None`: one per processor.
    pub threads: Option<NonZero<usize>>,
    /// Make what whoever has the image could make as well: everything belongs to the caller, without set-id bits, devices,
    /// and attributes but `user.…`. What an image says of these gives rights to whoever reaches the target.
    pub plain: bool,
}

/// What was unpacked, and what could not be restored.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Regular files written, hard links not counted.
    pub files: u64,
    /// Directories made, the target included.
    pub directories: u64,
    /// Bytes written into files.
    pub bytes: u64,
    /// Files whose owner or group could not be set, and which belong to the caller instead.
    pub owners_lost: u64,
    /// What else could not be restored, in the order of paths.
    pub lost: Vec<Lost>,
}

/// Something of one file that could not be restored.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lost {
    /// Path in the image.
    pub path: Vec<u8>,
    /// What.
    pub what: LostWhat,
}

/// What could not be restored.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LostWhat {
    /// The device node itself: only root makes them, when told to.
    Device,
    /// The setuid and setgid bits, since the owner they are about could not be set.
    SetIdBits,
    /// An extended attribute, by name.
    Xattr(Vec<u8>),
}

impl std::fmt::Display for LostWhat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device => f.write_str("device node"),
            Self::SetIdBits => f.write_str("setuid and setgid bits"),
            Self::Xattr(name) => write!(f, "xattr {}", String::from_utf8_lossy(name)),
        }
    }
}

/// Why an image could not be unpacked. What was unpacked until then is left in place.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The target cannot be made or opened.
    #[error("cannot unpack into {}", .path.display())]
    Target {
        /// The target.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The target holds something already.
    #[error("{} is not empty", .path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// The tree cannot be walked.
    #[error("the image is damaged")]
    Walk(#[from] WalkError),
    /// A file's content or attributes cannot be read.
    #[error("cannot read /{}", String::from_utf8_lossy(.path))]
    Read {
        /// Path in the image.
        path: Vec<u8>,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// A file cannot be made or written.
    #[error("cannot {verb} {}", .path.display())]
    Write {
        /// `create`, `write`, `set the owner of`, …
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Unpacks `image` into `target`, which is made if it does not exist and must be empty if it does.
pub fn unpack(
    image: &Image,
    target: &Path,
    options: &UnpackOptions,
) -> Result<Unpacked, UnpackError> {
    let run = Run {
        image,
        plain: options.plain,
        target: Target::open(target)?,
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        owners_lost: AtomicU64::new(0),
        lost: Mutex::new(Vec::new()),
    };
    let later = jobs::run(
        jobs::count(options.threads),
        |job| run.keep(run.work(job)),
        |submit| Walker::new(&run).walk(submit),
    );
    let later = match run.take_error() {
        Some(error) => return Err(error),
        None => later?,
    };
    let directories = later.directories.len() as u64;
    run.finish(&later)?;
    let mut lost = run.lost.into_inner().unwrap_or_else(PoisonError::into_inner);
    lost.sort();
    Ok(Unpacked {
        files: run.files.into_inner(),
        directories,
        bytes: run.bytes.into_inner(),
        owners_lost: run.owners_lost.into_inner(),
        lost,
    })
}

/// What all threads of one unpacking share.
struct Run<'a> {
    image: &'a Image,
    plain: bool,
    target: Target,
    /// Set with the first error, so that the others stop.
    failed: AtomicBool,
    /// The first error of a thread.
    error: Mutex<Option<UnpackError>>,
    files: AtomicU64,
    bytes: AtomicU64,
    owners_lost: AtomicU64,
    lost: Mutex<Vec<Lost>>,
}

/// What has to wait until all files exist.
#[derive(Default)]
struct Later {
    /// Path and first path of each further name of a file.
    links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Directories, outermost first.
    directories: Vec<WalkEntry>,
}

impl Run<'_> {
    fn keep(&self, result: Result<(), UnpackError>) {
        if let Err(error) = result {
            self.failed.store(true, Ordering::Relaxed);
            let mut slot = self.error.lock().unwrap_or_else(PoisonError::into_inner);
            slot.get_or_insert(error);
        }
    }

    fn take_error(&self) -> Option<UnpackError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn lose(&self, path: &[u8], what: LostWhat) {
        let lost = Lost { path: path.to_vec(), what };
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(lost);
    }

    /// The permission bits to set, after the owner was restored or not.
    fn mode(&self, entry: &WalkEntry, owner: Owner) -> u32 {
        let mode = u32::from(entry.inode.mode);
        if self.plain {
            let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            let foreign = (entry.inode.uid, entry.inode.gid) != me;
            self.owners_lost.fetch_add(u64::from(foreign), Ordering::Relaxed);
            if mode & 0o6000 != 0 {
                self.lose(&entry.path, LostWhat::SetIdBits);
            }
            return mode & !0o6000;
        }
        if owner == Owner::Restored {
            return mode;
        }
        self.owners_lost.fetch_add(1, Ordering::Relaxed);
        if mode & 0o6000 != 0 && !entry.inode.is_dir() {
            self.lose(&entry.path, LostWhat::SetIdBits);
            return mode & !0o6000;
        }
        mode
    }

    /// The xattrs of an entry, each passed to `set`; refusals are noted.
    fn xattrs(
        &self,
        entry: &WalkEntry,
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<(), UnpackError> {
        if !entry.inode.has_xattrs() {
            return Ok(());
        }
        let xattrs = self.image.xattrs(&entry.inode).map_err(|e| read_error(&entry.path, e))?;
        for xattr in xattrs {
            use rustix::io::Errno;
            if self.plain && !xattr.name.starts_with(b"user.") {
                self.lose(&entry.path, LostWhat::Xattr(xattr.name));
                continue;
            }
            match set(&xattr.name, &xattr.value) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => {
                    self.lose(&entry.path, LostWhat::Xattr(xattr.name));
                }
                Err(errno) => {
                    return Err(self.target.error("set an xattr of", &entry.path, errno));
                }
            }
        }
        Ok(())
    }

    /// Hard links, then directories from the inside out, so that a directory's time is not touched again and a mode
    /// that forbids entering it comes after everything in it.
    fn finish(&self, later: &Later) -> Result<(), UnpackError> {
        for (path, first) in &later.links {
            self.target.hard_link(first, path)?;
        }
        for entry in later.directories.iter().rev() {
            let fd = self.target.open_directory(&entry.path)?;
            self.attributes(entry, &fd)?;
        }
        Ok(())
    }

    /// Sets all attributes of an open file or directory.
    fn attributes(&self, entry: &WalkEntry, fd: &OwnedFd) -> Result<(), UnpackError> {
        let inode = &entry.inode;
        let owner = match self.plain {
            true => Owner::Lost,
            false => self.target.chown(fd, inode.uid, inode.gid, &entry.path)?,
        };
        self.xattrs(entry, |name, value| place::set_xattr(fd, name, value))?;
        let mode = self.mode(entry, owner);
        self.target.chmod_and_touch(fd, mode, inode.mtime, &entry.path)
    }
}

fn read_error(path: &[u8], source: ReadError) -> UnpackError {
    UnpackError::Read { path: path.to_vec(), source }
}

/// The thread that walks.
struct Walker<'r, 'a> {
    run: &'r Run<'a>,
    /// First path of each inode with several names.
    names: HashMap<InodeRef, Vec<u8>>,
    /// The directory that entries are made in, and its path.
    directory: (Vec<u8>, Arc<OwnedFd>),
    batch: Batch,
    later: Later,
}

impl<'r, 'a> Walker<'r, 'a> {
    fn new(run: &'r Run<'a>) -> Self {
        Self {
            run,
            names: HashMap::new(),
            directory: (Vec::new(), run.target.root()),
            batch: Batch::default(),
            later: Later::default(),
        }
    }

    fn walk(mut self, submit: &dyn Fn(Job)) -> Result<Later, UnpackError> {
        for entry in walk(self.run.image) {
            if self.run.failed() {
                break;
            }
            self.visit(entry?, submit)?;
        }
        self.batch.flush(submit);
        Ok(self.later)
    }

    fn visit(&mut self, entry: WalkEntry, submit: &dyn Fn(Job)) -> Result<(), UnpackError> {
        if entry.path.is_empty() {
            self.later.directories.push(entry);
            return Ok(());
        }
        if !entry.inode.is_dir() && entry.inode.nlink > 1 {
            if let Some(first) = self.names.get(&entry.inode.reference) {
                self.later.links.push((entry.path, first.clone()));
                return Ok(());
            }
            self.names.insert(entry.inode.reference, entry.path.clone());
        }
        let directory = self.directory_of(&entry.path)?;
        let target = &self.run.target;
        match entry.inode.kind {
            InodeKind::Directory { .. } => {
                let fd = target.make_directory(&directory, &entry.path)?;
                self.directory = (entry.path.clone(), Arc::new(fd));
                self.later.directories.push(entry);
                Ok(())
            }
            InodeKind::File { .. } => {
                let blocks =
                    self.run.image.blocks(&entry.inode).map_err(|e| read_error(&entry.path, e))?;
                self.batch.add(entry, directory, blocks, submit);
                Ok(())
            }
            InodeKind::Symlink { .. } => {
                let content = self.run.image.read_link(&entry.inode);
                let content = content.map_err(|e| read_error(&entry.path, e))?;
                target.make_symlink(&directory, &entry.path, &content)?;
                self.node_attributes(&entry, &directory)
            }
            _ => {
                let refused = self.run.plain && entry.inode.device().is_some();
                if !refused && target.make_node(&directory, &entry.path, &entry.inode)? {
                    return self.node_attributes(&entry, &directory);
                }
                // Further names of a device that could not be made are lost as well, each by its path.
                self.names.remove(&entry.inode.reference);
                self.run.lose(&entry.path, LostWhat::Device);
                Ok(())
            }
        }
    }

    /// Attributes of what cannot be opened: symlinks, devices, fifos, sockets.
    fn node_attributes(&self, entry: &WalkEntry, directory: &OwnedFd) -> Result<(), UnpackError> {
        let (run, inode) = (self.run, &entry.inode);
        let owner = match run.plain {
            true => Owner::Lost,
            false => run.target.chown_at(directory, inode.uid, inode.gid, &entry.path)?,
        };
        run.xattrs(entry, |name, value| {
            place::set_xattr_at(directory, place::file_name(&entry.path), name, value)
        })?;
        let mode = run.mode(entry, owner);
        let mode = (!matches!(inode.kind, InodeKind::Symlink { .. })).then_some(mode);
        run.target.chmod_and_touch_at(directory, mode, inode.mtime, &entry.path)
    }

    /// The directory of a path, most often the one of the path before.
    fn directory_of(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, UnpackError> {
        let parent = place::parent(path);
        if self.directory.0 != parent {
            let fd = self.run.target.open_directory(parent)?;
            self.directory = (parent.to_vec(), Arc::new(fd));
        }
        Ok(Arc::clone(&self.directory.1))
    }
}
