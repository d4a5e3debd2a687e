//! An OCI registry: docker-registry, Harbor, those of the clouds.
//!
//! A package is a repository, a version a tag; [`form`] says what the documents look like. Blobs there are named by SHA-256, ours
//! by BLAKE3: what a registry's documents say of that is kept in `Known`. So whoever wants the bytes of a layer first resolves a
//! package that has it, as a pull does anyway.
//!
//! Layers go into the repository `mica/layers` and are mounted from there into those of the packages. It also has, under the digest
//! of its inputs as a tag, a note for each layer, which says what was packed from what and keeps the registry from collecting it;
//! and likewise a note of the patches of an image, under `patches-` and its digest, which keeps those.
//!
//! The registry cannot compare and swap: of two publishers who push different content as the same version at the same moment, the
//! later one wins; one that comes later than that is refused.

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use mica_graph::{Blob, Digest, Layer, Manifest, PackageName, PackageRef, Version};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, LINK};

use super::files::document;
use super::http::{Ranged, ranged};
use super::{
    AddError, BlobStream, Content, Entry, HttpOptions, Index, Publication, Published, Registry,
    RegistryError, Resolved, WordKind, WriteRegistry,
};
use crate::parallel;
use crate::patch::{PatchNote, PatchNotes};
use crate::trust::Signatures;

mod auth;
mod client;
pub(crate) mod conf;
pub(crate) mod form;
pub(crate) mod names;
mod upload;
mod write;

use client::Client;
use form::{
    COMPANION_TYPE, Descriptor, Facts, INDEX_TYPE, MANIFEST_TYPE, OciIndex, OciManifest,
    SIGNATURES, SIGNATURES_TYPE,
};
use names::LAYERS;
pub(crate) use names::Location;
pub(crate) use upload::facts;
use upload::pull_scope;

/// Manifests may be so large (docker-registry's own limit).
const MAX_MANIFEST: u64 = 4 << 20;
/// A list of more pages than this, more words, more bytes, or that takes longer, is none.
const MAX_PAGES: usize = 1000;
const MAX_WORDS: usize = 100_000;
const MAX_LIST: usize = 16 << 20;
const MAX_TIME: Duration = Duration::from_secs(300);
/// So many blobs are known of a registry at a time. More are found again when they are wanted.
const MAX_KNOWN: usize = 100_000;
/// So many documents that refer to an image are looked at.
const MAX_REFERRERS: usize = 64;
/// Requests for small documents at a time.
const PARALLEL: usize = 8;

/// An OCI registry, and a place in it. Its calls block and must not be made from async code.
pub struct OciRegistry {
    client: Client,
    location: Location,
    known: Arc<Mutex<Known>>,
}

/// What was learned of this registry and its mirrors.
#[derive(Default)]
struct Known {
    places: HashMap<Digest, Place>,
    /// Manifests of ours that were read, or are to be published.
    documents: HashMap<Digest, Vec<u8>>,
    /// Images whose companions were not looked at yet: repository and digest.
    images: Vec<(String, String)>,
    /// The same of every image, by the digest of the package's manifest.
    packages: HashMap<Digest, (String, Descriptor)>,
    /// Signatures of manifests that are to be published.
    signatures: HashMap<Digest, Signatures>,
    /// Files that blobs were sent from.
    files: HashMap<Digest, PathBuf>,
}

/// Where some bytes are.
#[derive(Clone, Debug)]
struct Place {
    /// The repository, below the registry's path.
    below: String,
    facts: Facts,
    /// They are a part of this blob: an image's configuration.
    in_config: bool,
}

