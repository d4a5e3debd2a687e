//! Packages as one file: an OCI image layout in a tar, for machines without a network.
//!
//! The documents are those of an OCI registry and come first: layout, index, manifests, configurations; then each blob once,
//! whichever packages share it. Packages may be left out that the other side has (`since`): then their blobs are, too, and nothing
//! else changes. An image that any other tool copied into such a file is as good as ours, as long as it is a package.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use mica_graph::{Blob, Digest, Manifest, PackageRef};

use crate::cache::{Cache, CacheError, LookupError, Stored, blobs};
use crate::file::{FileError, Named};
use crate::members::{Member, Members};
use crate::pull::with_room;
use crate::registry::oci::facts;
use crate::registry::oci::form::{self, Descriptor, Facts, OciIndex, OciManifest};
use crate::registry::{ParseIndexError, RegistryError};
use crate::trust::{Signatures, Trust};

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Images and chunk tables.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// A package that was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It is not here.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// A part of it is not here.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An image cannot be read.
    #[error("cannot read layer {layer}")]
    Layer {
        /// Which.
        layer: String,
        /// The reason.
        #[source]
        source: Box<RegistryError>,
    },
    /// A file of the cache.
    #[error(transparent)]
    File(#[from] FileError),
    /// `load` would not take it.
    #[error("{package} has too many layers for an archive")]
    TooLarge {
        /// The package.
        package: PackageRef,
    },
    /// The other side takes no more.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// An archive that was not loaded, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not a tar, or it ends early.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It has no index, or names no package.
    #[error("the archive holds no package of mica's")]
    NoPackage,
    /// A document is missing or not of its shape.
    #[error("cannot use {name} of the archive")]
    Document {
        /// Its name.
        name: String,
        /// The reason.
        #[source]
        source: ParseIndexError,
    },
    /// A blob has other bytes than its name says.
    #[error("the archive is damaged: {name} holds other bytes")]
    Damaged {
        /// Its name.
        name: String,
    },
    /// Only the difference to a version that is not here.
    #[error("{package} is not complete: the archive lacks {what}, and so does the cache")]
    Incomplete {
        /// The package.
        package: PackageRef,
        /// The first layer that is missing.
        what: String,
    },
    /// It has more of something than any archive of packages.
    #[error("the archive has {0}")]
    Bound(&'static str),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl LoadError {
    /// What a person could do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Incomplete { .. } => Some(
                "it was saved with --since: load or pull the version it was saved against first",
            ),
            Self::Damaged { .. } | Self::Read(_) => Some("copy it again, or save it again"),
            Self::NoPackage => Some("`mica import` takes in images that mica did not make"),
            Self::Cache(error) => error.hint(),
            Self::Document { .. } | Self::Bound(_) => None,
        }
    }
}

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const COMPANION: &str = "dev.mica.companion";
/// The largest document, of some five thousand layers. In memory it may be some twenty times as large.
const MAX_DOCUMENT: u64 = 2 << 20;
/// Bytes of all documents, each counted as often as it is named.
const MAX_READ: u64 = 1 << 30;
/// The most blobs of an archive.
const MAX_BLOBS: usize = 200_000;
/// The most packages of an archive.
const MAX_PACKAGES: usize = 10_000;

