//! Registries: where manifests and images are published.
//!
//! Interfaces are graded by power: whoever only fetches asks for a [`Registry`], whoever publishes for a
//! [`WriteRegistry`]. Every registry but OCI ones shows the same tree of files, so that a plain static file server
//! over a registry folder is a registry too, and so is a bucket:
//!
//! ```text
//! mica-registry.json                 {"mica-registry":1}   the layout's version
//! packages.json                      ["A","B",…]           names, sorted
//! packages/<name>/index.json         versions and tags, see `Index`
//! blobs/blake3/<2 hex>/<64 hex>      images, chunk tables and manifests, by the BLAKE3 of their bytes; never change
//! signatures/<64 hex>.minisig        the signatures of a manifest, by its digest; more may be added
//! layers/<64 hex>.json               inputs digest -> the layer packed from them, so that equal inputs are packed once
//! patches/<64 hex>.json              image digest -> the patches that make it of older images, see [`PatchNote`]
//! locks/, incoming/                  of writers; no business of readers
//! ```
//!
//! A document is replaced by rename, under the lock of its package: readers see the old or the new one, and of
//! concurrent publishers none loses anything. A version never changes its manifest; tags move.
//! A manifest is published only when all its blobs are there.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use mica_graph::{Blob, Digest, JsonBounds, Layer, Manifest, PackageName, PackageRef, Version};

use crate::patch::PatchNote;
use crate::trust::Signatures;

mod bounded;
mod credentials;
pub(crate) use credentials::fuzz as fuzz_credentials;
mod dir;
mod error;
mod files;
pub(crate) mod http;
mod index;
pub(crate) mod layout;
mod mirrored;
pub(crate) mod oci;
mod open;
mod s3;
mod source;
mod sweep;
mod token;
pub(crate) mod wire;

pub use credentials::Credentials;
pub use dir::DirRegistry;
pub use error::RegistryError;
pub(crate) use files::Files;
pub use http::{Access, HttpOptions, HttpRegistry, RateLimit};
pub use index::{AddError, Entry, Index, ParseIndexError, Resolved, SelectError, WordKind};
pub use mirrored::MirroredRegistry;
pub use oci::OciRegistry;
pub use open::{check_login, is_folder, open, open_writable};
pub use s3::{AwsSettings, S3Registry};
pub use source::Source;
pub use sweep::Swept;
pub(crate) use sweep::on_disk;

/// Whence packages come.
pub trait Registry: Send + Sync {
    /// What a person calls it: a folder or a URL.
    fn address(&self) -> &str;

    /// The names of all packages, sorted.
    fn packages(&self) -> Result<Vec<PackageName>, RegistryError>;

    /// The versions and tags of a package; `None` if there is no such package.
    fn index(&self, name: &PackageName) -> Result<Option<Index>, RegistryError>;

    /// A part of a blob, not verified. A source that cannot give parts starts at 0: see [`BlobStream::start`].
    fn blob(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError>;

    /// The layer that was packed from these inputs, if one was and its image is there.
    fn layer_by_inputs(&self, inputs: &Digest) -> Result<Option<Layer>, RegistryError>;

    /// The patches there are that make this image of older ones.
    fn patches(&self, _image: &Digest) -> Result<Vec<PatchNote>, RegistryError> {
        Ok(Vec::new())
    }

    /// The signatures of a manifest that was found here. Nothing of them is verified yet.
    fn signatures(&self, manifest: &Digest) -> Result<Signatures, RegistryError>;

    /// Says that what came of a blob was wrong, so that another source is asked for it, if there is one.
    fn distrust(&self, _blob: &Blob) {}

    /// How many sources there are: so many times wrong bytes may come before a transfer is given up.
    fn sources(&self) -> usize {
        1
    }

    /// What is published as exactly this version.
    fn entry(&self, name: &PackageName, version: &Version) -> Result<Option<Entry>, RegistryError> {
        Ok(self.index(name)?.and_then(|index| index.entry(version).cloned()))
    }

    /// The version a reference means.
    fn resolve(&self, package: &PackageRef) -> Result<Resolved, RegistryError> {
        let select = |source| RegistryError::Select { registry: self.address().to_owned(), source };
        match self.index(&package.name)? {
            Some(index) => index.resolve(package).map_err(select),
            None => Err(unknown_package(self, &package.name)),
        }
    }

    /// A package's manifest, verified.
    fn manifest(&self, resolved: &Resolved) -> Result<Manifest, RegistryError> {
        let bytes = self.document(&resolved.manifest, Manifest::BOUNDS.bytes)?;
        let manifest = Manifest::from_json(&bytes).map_err(|source| {
            let digest = resolved.manifest.digest;
            RegistryError::Manifest { registry: self.address().to_owned(), digest, source }
        })?;
        if manifest.name != resolved.name || manifest.version != resolved.version {
            return Err(RegistryError::OtherPackage {
                registry: self.address().to_owned(),
                wanted: format!("{}@{}", resolved.name, resolved.version),
                found: format!("{}@{}", manifest.name, manifest.version),
            });
        }
        Ok(manifest)
    }

    /// The bytes of a small blob, verified; more than `limit` are refused before any comes.
    fn document(&self, blob: &Blob, limit: u64) -> Result<Vec<u8>, RegistryError> {
        if blob.size > limit {
            let (digest, size) = (blob.digest, blob.size);
            return Err(RegistryError::TooLarge {
                registry: self.address().to_owned(),
                digest,
                size,
            });
        }
        crate::retry::Retry::default().run(|| read_document(self, blob))
    }
}

/// The largest chunk table that is used: that of an image of some 20 GB. One for which that is too little goes without.
pub(crate) const MAX_TABLE: u64 = 16 << 20;

/// How long the chunk table of an image of `size` bytes may be.
pub(crate) fn longest_table(size: u64) -> u64 {
    mica_squashfs::chunks::ChunkTable::longest(size).min(MAX_TABLE)
}

/// The note of a layer: what was packed from what.
const LAYER: JsonBounds = JsonBounds::new(64 << 10, 1000);
/// The list of packages.
const PACKAGES: JsonBounds = JsonBounds::new(8 << 20, 100_000);

fn read_document<R: Registry + ?Sized>(
    registry: &R,
    blob: &Blob,
) -> Result<Vec<u8>, RegistryError> {
    let stream = registry.blob(blob, 0..blob.size)?;
    let mut bytes = Vec::new();
    let mut reader = stream.reader.take(blob.size + 1);
    reader.read_to_end(&mut bytes).map_err(|source| RegistryError::Broken {
        registry: registry.address().to_owned(),
        digest: blob.digest,
        source,
    })?;
    check_bytes(registry.address(), blob, &bytes)?;
    Ok(bytes)
}

pub(crate) fn check_bytes(registry: &str, blob: &Blob, bytes: &[u8]) -> Result<(), RegistryError> {
    let (registry, expected) = (registry.to_owned(), blob.digest);
    if bytes.len() as u64 != blob.size {
        let found = bytes.len() as u64;
        return Err(RegistryError::WrongSize {
            registry,
            digest: expected,
            expected: blob.size,
            found,
        });
    }
    let found = Digest::of(bytes);
    if found != expected {
        return Err(RegistryError::WrongBytes { registry, expected, found });
    }
    Ok(())
}

/// A document of signatures, which may not be there.
fn parse_signatures(name: String, bytes: Option<Vec<u8>>) -> Result<Signatures, RegistryError> {
    let parsed = bytes.map(|bytes| Signatures::parse(&bytes)).transpose();
    parsed.map(Option::unwrap_or_default).map_err(|source| files::document(name, source.into()))
}

fn unknown_package<R: Registry + ?Sized>(registry: &R, name: &PackageName) -> RegistryError {
    // The list only serves the hint: that it cannot be had changes nothing.
    let packages = registry.packages().unwrap_or_default();
    RegistryError::UnknownPackage {
        registry: registry.address().to_owned(),
        name: name.clone(),
        nearest: index::nearest(name.as_str(), &packages),
    }
}

/// Bytes of a blob on their way.
pub struct BlobStream {
    /// The offset of the first byte that comes: that of the range asked for, or 0 from a source that ignores ranges.
    pub start: u64,
    /// The bytes. They may end late, when the source ignores ranges.
    pub reader: Box<dyn Read + Send>,
}

/// Where packages go.
pub trait WriteRegistry: Registry {
    /// Says what is about to be published: one that names blobs otherwise finds out which of them it has.
    fn begin(&self, _manifest: &Manifest) -> Result<(), RegistryError> {
        Ok(())
    }