impl OciRegistry {
    /// The registry at an address, and its mirrors, as `registries.conf` has them. Nothing is sent yet.
    pub(crate) fn open(
        location: Location,
        conf: Option<&Path>,
        options: &HttpOptions,
    ) -> Result<(Self, Vec<Self>), RegistryError> {
        let found = conf::resolve(conf, location)?;
        let known = Arc::new(Mutex::default());
        let new = |location: Location| {
            let client = Client::new(&location, options)?;
            Ok::<_, RegistryError>(Self { client, location, known: Arc::clone(&known) })
        };
        let mirrors = found.mirrors.into_iter().map(new).collect::<Result<_, _>>()?;
        Ok((new(found.origin)?, mirrors))
    }

    /// Asks for something that only whoever may use the registry gets.
    pub(crate) fn ping(&self) -> Result<(), RegistryError> {
        self.client.get("", "", "*/*", 1 << 20)?;
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Maps are whole at every moment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A manifest by tag or digest: itself, its bytes.
    fn fetch(
        &self,
        below: &str,
        reference: &str,
    ) -> Result<Option<(OciManifest, Vec<u8>)>, RegistryError> {
        let Some(bytes) = self.fetch_bytes(below, reference, MANIFEST_TYPE)? else {
            return Ok(None);
        };
        let manifest: OciManifest = form::parse(&bytes)
            .map_err(|source| document(self.name_of(below, reference), source))?;
        self.learn(below, &manifest, &bytes);
        Ok(Some((manifest, bytes)))
    }

    fn fetch_bytes(
        &self,
        below: &str,
        reference: &str,
        kind: &str,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let repository = self.location.repository(below);
        let path = format!("{repository}/manifests/{reference}");
        let scope = pull_scope(&repository);
        let Some((_, bytes)) = self.client.get(&path, &scope, kind, MAX_MANIFEST)? else {
            return Ok(None);
        };
        if reference.starts_with("sha256:") && form::sha256(&bytes) != reference {
            return Err(self.wrong_document(below, reference));
        }
        Ok(Some(bytes))
    }

    fn name_of(&self, below: &str, reference: &str) -> String {
        format!("{}/{below}:{reference}", self.location)
    }

    fn wrong_document(&self, below: &str, reference: &str) -> RegistryError {
        let source = super::ParseIndexError::Digest;
        document(self.name_of(below, reference), source)
    }

    /// Notes what a manifest says of BLAKE3 digests.
    fn learn(&self, below: &str, manifest: &OciManifest, bytes: &[u8]) {
        let mut known = self.known();
        if known.places.len() > MAX_KNOWN {
            known.places.clear();
            known.images.clear();
            known.packages.clear();
        }
        for (digest, facts) in manifest.facts() {
            let place = Place { below: below.to_owned(), facts, in_config: false };
            let held = known.places.entry(digest).or_insert_with(|| place.clone());
            // What is in the package's own repository is the better place: it may be all that one may read.
            if held.below == LAYERS {
                let diff_id = held.facts.diff_id.clone().or(place.facts.diff_id.clone());
                *held = Place { facts: Facts { diff_id, ..place.facts }, ..place };
            }
        }
        if let Some((_, entry)) = manifest.entry() {
            let config = &manifest.config;
            let facts = Facts { sha256: config.digest.clone(), size: config.size, diff_id: None };
            let place = Place { below: below.to_owned(), facts, in_config: true };
            known.places.insert(entry.manifest.digest, place);
            let image = Descriptor::of(MANIFEST_TYPE, bytes);
            known.images.push((below.to_owned(), image.digest.clone()));
            known.packages.insert(entry.manifest.digest, (below.to_owned(), image));
        }
    }

    /// The image that a tag names, with its package and entry.
    fn image(&self, name: &PackageName, tag: &str) -> Result<Option<Found>, RegistryError> {
        let below = names::repository(name)?;
        let Some((manifest, bytes)) = self.fetch(&below, tag)? else { return Ok(None) };
        let Some((package, entry)) = manifest.entry() else {
            return Err(RegistryError::ForeignImage { image: self.name_of(&below, tag) });
        };
        if package != *name {
            let (registry, nearest) = (self.location.to_string(), vec![package]);
            return Err(RegistryError::UnknownPackage { registry, name: name.clone(), nearest });
        }
        Ok(Some(Found { entry, time: manifest.time(), bytes }))
    }

    /// All tags of a repository; `None` if there is no such repository.
    fn tags(&self, below: &str) -> Result<Option<Vec<String>>, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Tags {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let repository = self.location.repository(below);
        let path = format!("{repository}/tags/list?n=1000");
        self.words::<Tags>(&path, &pull_scope(&repository), |page| page.tags)
    }

    /// A list of words that comes in pages, each naming the next in its `Link` header (RFC 5988); `None` where there is none.
    fn words<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        scope: &str,
        words_of: fn(T) -> Option<Vec<String>>,
    ) -> Result<Option<Vec<String>>, RegistryError> {
        let (mut words, mut length, begun) = (Vec::new(), 0, Instant::now());
        let mut next = path.to_owned();
        for _ in 0..MAX_PAGES {
            let json = "application/json";
            let Some((head, bytes)) = self.client.get(&next, scope, json, MAX_MANIFEST)? else {
                return Ok(None);
            };
            let page = form::parse(&bytes).map_err(|source| document(&head.url, source))?;
            words.extend(words_of(page).unwrap_or_default());
            length += bytes.len();
            let link = head.headers.get(LINK).and_then(|link| link.to_str().ok());
            let link = link.and_then(|link| Some(link.split_once('<')?.1.split_once('>')?.0));
            match link.and_then(|link| head.url.join(link).ok()) {
                Some(url) => next = url.into(),
                None => return Ok(Some(words)),
            }
            if words.len() > MAX_WORDS || length > MAX_LIST || begun.elapsed() > MAX_TIME {
                break;
            }
        }
        Err(document(next, super::ParseIndexError::Endless))
    }