/// Writes packages of the cache, without what those in `since` have.
pub fn save(
    cache: &Cache,
    packages: &[PackageRef],
    since: &[PackageRef],
    out: &mut dyn Write,
) -> Result<Saved, SaveError> {
    let mut held = HashSet::new();
    for package in since {
        held.extend(blobs(&cache.lookup(package)?));
    }
    let mut documents: Vec<Vec<u8>> = Vec::new();
    let mut files: Vec<(Digest, Facts)> = Vec::new();
    let mut index = Vec::new();
    let mut leases = Vec::new();
    for package in packages {
        let manifest = cache.lookup(package)?;
        leases.push(cache.lease_package(&manifest)?);
        let time = Duration::from_secs(cache.published(&manifest)?);
        let layers = layer_facts(cache, &manifest, &mut files)?;
        let image = form::image(&manifest, &layers, time);
        let mut descriptor = Descriptor::of(form::MANIFEST_TYPE, &image.manifest);
        let tables = table_facts(cache, &manifest, &mut files)?;
        if !tables.is_empty() {
            let companion = form::companion(&descriptor, &tables);
            let name = (COMPANION.to_owned(), form::sha256(&companion));
            descriptor.annotations.extend([name]);
            documents.push(companion);
        }
        let signatures = cache.signatures(&manifest.digest())?;
        if !signatures.is_empty() {
            descriptor.annotations.insert(form::SIGNATURES.to_owned(), signatures.to_text());
        }
        let name = format!("{}:{}", manifest.name, manifest.version);
        descriptor.annotations.insert(REF_NAME.to_owned(), name);
        index.push(descriptor);
        documents.extend([image.manifest, image.config]);
        if documents.iter().any(|document| document.len() as u64 > MAX_DOCUMENT) {
            return Err(SaveError::TooLarge { package: package.clone() });
        }
    }
    files.retain(|(digest, _)| !held.contains(digest));
    write(cache, &form::index(index), &documents, &files, out)
}

/// What the layers are called in OCI documents. Every file is read once.
fn layer_facts(
    cache: &Cache,
    manifest: &Manifest,
    files: &mut Vec<(Digest, Facts)>,
) -> Result<Vec<Facts>, SaveError> {
    let paths = cache.stack(manifest)?;
    let mut all = Vec::new();
    for (layer, path) in manifest.layers.iter().zip(paths) {
        let known = files.iter().find(|(digest, _)| *digest == layer.digest);
        let found = match known {
            Some((_, known)) => known.clone(),
            None => facts(&path, true).map_err(|source| SaveError::Layer {
                layer: layer.module.to_string(),
                source: Box::new(source),
            })?,
        };
        if known.is_none() {
            files.push((layer.digest, found.clone()));
        }
        all.push(found);
    }
    Ok(all)
}

/// The same of the chunk tables that are here: images do without.
fn table_facts(
    cache: &Cache,
    manifest: &Manifest,
    files: &mut Vec<(Digest, Facts)>,
) -> Result<Vec<(Digest, Facts)>, SaveError> {
    let mut all: Vec<(Digest, Facts)> = Vec::new();
    for (layer, table) in manifest.layers.iter().filter_map(|l| Some((l, l.chunks.as_ref()?))) {
        let Ok(Some(path)) = cache.blob(table) else { continue };
        let fact = facts(&path, false).map_err(|source| SaveError::Layer {
            layer: layer.module.to_string(),
            source: Box::new(source),
        })?;
        for list in [&mut all, &mut *files] {
            if list.iter().all(|(digest, _)| *digest != table.digest) {
                list.push((table.digest, fact.clone()));
            }
        }
    }
    Ok(all)
}

fn write(
    cache: &Cache,
    index: &[u8],
    documents: &[Vec<u8>],
    files: &[(Digest, Facts)],
    out: &mut dyn Write,
) -> Result<Saved, SaveError> {
    let mut tar = tar::Builder::new(out);
    let mut entry = |name: &str, size: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).map_err(SaveError::Write)
    };
    let mut document = |name: &str, mut bytes: &[u8]| entry(name, bytes.len() as u64, &mut bytes);
    document("oci-layout", LAYOUT)?;
    document("index.json", index)?;
    let mut seen = HashSet::new();
    for bytes in documents {
        let name = form::sha256(bytes);
        if seen.insert(name.clone()) {
            document(&blob_name(&name), bytes)?;
        }
    }
    let mut saved = Saved::default();
    for (digest, facts) in files.iter().filter(|(_, facts)| seen.insert(facts.sha256.clone())) {
        let blob = Blob { digest: *digest, size: facts.size };
        let missing = || CacheError::Missing { what: digest.to_string() };
        let path = cache.blob(&blob)?.ok_or_else(missing)?;
        let mut file = File::open(&path).named("open", &path)?;
        entry(&blob_name(&facts.sha256), facts.size, &mut file)?;
        saved.blobs += 1;
        saved.bytes += facts.size;
    }
    tar.finish().map_err(SaveError::Write)?;
    Ok(saved)
}

