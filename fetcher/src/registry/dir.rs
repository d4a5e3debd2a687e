//! A registry in a folder, written by any number of processes at once.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use mica_graph::{Blob, Digest, Layer, Manifest, PackageName, Version};

use super::{
    BlobStream, Content, Entry, Index, Publication, Published, Registry, RegistryError,
    WriteRegistry, layout,
};
use crate::file::{self, FileError, Lock, Named, Staging};
use crate::patch::{PatchNote, PatchNotes};
use crate::trust::Signatures;

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

    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, FileError> {
        Ok(file::stat(&self.blob_path(digest))?.map(|meta| meta.len()))
    }

    /// Puts a verified temporary file in the place of a blob.
    pub(crate) fn adopt(&self, staged: file::Temporary, digest: &Digest) -> Result<(), FileError> {
        let path = self.blob_path(digest);
        create_durable(&path)?;
        staged.commit(&path, 0o644)
    }

    fn require(&self, blob: &Blob) -> Result<(), RegistryError> {
        let (registry, digest) = (self.address.clone(), blob.digest);
        match self.blob_size(&digest)? {
            Some(size) if size == blob.size => Ok(()),
            Some(found) => {
                Err(RegistryError::WrongSize { registry, digest, expected: blob.size, found })
            }
            None => Err(RegistryError::MissingBlob { registry, digest }),
        }
    }

    /// Changes an index under its package's lock.
    fn change<T>(
        &self,
        name: &PackageName,
        change: impl FnOnce(&mut Index) -> Result<T, super::AddError>,
    ) -> Result<T, RegistryError> {
        let _lock = self.lock(&format!("package-{name}"))?;
        let old = self.index(name)?;
        let is_new = old.is_none();
        let mut index = old.unwrap_or_else(|| Index::new(name.clone()));
        let before = index.clone();
        let add = |source| RegistryError::Add { registry: self.address.clone(), source };
        let result = change(&mut index).map_err(add)?;
        if index != before {
            let path = self.root.join(layout::index(name));
            create_durable(&path)?;
            self.staging()?.write(&path, &index.to_json())?;
        }
        // Also repairs the list after a crash between the two writes.
        if is_new || !self.packages()?.contains(name) {
            self.list_package(name)?;
        }
        Ok(result)
    }

    fn list_package(&self, name: &PackageName) -> Result<(), RegistryError> {
        let _lock = self.lock("packages")?;
        let mut packages = self.packages()?;
        if let Err(place) = packages.binary_search(name) {
            packages.insert(place, name.clone());
            let json = serde_json::to_vec(&packages).expect("names are strings");
            self.staging()?.write(&self.root.join(layout::PACKAGES), &json)?;
        }
        Ok(())
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

impl Registry for DirRegistry {
    fn address(&self) -> &str {
        &self.address
    }

    fn packages(&self) -> Result<Vec<PackageName>, RegistryError> {
        let path = self.root.join(layout::PACKAGES);
        let Some(bytes) = file::read_small(&path, Index::MAX_SIZE)? else { return Ok(vec![]) };
        serde_json::from_slice(&bytes).map_err(|source| document(path.display(), source.into()))
    }

    fn index(&self, name: &PackageName) -> Result<Option<Index>, RegistryError> {
        let path = self.root.join(layout::index(name));
        let Some(bytes) = file::read_small(&path, Index::MAX_SIZE)? else { return Ok(None) };
        let index = Index::from_json(&bytes, name);
        Ok(Some(index.map_err(|source| document(path.display(), source))?))
    }

    fn blob(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        self.require(blob)?;
        let path = self.blob_path(&blob.digest);
        let mut file = File::open(&path).named("open", &path)?;
        file.seek(SeekFrom::Start(range.start)).named("read", &path)?;
        let reader = file.take(range.end.saturating_sub(range.start));
        Ok(BlobStream { start: range.start, reader: Box::new(reader) })
    }

    fn layer_by_inputs(&self, inputs: &Digest) -> Result<Option<Layer>, RegistryError> {
        let path = self.root.join(layout::layer(inputs));
        let Some(bytes) = file::read_small(&path, super::MAX_DOCUMENT)? else { return Ok(None) };
        // A memo is only a memo: one that cannot be used means packing again.
        let layer = serde_json::from_slice::<Layer>(&bytes).ok();
        Ok(match layer.filter(|layer| layer.inputs == *inputs) {
            Some(layer) if self.blob_size(&layer.digest)? == Some(layer.size) => Some(layer),
            _ => None,
        })
    }

    fn patches(&self, image: &Digest) -> Result<Vec<PatchNote>, RegistryError> {
        let path = self.root.join(layout::patches(image));
        let bytes = file::read_small(&path, super::MAX_DOCUMENT)?;
        Ok(bytes.map_or_else(Vec::new, |bytes| PatchNotes::read(&bytes, image)))
    }

    fn signatures(&self, manifest: &Digest) -> Result<Signatures, RegistryError> {
        let path = self.root.join(layout::signatures(manifest));
        let bytes = file::read_small(&path, Signatures::MAX_SIZE)?;
        super::parse_signatures(path.display().to_string(), bytes)
    }
}

pub(super) fn document(name: impl ToString, source: super::ParseIndexError) -> RegistryError {
    RegistryError::Document { document: name.to_string(), source }
}

impl WriteRegistry for DirRegistry {
    fn check_writable(&self) -> Result<(), RegistryError> {
        self.staging()?.create()?;
        Ok(())
    }

    fn has_blob(&self, blob: &Blob) -> Result<bool, RegistryError> {
        Ok(self.blob_size(&blob.digest)? == Some(blob.size))
    }

    fn put_blob(&self, blob: &Blob, content: Content<'_>) -> Result<bool, RegistryError> {
        if self.has_blob(blob)? {
            return Ok(false);
        }
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
        self.adopt(staged, &blob.digest)?;
        Ok(true)
    }

    fn add_signatures(
        &self,
        manifest: &Digest,
        signatures: &Signatures,
    ) -> Result<(), RegistryError> {
        if self.blob_size(manifest)?.is_none() {
            let (registry, digest) = (self.address.clone(), *manifest);
            return Err(RegistryError::MissingBlob { registry, digest });
        }
        let _lock = self.lock("signatures")?;
        let mut all = self.signatures(manifest)?;
        if all.merge(signatures) {
            let path = self.root.join(layout::signatures(manifest));
            create_durable(&path)?;
            self.staging()?.write(&path, all.to_text().as_bytes())?;
        }
        Ok(())
    }

    fn publish(&self, publication: &Publication) -> Result<Published, RegistryError> {
        let Publication { name, version, manifest: blob, tags } = publication;
        let resolved = super::Resolved {
            name: name.clone(),
            version: version.clone(),
            manifest: blob.clone(),
            tag: None,
        };
        let manifest: Manifest = self.manifest(&resolved)?;
        for layer in &manifest.layers {
            self.require(&Blob { digest: layer.digest, size: layer.size })?;
            if let Some(table) = &layer.chunks {
                self.require(table)?;
            }
        }
        let time = UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
        let entry = Entry { version: version.clone(), manifest: blob.clone(), time };
        let is_new = self.change(name, |index| index.publish(entry, tags))?;
        Ok(if is_new { Published::New } else { Published::Unchanged })
    }

    fn tag(
        &self,
        name: &PackageName,
        tag: &Version,
        version: &Version,
    ) -> Result<(), RegistryError> {
        if self.index(name)?.is_none() {
            return Err(super::unknown_package(self, name));
        }
        self.change(name, |index| index.tag(tag, version))
    }

    fn remember(&self, layer: &Layer) -> Result<(), RegistryError> {
        self.require(&Blob { digest: layer.digest, size: layer.size })?;
        if self.layer_by_inputs(&layer.inputs)?.is_some() {
            return Ok(());
        }
        let path = self.root.join(layout::layer(&layer.inputs));
        create_durable(&path)?;
        let json = serde_json::to_vec(layer).expect("a layer holds only strings and numbers");
        self.staging()?.write(&path, &json)?;
        Ok(())
    }

    fn add_patches(&self, image: &Digest, patches: &[PatchNote]) -> Result<(), RegistryError> {
        patches.iter().try_for_each(|note| self.require(&note.patch))?;
        let _lock = self.lock("patches")?;
        let mut notes = PatchNotes::new(*image, self.patches(image)?);
        notes.merge(patches);
        let path = self.root.join(layout::patches(image));
        create_durable(&path)?;
        self.staging()?.write(&path, &notes.to_json())?;
        Ok(())
    }
}