    /// The versions and tags behind some tags, newest first.
    fn index_of(&self, name: &PackageName, tags: &[String]) -> Result<Index, RegistryError> {
        let tags: Vec<&String> = tags.iter().filter(is_word).collect();
        // Of each no more than is needed: there may be very many.
        let short = |found: Found| (found.entry, found.time);
        let found = parallel::map(PARALLEL, &tags, |tag| Ok(self.image(name, tag)?.map(short)));
        let mut index = Index::new(name.clone());
        let mut versions = Vec::new();
        for (tag, found) in tags.into_iter().zip(found) {
            let (entry, time) = match found {
                Ok(Some(found)) => found,
                // Somebody else's image in the same repository, or a tag that went away meanwhile.
                Ok(None) | Err(RegistryError::ForeignImage { .. }) => continue,
                Err(error) => return Err(error),
            };
            if names::tag(&entry.version) == *tag {
                versions.push((time, entry));
            } else if let Ok(tag) = tag.parse() {
                index.tags.insert(tag, entry.version);
            }
        }
        versions.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        index.versions = versions.into_iter().map(|(_, entry)| entry).collect();
        Ok(index)
    }

    /// Where a blob is, by what is known and by the companions of the images read so far.
    fn place(&self, digest: &Digest) -> Result<Place, RegistryError> {
        loop {
            let next = {
                let mut known = self.known();
                if let Some(place) = known.places.get(digest) {
                    return Ok(place.clone());
                }
                known.images.pop()
            };
            let Some((below, image)) = next else {
                let registry = self.location.to_string();
                return Err(RegistryError::MissingBlob { registry, digest: *digest });
            };
            self.learn_companions(&below, &image)?;
        }
    }

    fn learn_companions(&self, below: &str, image: &str) -> Result<(), RegistryError> {
        let Some(index) = self.referrers(below, image)? else { return Ok(()) };
        for companion in form::of_type(&index, COMPANION_TYPE).take(MAX_REFERRERS) {
            self.fetch(below, &companion.digest)?;
        }
        Ok(())
    }

