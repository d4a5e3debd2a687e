//! Packages as one file: an OCI image layout in a tar, for machines without a network.
//!
//! The documents are those of an OCI registry and come first: layout, index, manifests, configurations; then each blob once,
//! whichever packages share it. Packages may be left out that the other side has (`since`): then their blobs are, too, and nothing
//! else changes. An image that any other tool copied into such a file is as good as ours, as long as it is a package.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::time::Duration;

use mica_graph::{Blob, Digest, Manifest, PackageRef};

use crate::cache::{Cache, CacheError, LookupError, Stored, blobs};
use crate::file::{FileError, Named};
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
            Self::Document { .. } => None,
        }
    }
}

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const COMPANION: &str = "dev.mica.companion";
/// A document larger than this is none.
const MAX_DOCUMENT: u64 = 4 << 20;

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

/// Takes the packages of an archive into the cache. It is read twice: what it holds first, then what of that is missing here.
/// Of too many signatures, those by the keys that `trust` names are kept first.
pub fn load(cache: &Cache, archive: &mut File, trust: &Trust) -> Result<Vec<Manifest>, LoadError> {
    let documents = Documents::read(archive)?;
    let packages = documents.packages()?;
    let (mut wanted, mut leases) = (HashMap::new(), Vec::new());
    for package in &packages {
        leases.push(cache.lease_package(&package.manifest)?);
        for (digest, facts) in &package.facts {
            let blob = Blob { digest: *digest, size: facts.size };
            wanted.insert(blob_name(&facts.sha256), blob);
        }
    }
    take_in(cache, archive, &wanted)?;
    for Package { manifest, signatures, .. } in &packages {
        if let Err(CacheError::Missing { what }) = cache.sources(manifest) {
            let (name, selector) = (manifest.name.clone(), Some(manifest.version.clone()));
            return Err(LoadError::Incomplete { package: PackageRef { name, selector }, what });
        }
        with_room(cache, || cache.add_signatures(manifest, signatures, trust))?;
        with_room(cache, || cache.record(manifest, &[]))?;
    }
    Ok(packages.into_iter().map(|package| package.manifest).collect())
}

/// The small JSON files of an archive, by name.
struct Documents(HashMap<String, Vec<u8>>);

/// A package in an archive, and what its blobs are called there.
struct Package {
    manifest: Manifest,
    signatures: Signatures,
    facts: Vec<(Digest, Facts)>,
}

impl Documents {
    fn read(archive: &mut File) -> Result<Self, LoadError> {
        let mut documents = HashMap::new();
        archive.rewind().map_err(LoadError::Read)?;
        let mut tar = tar::Archive::new(archive);
        for entry in tar.entries().map_err(LoadError::Read)? {
            let mut entry = entry.map_err(LoadError::Read)?;
            let Some(name) = name_of(&entry) else { continue };
            if entry.size() > MAX_DOCUMENT {
                continue;
            }
            let mut bytes = vec![0; 1];
            if entry.read(&mut bytes).map_err(LoadError::Read)? == 0 || bytes[0] != b'{' {
                continue;
            }
            entry.read_to_end(&mut bytes).map_err(LoadError::Read)?;
            documents.insert(name, bytes);
        }
        Ok(Self(documents))
    }

    /// A document by its SHA-256, verified.
    fn get(&self, sha256: &str) -> Result<&[u8], LoadError> {
        let name = blob_name(sha256);
        match self.0.get(&name) {
            Some(bytes) if form::sha256(bytes) == sha256 => Ok(bytes),
            _ => Err(LoadError::Damaged { name }),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, sha256: &str) -> Result<T, LoadError> {
        let name = || blob_name(sha256);
        serde_json::from_slice(self.get(sha256)?)
            .map_err(|source| LoadError::Document { name: name(), source: source.into() })
    }

    fn packages(&self) -> Result<Vec<Package>, LoadError> {
        let index = self.0.get("index.json").ok_or(LoadError::NoPackage)?;
        let bad = |name: &str, source| LoadError::Document { name: name.to_owned(), source };
        let index: OciIndex =
            serde_json::from_slice(index).map_err(|e| bad("index.json", e.into()))?;
        let mut packages = Vec::new();
        for descriptor in &index.manifests {
            let image: OciManifest = self.parse(&descriptor.digest)?;
            let Some((_, entry)) = image.entry() else { continue };
            let config = &image.config.digest;
            let (json, _) =
                form::read_config(self.get(config)?).map_err(|e| bad(&blob_name(config), e))?;
            if Digest::of(&json) != entry.manifest.digest {
                return Err(LoadError::Damaged { name: blob_name(config) });
            }
            let manifest = Manifest::from_json(&json)
                .map_err(|_| LoadError::Damaged { name: blob_name(config) })?;
            let mut facts: Vec<(Digest, Facts)> = image.facts().collect();
            if let Some(companion) = descriptor.annotations.get(COMPANION) {
                facts.extend(self.parse::<OciManifest>(companion)?.facts());
            }
            let text = descriptor.annotations.get(form::SIGNATURES);
            let signatures = text.map(|text| Signatures::parse(text.as_bytes())).transpose();
            let signatures = signatures.map_err(|e| bad("index.json", e.into()))?;
            let signatures = signatures.unwrap_or_default();
            packages.push(Package { manifest, signatures, facts });
        }
        if packages.is_empty() { Err(LoadError::NoPackage) } else { Ok(packages) }
    }
}

/// An entry's name, without a `./` before it.
fn name_of(entry: &tar::Entry<'_, impl Read>) -> Option<String> {
    let path: PathBuf = entry.path().ok()?.into_owned();
    let name = path.to_str()?;
    Some(name.strip_prefix("./").unwrap_or(name).to_owned())
}

/// Brings the wanted blobs into the cache, each verified by its BLAKE3 before it counts.
fn take_in(
    cache: &Cache,
    archive: &mut File,
    wanted: &HashMap<String, Blob>,
) -> Result<(), LoadError> {
    archive.rewind().map_err(LoadError::Read)?;
    let mut tar = tar::Archive::new(archive);
    for entry in tar.entries().map_err(LoadError::Read)? {
        let mut entry = entry.map_err(LoadError::Read)?;
        let Some(name) = name_of(&entry) else { continue };
        let Some(blob) = wanted.get(&name) else { continue };
        match cache.store_from(blob, &mut entry)? {
            Stored::Whole => {}
            Stored::Wrong => return Err(LoadError::Damaged { name }),
            Stored::Unread(source) => return Err(LoadError::Read(source)),
        }
    }
    Ok(())
}
