//! A registry in a folder, written by any number of processes at once, of one account or of several.
//!
//! **Whose it is.** A folder that a group can write is shared by its members: what is made in it belongs to the group and can be
//! written by it, locks too. Any other is written by its owner alone. Modes are set, whatever the umask is, and everybody may
//! read what is published. Where somebody else than the caller and root can write the folder, no symbolic link in it is followed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use mica_graph::{Blob, Digest};

use super::files::{self, Change, Documents, Files};
use super::layout::{self, Item};
use super::{BlobStream, Content, RegistryError};
use crate::file::{self, FileError, Folder, Lock, Named, Staging};

/// A folder of the layout described in [the module](super).
#[derive(Clone, Debug)]
pub struct DirRegistry {
    root: PathBuf,
    address: String,
}

/// What others than the owner and the group need to change something.
const EVERYBODY_WRITES: u32 = 0o002;
/// Documents and blobs are replaced, not written.
const FILE: u32 = 0o644;

/// Modes of what is made in a registry.
#[derive(Clone, Copy)]
struct Modes {
    /// Folders that everybody may read.
    public: u32,
    /// Those of writers.
    private: u32,
    lock: u32,
}

impl Modes {
    fn of(root: &Folder) -> Result<Self, FileError> {
        Ok(match root.metadata()?.st_mode & 0o020 != 0 {
            true => Self { public: 0o2775, private: 0o2770, lock: 0o660 },
            false => Self { public: 0o755, private: 0o700, lock: 0o600 },
        })
    }
}

impl DirRegistry {
    /// Opens a registry that exists.
    pub fn open(root: &Path) -> Result<Self, RegistryError> {
        let registry = Self { root: root.to_owned(), address: root.display().to_string() };
        match file::read_small(&root.join(layout::VERSION_FILE), 4096)? {
            Some(found) if found == layout::VERSION => Ok(registry),
            Some(found) => {
                let found = String::from_utf8_lossy(&found).trim().to_owned();
                Err(RegistryError::Layout { address: registry.address, found })
            }
            None => Err(RegistryError::NotARegistry { address: registry.address }),
        }
    }

    /// Opens a registry, making one where there is nothing or an empty folder.
    pub fn create(root: &Path) -> Result<Self, RegistryError> {
        match Self::open(root) {
            Err(RegistryError::NotARegistry { address }) => {
                file::create_dir(root, 0o755)?;
                let foreign = |name: &String| !["incoming", "locks"].contains(&name.as_str());
                if file::names(root)?.iter().any(foreign) {
                    // Another process may just have made it.
                    return Self::open(root);
                }
                let registry = Self { root: root.to_owned(), address };
                let folder = registry.close()?;
                let mut version = registry.staging()?.create()?;
                version.file.write_all(layout::VERSION).named("write", &version.path)?;
                version.commit_in(&folder, layout::VERSION_FILE, FILE)?;
                Ok(registry)
            }
            other => {
                if let Ok(registry) = &other {
                    registry.close()?;
                    registry.staging()?.sweep()?;
                }
                other
            }
        }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes away from everybody what is ours and everybody could write: an earlier version made it so under a strange umask.
    fn close(&self) -> Result<Folder, FileError> {
        let root = Folder::open(&self.root)?;
        let mut open = take_back(&root)?;
        for name in root.names()? {
            // What is no folder says so.
            if let Ok(Some(folder)) = root.folder(&name) {
                open |= take_back(&folder)?;
            }
        }
        if open {
            close_below(&root, 4)?;
        }
        Ok(root)
    }

    /// A folder below the root; `None` if it is not there and not to be made.
    fn folder(&self, path: &str, make: Option<u32>) -> Result<Option<Folder>, FileError> {
        let root = Folder::open(&self.root)?;
        let trusted = root.refuse_foreign().is_ok();
        let mut at = root;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let below = match at.folder(name) {
                Err(_) if trusted => Some(Folder::open(&at.path().join(name))?),
                other => other?,
            };
            at = match (below, make) {
                (Some(below), _) => below,
                (None, Some(mode)) => {
                    let below = at.create_folder(name, mode)?;
                    at.sync()?;
                    below
                }
                (None, None) => return Ok(None),
            };
        }
        Ok(Some(at))
    }

    /// The same, made if need be.
    fn made(&self, path: &str, mode: fn(Modes) -> u32) -> Result<Folder, FileError> {
        let modes = Modes::of(&Folder::open(&self.root)?)?;
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let folder = self.folder(path, Some(mode(modes)))?;
        folder.ok_or_else(gone).named("open", &self.root.join(path))
    }

    /// A file that is there, open.
    pub(crate) fn opened(&self, item: &Item) -> Result<Option<File>, FileError> {
        let path = item.path();
        let (folder, name) = split(&path);
        match self.folder(folder, None)? {
            Some(folder) => folder.open_file(name),
            None => Ok(None),
        }
    }

    pub(crate) fn staging(&self) -> Result<Staging, FileError> {
        let folder = self.made("incoming", |modes| modes.private)?;
        restrict(&folder)?;
        Ok(Staging::new(folder))
    }