    /// What refers to an image: by the tag that the OCI specification falls back to, which every registry can have.
    fn referrers(&self, below: &str, image: &str) -> Result<Option<OciIndex>, RegistryError> {
        let tag = image.replace(':', "-");
        let Some(bytes) = self.fetch_bytes(below, &tag, INDEX_TYPE)? else { return Ok(None) };
        let parsed = form::parse(&bytes);
        Ok(Some(parsed.map_err(|source| document(self.name_of(below, &tag), source))?))
    }

    /// The signatures that refer to an image.
    fn signatures_of(&self, below: &str, image: &str) -> Result<Signatures, RegistryError> {
        let mut all = Signatures::default();
        let index = self.referrers(below, image)?;
        let found = index.iter().flat_map(|index| form::of_type(index, SIGNATURES_TYPE));
        for found in found.take(MAX_REFERRERS) {
            let Some((manifest, _)) = self.fetch(below, &found.digest)? else { continue };
            let text = manifest.annotations.get(SIGNATURES).map(String::as_bytes);
            let name = self.name_of(below, &found.digest);
            all.merge(&super::parse_signatures(name, text.map(<[u8]>::to_vec))?);
        }
        Ok(all)
    }

    /// A package's manifest out of the configuration of its image.
    fn read_config(&self, place: &Place, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let bytes = self.small(place)?;
        let (json, diff_ids) = form::read_config(&bytes)
            .map_err(|source| document(self.name_of(&place.below, &place.facts.sha256), source))?;
        let mut known = self.known();
        if let Ok(manifest) = Manifest::from_json(&json) {
            for (layer, diff_id) in manifest.layers.iter().rev().zip(diff_ids) {
                if let Some(place) = known.places.get_mut(&layer.digest) {
                    place.facts.diff_id = Some(diff_id);
                }
            }
        }
        known.documents.insert(*digest, json.clone());
        Ok(json)
    }

    /// A small blob, verified by its SHA-256.
    fn small(&self, place: &Place) -> Result<Vec<u8>, RegistryError> {
        let repository = self.location.repository(&place.below);
        let path = format!("{repository}/blobs/{}", place.facts.sha256);
        let found = self.client.get(&path, &pull_scope(&repository), "*/*", form::CONFIG.bytes)?;
        match found {
            Some((_, bytes)) if form::sha256(&bytes) == place.facts.sha256 => Ok(bytes),
            _ => Err(self.wrong_document(&place.below, &place.facts.sha256)),
        }
    }
}

/// An image of ours.
struct Found {
    entry: Entry,
    time: Duration,
    bytes: Vec<u8>,
}

/// Whether a tag is somebody's word for an image, not what OCI falls back to for those that refer to one: registries list
/// both, in any order.
fn is_word(tag: &&String) -> bool {
    !tag.starts_with("sha256-")
}

impl Registry for OciRegistry {
    fn address(&self) -> &str {
        &self.client.sender.address
    }