fn blob_name(sha256: &str) -> String {
    format!("blobs/{}", sha256.replace(':', "/"))
}

/// Takes the packages of an archive into the cache, each after all of them were looked at. Of too many signatures, those by the
/// keys that `trust` names are kept first.
///
/// What is held at a time are the places of the blobs, at most 200,000, and the documents of one package, each of at most
/// 2 MiB. All documents that are read have at most 1 GiB together.
///
/// # Errors
/// It is no archive of packages, is damaged, exceeds the bounds, or lacks what the cache lacks too.
pub fn load(
    cache: &Cache,
    archive: &mut File,
    trust: &Trust,
) -> Result<Vec<PackageRef>, LoadError> {
    if look(archive)? == 0 {
        return Err(LoadError::NoPackage);
    }
    let places = Places::find(archive)?;
    let index = places.index(archive)?;
    let (mut leases, mut loaded) = (Vec::new(), Vec::new());
    for descriptor in &index.manifests {
        let Some(package) = places.package(archive, descriptor)? else { continue };
        let Package { manifest, signatures, facts } = package;
        leases.push(cache.lease_package(&manifest)?);
        for (digest, facts) in &facts {
            let blob = Blob { digest: *digest, size: facts.size };
            places.take_in(cache, archive, &facts.sha256, &blob)?;
        }
        let selector = Some(manifest.version.clone());
        let package = PackageRef { name: manifest.name.clone(), selector };
        if let Err(CacheError::Missing { what }) = cache.sources(&manifest) {
            return Err(LoadError::Incomplete { package, what });
        }
        with_room(cache, || cache.add_signatures(&manifest, &signatures, trust))?;
        with_room(cache, || cache.record(&manifest, &[]))?;
        loaded.push(package);
    }
    Ok(loaded)
}

/// Looks at the packages of an archive, as [`load`] does first.
pub(crate) fn look(archive: &mut File) -> Result<usize, LoadError> {
    let places = Places::find(archive)?;
    let mut packages = 0;
    for descriptor in &places.index(archive)?.manifests {
        packages += usize::from(places.package(archive, descriptor)?.is_some());
    }
    Ok(packages)
}

/// Where the members of an archive are.
struct Places {
    index: Option<Place>,
    /// By the hash in their names.
    blobs: HashMap<[u8; 32], Place>,
    /// Bytes of documents that may still be read: many may name one.
    budget: Cell<u64>,
}

#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

/// A package in an archive, and what its blobs are called there.
struct Package {
    manifest: Manifest,
    signatures: Signatures,
    facts: Vec<(Digest, Facts)>,
}

impl Places {
    fn find(archive: &File) -> Result<Self, LoadError> {
        let (mut index, mut blobs) = (None, HashMap::new());
        let mut members = Members::new(archive);
        while let Some(member) = members.next().map_err(LoadError::Read)? {
            let Member { name, offset, size } = member;
            let name = name.strip_prefix(b"./").unwrap_or(&name);
            if name == b"index.json" {
                // Which of two counts is a matter of the reader.
                if index.replace(Place { offset, size }).is_some() {
                    return Err(LoadError::Bound("two indexes"));
                }
            } else if let Some(hash) = name.strip_prefix(b"blobs/sha256/").and_then(from_hex) {
                blobs.entry(hash).or_insert(Place { offset, size });
                if blobs.len() > MAX_BLOBS {
                    return Err(LoadError::Bound("too many blobs"));
                }
            }
        }
        Ok(Self { index, blobs, budget: Cell::new(MAX_READ) })
    }

