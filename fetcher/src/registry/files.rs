//! What registries of the layout in [the module](super) have in common, whatever the files lie in.

use std::ops::Range;
use std::time::UNIX_EPOCH;

use mica_graph::{Blob, Digest, JsonBounds, Layer, PackageName, TooMuchJson, Version};

use super::layout::{self, Item};
use super::{
    AddError, BlobStream, Content, Entry, Index, ParseIndexError, Publication, Published, Registry,
    RegistryError, Resolved, WriteRegistry,
};
use crate::patch::{PatchNote, PatchNotes};
use crate::trust::Signatures;

/// A registry that is made of files.
pub(crate) trait Files: WriteRegistry {
    /// See [`Registry::address`].
    fn place(&self) -> &str;

    /// A small file of the layout; `None` if it is not there.
    fn file(&self, item: &Item, limit: u64) -> Result<Option<Vec<u8>>, RegistryError>;

    /// See [`Registry::blob`].
    fn part(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError>;

    /// Tells "no such package" from "no such registry".
    fn check_layout(&self) -> Result<(), RegistryError> {
        let address = self.address().to_owned();
        match self.file(&Item::Version, 4096)? {
            Some(found) if found == layout::VERSION => Ok(()),
            Some(found) => {
                let found = String::from_utf8_lossy(&found).trim().chars().take(80).collect();
                Err(RegistryError::Layout { address, found })
            }
            None => Err(RegistryError::NotARegistry { address }),
        }
    }
}

/// The error of a document that cannot be used.
pub(super) fn document(name: impl ToString, source: ParseIndexError) -> RegistryError {
    RegistryError::Document { document: name.to_string(), source }
}

/// Refuses to write what would be too much to be read again: the document would be lost for everybody.
fn readable(
    files: &impl Files,
    item: &Item,
    bounds: JsonBounds,
    bytes: Vec<u8>,
) -> Result<Vec<u8>, RegistryError> {
    bounds.check(&bytes).map_err(|source| full(files, item, source))?;
    Ok(bytes)
}

fn full(files: &impl Files, item: &Item, source: TooMuchJson) -> RegistryError {
    RegistryError::Full { document: name_of(files, item), source }
}

pub(super) fn name_of(files: &impl Files, item: &Item) -> String {
    format!("{}/{}", files.address(), item.path())
}

fn parse_packages(
    files: &impl Files,
    bytes: Option<Vec<u8>>,
) -> Result<Vec<PackageName>, RegistryError> {
    let Some(bytes) = bytes else { return Ok(Vec::new()) };
    let wrong = |e: serde_json::Error| document(name_of(files, &Item::Packages), e.into());
    let too_much = |e: TooMuchJson| document(name_of(files, &Item::Packages), e.into());
    super::PACKAGES.check(&bytes).map_err(too_much)?;
    serde_json::from_slice(&bytes).map_err(wrong)
}

fn parse_index(
    files: &impl Files,
    name: &PackageName,
    bytes: &[u8],
) -> Result<Index, RegistryError> {
    let wrong = |source| document(name_of(files, &Item::Index(name.clone())), source);
    Index::from_json(bytes, name).map_err(wrong)
}

impl<F: Files> Registry for F {
    fn address(&self) -> &str {
        self.place()
    }

    fn packages(&self) -> Result<Vec<PackageName>, RegistryError> {
        let bytes = self.file(&Item::Packages, super::PACKAGES.bytes)?;
        if bytes.is_none() {
            self.check_layout()?;
        }
        parse_packages(self, bytes)
    }

    fn index(&self, name: &PackageName) -> Result<Option<Index>, RegistryError> {
        match self.file(&Item::Index(name.clone()), Index::BOUNDS.bytes)? {
            Some(bytes) => parse_index(self, name, &bytes).map(Some),
            None => self.check_layout().map(|()| None),
        }
    }

    fn blob(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        self.part(blob, range)
    }

    fn layer_by_inputs(&self, inputs: &Digest) -> Result<Option<Layer>, RegistryError> {
        let Some(bytes) = self.file(&Item::Layer(*inputs), super::LAYER.bytes)? else {
            return Ok(None);
        };
        // A memo is only a memo: one that cannot be used means packing again.
        let layer = serde_json::from_slice::<Layer>(&bytes).ok();
        let Some(layer) = layer.filter(|layer| layer.inputs == *inputs) else { return Ok(None) };
        let there = self.has_blob(&layer.image())?;
        Ok(there.then_some(layer))
    }

    fn patches(&self, image: &Digest) -> Result<Vec<PatchNote>, RegistryError> {
        let bytes = self.file(&Item::Patches(*image), PatchNotes::BOUNDS.bytes)?;
        Ok(bytes.map_or_else(Vec::new, |bytes| PatchNotes::read(&bytes, image)))
    }

    fn signatures(&self, manifest: &Digest) -> Result<Signatures, RegistryError> {
        let item = Item::Signatures(*manifest);
        super::parse_signatures(name_of(self, &item), self.file(&item, Signatures::MAX_SIZE)?)
    }
}

/// The new content of a document, made of the present one; `None` leaves it as it is.
pub(super) type Change<'a> =
    dyn FnMut(Option<Vec<u8>>) -> Result<Option<Vec<u8>>, RegistryError> + 'a;

/// Files that this process itself can replace, so that of concurrent changes none is lost.
pub(super) trait Documents: Files {
    /// See [`WriteRegistry::check_writable`].
    fn try_writing(&self) -> Result<(), RegistryError>;

