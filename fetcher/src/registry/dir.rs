//! A registry in a folder, written by any number of processes at once.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use mica_graph::{Blob, Digest};

use super::files::{self, Change, Documents, Files};
use super::layout::{self, Item};
use super::{BlobStream, Content, RegistryError};
use crate::file::{self, FileError, Lock, Named, Staging};

/// A folder of the layout described in [the module](super).
#[derive(Clone, Debug)]
pub struct DirRegistry {
    root: PathBuf,
    address: String,
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
                file::create_dir(root)?;
                let foreign = |name: &String| !["incoming", "locks"].contains(&name.as_str());
                if file::names(root)?.iter().any(foreign) {
                    // Another process may just have made it.
                    return Self::open(root);
                }
                let registry = Self { root: root.to_owned(), address };
                registry.staging()?.write(&root.join(layout::VERSION_FILE), layout::VERSION)?;
                Ok(registry)
            }
            other => {
                if let Ok(registry) = &other {
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

    /// The file of a blob; it may not exist.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(layout::blob(digest))
    }

    pub(crate) fn staging(&self) -> Result<Staging, FileError> {
        Staging::new(self.root.join("incoming"))
    }

    fn lock(&self, name: &str) -> Result<Lock, FileError> {
        let folder = self.root.join("locks");
        file::create_dir(&folder)?;
        Lock::exclusive(&folder.join(name))
    }

    /// Puts a verified temporary file in the place of a blob.
    pub(crate) fn adopt(&self, staged: file::Temporary, digest: &Digest) -> Result<(), FileError> {
        let path = self.blob_path(digest);
        create_durable(&path)?;
        staged.commit(&path, 0o644)
    }
}

/// Makes the folders above `path` so that they survive a crash.
fn create_durable(path: &Path) -> Result<(), FileError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if !parent.is_dir() {
        create_durable(parent)?;
        match fs::create_dir(parent) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(e).named("create", parent);
            }
            _ => {}
        }
        if let Some(above) = parent.parent() {
            file::sync_dir(above)?;
        }
    }
    Ok(())
}

impl Files for DirRegistry {
    fn place(&self) -> &str {
        &self.address
    }

    fn file(&self, item: &Item, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        Ok(file::read_small(&self.root.join(item.path()), limit)?)
    }

    fn part(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        files::require(self, blob)?;
        let path = self.blob_path(&blob.digest);
        let mut file = File::open(&path).named("open", &path)?;
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
            let path = self.root.join(item.path());
            create_durable(&path)?;
            self.staging()?.write(&path, &new)?;
        }
        Ok(())
    }

    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        Ok(file::stat(&self.blob_path(digest))?.map(|meta| meta.len()))
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