    fn read(&self, archive: &mut File, place: Place) -> Result<Vec<u8>, LoadError> {
        if place.size > MAX_DOCUMENT {
            return Err(LoadError::Bound("a document that is too large"));
        }
        let left = self.budget.get().checked_sub(place.size);
        self.budget.set(left.ok_or(LoadError::Bound("too many documents"))?);
        let mut bytes = vec![0; place.size as usize];
        archive.read_exact_at(&mut bytes, place.offset).map_err(LoadError::Read)?;
        Ok(bytes)
    }

    fn index(&self, archive: &mut File) -> Result<OciIndex, LoadError> {
        let place = self.index.ok_or(LoadError::NoPackage)?;
        let mut index: OciIndex =
            form::parse(&self.read(archive, place)?).map_err(|error| bad("index.json", error))?;
        let mut seen = HashSet::new();
        index.manifests.retain(|descriptor| seen.insert(descriptor.digest.clone()));
        match index.manifests.len() > MAX_PACKAGES {
            true => Err(LoadError::Bound("too many packages")),
            false => Ok(index),
        }
    }

    /// A document by its SHA-256, verified.
    fn get(&self, archive: &mut File, sha256: &str) -> Result<Vec<u8>, LoadError> {
        let damaged = || LoadError::Damaged { name: blob_name(sha256) };
        let bytes = self.read(archive, self.place(sha256).ok_or_else(damaged)?)?;
        if form::sha256(&bytes) == sha256 { Ok(bytes) } else { Err(damaged()) }
    }

    fn place(&self, sha256: &str) -> Option<Place> {
        self.blobs.get(&from_hex(sha256.strip_prefix("sha256:")?.as_bytes())?).copied()
    }

    fn parse<T: serde::de::DeserializeOwned>(
        &self,
        archive: &mut File,
        sha256: &str,
    ) -> Result<T, LoadError> {
        form::parse(&self.get(archive, sha256)?).map_err(|source| bad(&blob_name(sha256), source))
    }

    /// What an index names; `None` if that is no package of ours.
    fn package(
        &self,
        archive: &mut File,
        descriptor: &Descriptor,
    ) -> Result<Option<Package>, LoadError> {
        let image: OciManifest = self.parse(archive, &descriptor.digest)?;
        let Some((_, entry)) = image.entry() else { return Ok(None) };
        let config = &image.config.digest;
        let damaged = || LoadError::Damaged { name: blob_name(config) };
        let (json, _) = form::read_config(&self.get(archive, config)?)
            .map_err(|error| bad(&blob_name(config), error))?;
        if Digest::of(&json) != entry.manifest.digest {
            return Err(damaged());
        }
        let manifest = Manifest::from_json(&json).map_err(|_| damaged())?;
        let mut facts: Vec<(Digest, Facts)> = image.facts().collect();
        if let Some(companion) = descriptor.annotations.get(COMPANION) {
            facts.extend(self.parse::<OciManifest>(archive, companion)?.facts());
        }
        let text = descriptor.annotations.get(form::SIGNATURES);
        let signatures = text.map(|text| Signatures::parse(text.as_bytes())).transpose();
        let signatures = signatures.map_err(|error| bad("index.json", error.into()))?;
        Ok(Some(Package { manifest, signatures: signatures.unwrap_or_default(), facts }))
    }

    /// Brings a blob into the cache if the archive has it; it is verified by its BLAKE3 before it counts.
    fn take_in(
        &self,
        cache: &Cache,
        archive: &mut File,
        sha256: &str,
        blob: &Blob,
    ) -> Result<(), LoadError> {
        let Some(place) = self.place(sha256) else { return Ok(()) };
        archive.seek(SeekFrom::Start(place.offset)).map_err(LoadError::Read)?;
        match cache.store_from(blob, &mut archive.take(place.size))? {
            Stored::Whole => Ok(()),
            Stored::Wrong => Err(LoadError::Damaged { name: blob_name(sha256) }),
            Stored::Unread(source) => Err(LoadError::Read(source)),
        }
    }
}

fn bad(name: &str, source: ParseIndexError) -> LoadError {
    LoadError::Document { name: name.to_owned(), source }
}

fn from_hex(text: &[u8]) -> Option<[u8; 32]> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 64)?;
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}