    fn lock(&self, name: &str) -> Result<Lock, FileError> {
        let folder = self.made("locks", |modes| modes.private)?;
        restrict(&folder)?;
        let modes = Modes::of(&Folder::open(&self.root)?)?;
        Lock::exclusive_in(&folder, name, modes.lock, file::PATIENCE)
    }

    /// Puts a verified temporary file in the place of a blob.
    pub(crate) fn adopt(&self, staged: file::Temporary, digest: &Digest) -> Result<(), FileError> {
        self.put(staged, &Item::Blob(*digest))
    }

    fn put(&self, staged: file::Temporary, item: &Item) -> Result<(), FileError> {
        let path = item.path();
        let (folder, name) = split(&path);
        staged.commit_in(&self.made(folder, |modes| modes.public)?, name, FILE)
    }
}

/// The folder of a path of the layout, and the name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn is_ours(folder: &Folder) -> Result<bool, FileError> {
    Ok(folder.metadata()?.st_uid == rustix::process::geteuid().as_raw())
}

/// Whether everybody could write a folder of ours, which is over.
fn take_back(folder: &Folder) -> Result<bool, FileError> {
    let mode = folder.metadata()?.st_mode & 0o7777;
    let open = mode & EVERYBODY_WRITES != 0 && is_ours(folder)?;
    if open {
        folder.set_mode(mode & !EVERYBODY_WRITES)?;
    }
    Ok(open)
}

fn close_below(folder: &Folder, depth: usize) -> Result<(), FileError> {
    for name in folder.names()? {
        if let Ok(Some(below)) = folder.folder(&name) {
            take_back(&below)?;
            if depth > 0 {
                close_below(&below, depth - 1)?;
            }
        }
    }
    Ok(())
}

/// Keeps those out of a folder of writers who can't write it: they could lock what they open there.
fn restrict(folder: &Folder) -> Result<(), FileError> {
    let mode = folder.metadata()?.st_mode & 0o7777;
    let kept = if mode & 0o020 != 0 { !0o007 } else { !0o077 };
    if mode & !kept != 0 && is_ours(folder)? {
        folder.set_mode(mode & kept)?;
    }
    Ok(())
}

impl Files for DirRegistry {
    fn place(&self) -> &str {
        &self.address
    }

    fn file(&self, item: &Item, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some(file) = self.opened(item)? else { return Ok(None) };
        Ok(Some(file::read_bounded(file, &self.root.join(item.path()), limit)?))
    }

    fn part(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        files::require(self, blob)?;
        let item = Item::Blob(blob.digest);
        let path = self.root.join(item.path());
        let (registry, digest) = (self.address.clone(), blob.digest);
        let missing = || RegistryError::MissingBlob { registry, digest };
        let mut file = self.opened(&item)?.ok_or_else(missing)?;
        file.seek(SeekFrom::Start(range.start)).named("read", &path)?;
        let reader = file.take(range.end.saturating_sub(range.start));
        Ok(BlobStream { start: range.start, reader: Box::new(reader) })
    }
}

impl Documents for DirRegistry {
    fn try_writing(&self) -> Result<(), RegistryError> {
        self.staging()?.create()?;
        Ok(())
    }

    /// Under a lock, of a name that no change of the layout may change.
    fn update(
        &self,
        item: &Item,
        limit: u64,
        change: &mut Change<'_>,
    ) -> Result<(), RegistryError> {
        let _lock = self.lock(&match item {
            Item::Index(name) => format!("package-{name}"),
            Item::Signatures(_) => "signatures".to_owned(),
            Item::Patches(_) => "patches".to_owned(),
            Item::Layer(_) => "layers".to_owned(),
            Item::Version | Item::Packages | Item::Blob(_) => "packages".to_owned(),
        })?;
        if let Some(new) = change(self.file(item, limit)?)? {
            let mut staged = self.staging()?.create()?;
            staged.file.write_all(&new).named("write", &staged.path)?;
            self.put(staged, item)?;
        }
        Ok(())
    }

    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let path = Item::Blob(*digest).path();
        let (folder, name) = split(&path);
        let Some(folder) = self.folder(folder, None)? else { return Ok(None) };
        let Some(stat) = folder.stat(name)? else { return Ok(None) };
        self.want(digest, stat.st_mtime);
        Ok(Some(u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn store(&self, blob: &Blob, content: Content<'_>) -> Result<(), RegistryError> {
        let mut staged = self.staging()?.create()?;
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        let mut write = |piece: &[u8]| {
            hasher.update(piece);
            size += piece.len() as u64;
            staged.file.write_all(piece).named("write", &staged.path)
        };
        match content {
            Content::Bytes(bytes) => write(bytes)?,
            Content::File(path) => {
                let mut file = File::open(path).named("open", path)?;
                let mut buffer = vec![0; 1 << 18];
                loop {
                    match file.read(&mut buffer).named("read", path)? {
                        0 => break,
                        n => write(&buffer[..n])?,
                    }
                }
            }
        }
        let found: Digest = hasher.finalize().into();
        if found != blob.digest || size != blob.size {
            // Named after what was given: that is what does not fit the digest.
            let registry = match content {
                Content::File(path) => path.display().to_string(),
                Content::Bytes(_) => "the caller".to_owned(),
            };
            return Err(RegistryError::WrongBytes { registry, expected: blob.digest, found });
        }
        Ok(self.adopt(staged, &blob.digest)?)
    }
}
