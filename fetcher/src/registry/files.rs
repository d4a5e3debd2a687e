//! What registries of the layout in [the module](super) have in common, whatever the files lie in.

use std::time::UNIX_EPOCH;

use mica_graph::{Blob, Digest, Layer, PackageName, Version};

use super::layout::{self, Item};
use super::{
    AddError, Entry, Index, ParseIndexError, Publication, Published, RegistryError, Resolved,
    WriteRegistry,
};
use crate::patch::{PatchNote, PatchNotes};
use crate::trust::Signatures;

/// A registry that is made of files.
pub(super) trait Files: WriteRegistry {
    /// A small file of the layout; `None` if it is not there.
    fn file(&self, item: &Item, limit: u64) -> Result<Option<Vec<u8>>, RegistryError>;

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

pub(super) fn name_of(files: &impl Files, item: &Item) -> String {
    format!("{}/{}", files.address(), item.path())
}

fn parse_packages(
    files: &impl Files,
    bytes: Option<Vec<u8>>,
) -> Result<Vec<PackageName>, RegistryError> {
    let Some(bytes) = bytes else { return Ok(Vec::new()) };
    let wrong = |e: serde_json::Error| document(name_of(files, &Item::Packages), e.into());
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

pub(super) fn packages(files: &impl Files) -> Result<Vec<PackageName>, RegistryError> {
    let bytes = files.file(&Item::Packages, Index::MAX_SIZE)?;
    if bytes.is_none() {
        files.check_layout()?;
    }
    parse_packages(files, bytes)
}

pub(super) fn index(
    files: &impl Files,
    name: &PackageName,
) -> Result<Option<Index>, RegistryError> {
    match files.file(&Item::Index(name.clone()), Index::MAX_SIZE)? {
        Some(bytes) => parse_index(files, name, &bytes).map(Some),
        None => files.check_layout().map(|()| None),
    }
}

pub(super) fn layer_by_inputs(
    files: &impl Files,
    inputs: &Digest,
) -> Result<Option<Layer>, RegistryError> {
    let Some(bytes) = files.file(&Item::Layer(*inputs), super::MAX_DOCUMENT)? else {
        return Ok(None);
    };
    // A memo is only a memo: one that cannot be used means packing again.
    let layer = serde_json::from_slice::<Layer>(&bytes).ok();
    let Some(layer) = layer.filter(|layer| layer.inputs == *inputs) else { return Ok(None) };
    let there = files.has_blob(&Blob { digest: layer.digest, size: layer.size })?;
    Ok(there.then_some(layer))
}

pub(super) fn patches(files: &impl Files, image: &Digest) -> Result<Vec<PatchNote>, RegistryError> {
    let bytes = files.file(&Item::Patches(*image), super::MAX_DOCUMENT)?;
    Ok(bytes.map_or_else(Vec::new, |bytes| PatchNotes::read(&bytes, image)))
}

pub(super) fn signatures(
    files: &impl Files,
    manifest: &Digest,
) -> Result<Signatures, RegistryError> {
    let item = Item::Signatures(*manifest);
    super::parse_signatures(name_of(files, &item), files.file(&item, Signatures::MAX_SIZE)?)
}

/// The new content of a document, made of the present one; `None` leaves it as it is.
pub(super) type Change<'a> =
    dyn FnMut(Option<Vec<u8>>) -> Result<Option<Vec<u8>>, RegistryError> + 'a;

/// Files that this process itself can replace, so that of concurrent changes none is lost.
pub(super) trait Documents: Files {
    /// Replaces a document at once by what `change` makes of it; `change` is called again if another process was quicker.
    fn update(&self, item: &Item, limit: u64, change: &mut Change<'_>)
    -> Result<(), RegistryError>;

    /// The size of a blob that is there.
    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError>;
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
    files.update(&Item::Index(name.clone()), Index::MAX_SIZE, &mut |old| {
        let mut index = match &old {
            Some(bytes) => parse_index(files, name, bytes)?,
            None => Index::new(name.clone()),
        };
        let before = index.clone();
        result = Some(change(&mut index).map_err(add)?);
        Ok((index != before).then(|| index.to_json()))
    })?;
    // Also repairs the list after a crash between the two writes.
    if !packages(files)?.contains(name) {
        list_package(files, name)?;
    }
    Ok(result.expect("an update that succeeds has called for the change"))
}

fn list_package(files: &impl Documents, name: &PackageName) -> Result<(), RegistryError> {
    files.update(&Item::Packages, Index::MAX_SIZE, &mut |old| {
        let mut packages = parse_packages(files, old)?;
        let Err(place) = packages.binary_search(name) else { return Ok(None) };
        packages.insert(place, name.clone());
        Ok(Some(serde_json::to_vec(&packages).expect("names are strings")))
    })
}

pub(super) fn publish(
    files: &impl Documents,
    publication: &Publication,
) -> Result<Published, RegistryError> {
    let Publication { name, version, manifest: blob, tags } = publication;
    let (name, version) = (name.clone(), version.clone());
    let resolved = Resolved { name, version, manifest: blob.clone(), tag: None };
    for layer in &files.manifest(&resolved)?.layers {
        require(files, &Blob { digest: layer.digest, size: layer.size })?;
        if let Some(table) = &layer.chunks {
            require(files, table)?;
        }
    }
    let time = UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
    let Resolved { name, version, .. } = resolved;
    let entry = Entry { version, manifest: blob.clone(), time };
    let is_new = change_index(files, &name, &|index| index.publish(entry.clone(), tags))?;
    Ok(if is_new { Published::New } else { Published::Unchanged })
}

pub(super) fn tag(
    files: &impl Documents,
    name: &PackageName,
    tag: &Version,
    version: &Version,
) -> Result<(), RegistryError> {
    if files.index(name)?.is_none() {
        return Err(super::unknown_package(files, name));
    }
    change_index(files, name, &|index| index.tag(tag, version))
}

pub(super) fn add_signatures(
    files: &impl Documents,
    manifest: &Digest,
    signatures: &Signatures,
) -> Result<(), RegistryError> {
    if files.blob_size(manifest)?.is_none() {
        let (registry, digest) = (files.address().to_owned(), *manifest);
        return Err(RegistryError::MissingBlob { registry, digest });
    }
    let item = Item::Signatures(*manifest);
    files.update(&item, Signatures::MAX_SIZE, &mut |old| {
        let mut all = super::parse_signatures(name_of(files, &item), old)?;
        let is_new = all.merge(signatures);
        if is_new && !all.fits() {
            let (registry, digest) = (files.address().to_owned(), *manifest);
            return Err(RegistryError::TooManySignatures { registry, digest });
        }
        Ok(is_new.then(|| all.to_text().into_bytes()))
    })
}

pub(super) fn remember(files: &impl Documents, layer: &Layer) -> Result<(), RegistryError> {
    require(files, &Blob { digest: layer.digest, size: layer.size })?;
    if files.layer_by_inputs(&layer.inputs)?.is_some() {
        return Ok(());
    }
    files.update(&Item::Layer(layer.inputs), super::MAX_DOCUMENT, &mut |_| {
        Ok(Some(serde_json::to_vec(layer).expect("a layer holds only strings and numbers")))
    })
}

pub(super) fn add_patches(
    files: &impl Documents,
    image: &Digest,
    patches: &[PatchNote],
) -> Result<(), RegistryError> {
    patches.iter().try_for_each(|note| require(files, &note.patch))?;
    files.update(&Item::Patches(*image), super::MAX_DOCUMENT, &mut |old| {
        let old = old.map_or_else(Vec::new, |bytes| PatchNotes::read(&bytes, image));
        let mut notes = PatchNotes::new(*image, old);
        notes.merge(patches);
        Ok(Some(notes.to_json()))
    })
}