    fn packages(&self) -> Result<Vec<PackageName>, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Catalog {
            #[serde(default)]
            repositories: Option<Vec<String>>,
        }
        let words = self
            .words::<Catalog>("_catalog?n=1000", "registry:catalog:*", |page| page.repositories)?;
        let repositories = words.unwrap_or_default();
        let below: Vec<&str> =
            repositories.iter().filter_map(|full| self.location.below(full)).collect();
        // The real name is in the manifests.
        let name = |below: &str| -> Result<Option<PackageName>, RegistryError> {
            let tags = self.tags(below)?.unwrap_or_default();
            let Some(tag) = tags.iter().find(is_word) else { return Ok(None) };
            let found = self.fetch(below, tag)?;
            Ok(found.and_then(|(manifest, _)| Some(manifest.entry()?.0)))
        };
        let names = parallel::map(PARALLEL, &below, |below| match name(below) {
            // Somebody else's, or something else.
            Err(error) if !error.is_transient() => Ok(None),
            found => found,
        });
        let names = names.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut names: Vec<PackageName> = names.into_iter().flatten().collect();
        names.sort();
        Ok(names)
    }

    fn index(&self, name: &PackageName) -> Result<Option<Index>, RegistryError> {
        let Some(tags) = self.tags(&names::repository(name)?)? else { return Ok(None) };
        let index = self.index_of(name, &tags)?;
        Ok(Some(index).filter(|index| !index.versions.is_empty()))
    }

    fn entry(&self, name: &PackageName, version: &Version) -> Result<Option<Entry>, RegistryError> {
        let found = self.image(name, &names::tag(version))?;
        Ok(found.map(|found| found.entry).filter(|entry| entry.version == *version))
    }

    fn resolve(&self, package: &PackageRef) -> Result<Resolved, RegistryError> {
        let name = &package.name;
        let latest = || Index::LATEST.parse().expect("`latest` is a word");
        let word: Version = package.selector.clone().unwrap_or_else(latest);
        if let Some(Found { entry, .. }) = self.image(name, &names::tag(&word))? {
            let tag = (entry.version != word).then_some(word);
            let Entry { version, manifest, .. } = entry;
            return Ok(Resolved { name: name.clone(), version, manifest, tag });
        }
        let Some(tags) = self.tags(&names::repository(name)?)? else {
            return Err(super::unknown_package(self, name));
        };
        let (start, all) = (names::tag(&word), package.selector.is_none());
        let fits = |tag: &&String| all || tag.starts_with(&start);
        let matching: Vec<String> = tags.iter().filter(fits).cloned().collect();
        let mut index = self.index_of(name, &matching)?;
        if index.versions.is_empty() {
            // Only for what the message says.
            let blank = Blob { digest: Digest::of(b""), size: 0 };
            let entry = |version| Entry { version, manifest: blank.clone(), time: 0 };
            index.versions = tags.iter().filter_map(|tag| tag.parse().ok()).map(entry).collect();
        }
        let select = |source| RegistryError::Select { registry: self.address().to_owned(), source };
        index.resolve(package).map_err(select)
    }

    fn blob(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        let held = self.known().documents.get(&blob.digest).cloned();
        if let Some(bytes) = held {
            return Ok(BlobStream { start: 0, reader: Box::new(Cursor::new(bytes)) });
        }
        let place = self.place(&blob.digest)?;
        if place.in_config {
            let bytes = self.read_config(&place, &blob.digest)?;
            return Ok(BlobStream { start: 0, reader: Box::new(Cursor::new(bytes)) });
        }
        let repository = self.location.repository(&place.below);
        let url = self.client.url(&format!("{repository}/blobs/{}", place.facts.sha256))?;
        let scope = pull_scope(&repository);
        let limit = self.client.sender.options.idle_timeout;
        let send = |range: Ranged<'_>| {
            self.client.send(Method::GET, &url, &scope, limit, &|request| range.add_to(request))
        };
        ranged(&self.client.sender, blob, range, &send)
    }

    fn signatures(&self, manifest: &Digest) -> Result<Signatures, RegistryError> {
        let image = self.known().packages.get(manifest).cloned();
        image.map_or(Ok(Signatures::default()), |(below, image)| {
            self.signatures_of(&below, &image.digest)
        })
    }

    fn layer_by_inputs(&self, inputs: &Digest) -> Result<Option<Layer>, RegistryError> {
        let Some((manifest, _)) = self.fetch(LAYERS, &inputs.hex())? else { return Ok(None) };
        Ok(manifest.noted_layer().filter(|layer| layer.inputs == *inputs))
    }

    fn patches(&self, image: &Digest) -> Result<Vec<PatchNote>, RegistryError> {
        let found = self.fetch(LAYERS, &names::patches(image))?;
        let notes = found.and_then(|(manifest, _)| manifest.noted_patches(image));
        Ok(notes.unwrap_or_default())
    }
}