    /// Replaces a document at once by what `change` makes of it; `change` is called again if another process was quicker.
    fn update(&self, item: &Item, limit: u64, change: &mut Change<'_>)
    -> Result<(), RegistryError>;

    /// The size of a blob that is there.
    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError>;

    /// Stores a blob that is not there, verified.
    fn store(&self, blob: &Blob, content: Content<'_>) -> Result<(), RegistryError>;
}

/// Fails if a blob is not there.
pub(super) fn require(files: &impl Documents, blob: &Blob) -> Result<(), RegistryError> {
    let (registry, digest) = (files.address().to_owned(), blob.digest);
    match files.blob_size(&digest)? {
        Some(size) if size == blob.size => Ok(()),
        Some(found) => {
            Err(RegistryError::WrongSize { registry, digest, expected: blob.size, found })
        }
        None => Err(RegistryError::MissingBlob { registry, digest }),
    }
}

/// Changes an index.
fn change_index<T>(
    files: &impl Documents,
    name: &PackageName,
    change: &dyn Fn(&mut Index) -> Result<T, AddError>,
) -> Result<T, RegistryError> {
    let add = |source| RegistryError::Add { registry: files.address().to_owned(), source };
    let mut result = None;
    let item = Item::Index(name.clone());
    files.update(&item, Index::BOUNDS.bytes, &mut |old| {
        let mut index = match &old {
            Some(bytes) => parse_index(files, name, bytes)?,
            None => Index::new(name.clone()),
        };
        let before = index.clone();
        result = Some(change(&mut index).map_err(add)?);
        let changed = (index != before).then(|| index.to_bounded_json());
        changed.transpose().map_err(|source| full(files, &item, source))
    })?;
    // Also repairs the list after a crash between the two writes.
    if !files.packages()?.contains(name) {
        list_package(files, name)?;
    }
    Ok(result.expect("an update that succeeds has called for the change"))
}

fn list_package(files: &impl Documents, name: &PackageName) -> Result<(), RegistryError> {
    files.update(&Item::Packages, super::PACKAGES.bytes, &mut |old| {
        let mut packages = parse_packages(files, old)?;
        let Err(place) = packages.binary_search(name) else { return Ok(None) };
        packages.insert(place, name.clone());
        let bytes = serde_json::to_vec(&packages).expect("names are strings");
        readable(files, &Item::Packages, super::PACKAGES, bytes).map(Some)
    })
}

impl<D: Documents> WriteRegistry for D {
    fn check_writable(&self) -> Result<(), RegistryError> {
        self.try_writing()
    }

    fn has_blob(&self, blob: &Blob) -> Result<bool, RegistryError> {
        Ok(self.blob_size(&blob.digest)? == Some(blob.size))
    }

    fn put_blob(&self, blob: &Blob, content: Content<'_>) -> Result<bool, RegistryError> {
        if self.has_blob(blob)? {
            return Ok(false);
        }
        self.store(blob, content).map(|()| true)
    }

    fn add_signatures(
        &self,
        manifest: &Digest,
        signatures: &Signatures,
    ) -> Result<(), RegistryError> {
        if self.blob_size(manifest)?.is_none() {
            let (registry, digest) = (self.address().to_owned(), *manifest);
            return Err(RegistryError::MissingBlob { registry, digest });
        }
        let item = Item::Signatures(*manifest);
        self.update(&item, Signatures::MAX_SIZE, &mut |old| {
            let mut all = super::parse_signatures(name_of(self, &item), old)?;
            let is_new = all.merge(signatures);
            if is_new && !all.fits() {
                let (registry, digest) = (self.address().to_owned(), *manifest);
                return Err(RegistryError::TooManySignatures { registry, digest });
            }
            Ok(is_new.then(|| all.to_text().into_bytes()))
        })
    }

    fn publish(&self, publication: &Publication) -> Result<Published, RegistryError> {
        let Publication { name, version, manifest: blob, tags } = publication;
        let (name, version) = (name.clone(), version.clone());
        let resolved = Resolved { name, version, manifest: blob.clone(), tag: None };
        for layer in &self.manifest(&resolved)?.layers {
            require(self, &layer.image())?;
            if let Some(table) = &layer.chunks {
                require(self, table)?;
            }
        }
        let time = UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
        let Resolved { name, version, .. } = resolved;
        let entry = Entry { version, manifest: blob.clone(), time };
        let is_new = change_index(self, &name, &|index| index.publish(entry.clone(), tags))?;
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
        change_index(self, name, &|index| index.tag(tag, version))
    }

    fn remember(&self, layer: &Layer) -> Result<(), RegistryError> {
        require(self, &layer.image())?;
        if self.layer_by_inputs(&layer.inputs)?.is_some() {
            return Ok(());
        }
        let item = Item::Layer(layer.inputs);
        let bytes = serde_json::to_vec(layer).expect("a layer holds only strings and numbers");
        let bytes = readable(self, &item, super::LAYER, bytes)?;
        self.update(&item, super::LAYER.bytes, &mut |_| Ok(Some(bytes.clone())))
    }

    fn add_patches(&self, image: &Digest, patches: &[PatchNote]) -> Result<(), RegistryError> {
        patches.iter().try_for_each(|note| require(self, &note.patch))?;
        let item = Item::Patches(*image);
        self.update(&item, PatchNotes::BOUNDS.bytes, &mut |old| {
            let old = old.map_or_else(Vec::new, |bytes| PatchNotes::read(&bytes, image));
            let mut notes = PatchNotes::new(*image, old);
            notes.merge(patches);
            readable(self, &item, PatchNotes::BOUNDS, notes.to_json()).map(Some)
        })
    }
}