    /// Fails if this registry cannot be written to, before anything large is sent.
    fn check_writable(&self) -> Result<(), RegistryError>;

    /// Whether the blob is there.
    fn has_blob(&self, blob: &Blob) -> Result<bool, RegistryError>;

    /// Stores a blob, verified by the registry; whether it was not there before.
    fn put_blob(&self, blob: &Blob, content: Content<'_>) -> Result<bool, RegistryError>;

    /// Adds signatures to those of a manifest that was put or found here.
    fn add_signatures(
        &self,
        manifest: &Digest,
        signatures: &Signatures,
    ) -> Result<(), RegistryError>;

    /// Makes a manifest, whose blob and layers are there, visible as a version.
    fn publish(&self, publication: &Publication) -> Result<Published, RegistryError>;

    /// Makes a tag mean a version.
    fn tag(
        &self,
        name: &PackageName,
        tag: &Version,
        version: &Version,
    ) -> Result<(), RegistryError>;

    /// Notes which layer was packed from its inputs.
    fn remember(&self, layer: &Layer) -> Result<(), RegistryError>;

    /// Notes patches of an image; all these blobs are there.
    fn add_patches(&self, _image: &Digest, _patches: &[PatchNote]) -> Result<(), RegistryError> {
        Err(RegistryError::NoPatches { registry: self.address().to_owned() })
    }
}

/// The bytes of a blob to be stored.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// In a file.
    File(&'a Path),
    /// In memory.
    Bytes(&'a [u8]),
}

/// A version to be made visible.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Publication {
    /// The package.
    pub name: PackageName,
    /// The new version.
    pub version: Version,
    /// Its manifest.
    pub manifest: Blob,
    /// Tags to move to it, besides `latest`.
    #[serde(default)]
    pub tags: Vec<Version>,
}

/// What a publication did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The version is new.
    New,
    /// It was there already, with this manifest.
    Unchanged,
}

/// How to reach a registry.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// For HTTP.
    pub http: HttpOptions,
    /// Addresses of mirrors, for reading. They get no credentials but those in their own URLs.
    pub mirrors: Vec<String>,
    /// A `registries.conf` to look OCI registries up in.
    pub registries_conf: Option<PathBuf>,
}

impl OpenOptions {
    /// With the credentials and the `registries.conf` that podman and skopeo use, or the credentials in `authfile` alone, and with
    /// the environment's settings of S3 stores.
    pub fn usual(authfile: Option<PathBuf>) -> Self {
        let credentials = Credentials::usual(authfile);
        let aws = AwsSettings::from_env();
        let http = HttpOptions { credentials, aws, ..HttpOptions::default() };
        Self { http, mirrors: Vec::new(), registries_conf: oci::conf::usual() }
    }
}

/// What an address means.
pub(crate) enum Address {
    Folder(PathBuf),
    Http(String),
    Oci(oci::Location),
    S3(s3::Location),
}
