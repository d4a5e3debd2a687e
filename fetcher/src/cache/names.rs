//! Which packages, versions and tags the cache knows.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mica_graph::{Blob, Digest, Layer, Manifest, PackageName, PackageRef, Version};

use super::lease::blobs;
use super::{Cache, CacheError};
use crate::file;
use crate::registry::{Entry, Index, Resolved, SelectError};

/// A version of a package, as the cache knows it.
#[derive(Clone, Debug)]
pub struct CachedPackage {
    /// The manifest.
    pub manifest: Manifest,
    /// The manifest's digest.
    pub digest: Digest,
    /// Tags that mean this version here.
    pub tags: Vec<Version>,
    /// Bytes of its images that are here.
    pub local: u64,
    /// Number of its layers that are here.
    pub layers: usize,
    /// When it came.
    pub added: SystemTime,
    /// When it was last leased, or came.
    pub used: SystemTime,
    /// Whether something is using it.
    pub leased: bool,
}

/// A local name that does not lead to a manifest.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// No version of the package is known here.
    #[error("no version of {0} is in the cache")]
    UnknownPackage(PackageName),
    /// No such version, or several.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The cache cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Cache {
    pub(super) fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("manifests").join(digest.hex())
    }

    /// Fails if a version is known here with other content, which is not to be replaced.
    pub(crate) fn check_version(&self, manifest: &Manifest) -> Result<(), CacheError> {
        let held = self.index(&manifest.name)?;
        self.refuse_other(held.as_ref(), manifest, manifest.digest())
    }

    fn refuse_other(
        &self,
        index: Option<&Index>,
        manifest: &Manifest,
        found: Digest,
    ) -> Result<(), CacheError> {
        let held = index.and_then(|index| index.entry(&manifest.version));
        match held.map(|held| held.manifest.digest).filter(|held| *held != found) {
            Some(held) if !self.replaces => {
                let (package, version) = (manifest.name.clone(), manifest.version.clone());
                Err(CacheError::Taken { package, version, held, found })
            }
            _ => Ok(()),
        }
    }

    /// Makes a manifest, and the tags that led to it, known here. A version that is known with other content stays as it is,
    /// unless the cache is [replacing](Self::replacing).
    ///
    /// # Errors
    /// [`CacheError::Taken`]; a file cannot be written.
    pub fn record(&self, manifest: &Manifest, tags: &[Version]) -> Result<Digest, CacheError> {
        let json = manifest.to_json();
        let digest = Digest::of(&json);
        let size = json.len() as u64;
        self.check_version(manifest)?;
        // No prune between the manifest and the name that keeps it.
        let _gc = self.shared("gc")?;
        self.staging.write(&self.manifest_path(&digest), &json)?;
        let time = UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs());
        let entry =
            Entry { version: manifest.version.clone(), manifest: Blob { digest, size }, time };
        let mut refused = Ok(());
        self.change_index(&manifest.name, |index| {
            // Another process may just have recorded the other one.
            refused = self.refuse_other(Some(index), manifest, digest);
            if refused.is_err() {
                return;
            }
            // Pulled again under another tag, a version stays where it is in the order.
            match index.entry(&entry.version).filter(|held| held.manifest == entry.manifest) {
                Some(_) => {
                    let moved = tags.iter().map(|tag| (tag.clone(), entry.version.clone()));
                    index.tags.extend(moved);
                }
                None => index.follow(entry, tags),
            }
        })?;
        refused.map(|()| digest)
    }

    /// When a version came, in seconds since 1970.
    pub(crate) fn published(&self, manifest: &Manifest) -> Result<u64, CacheError> {
        let index = self.index(&manifest.name)?;
        let entry = index.as_ref().and_then(|index| index.entry(&manifest.version));
        Ok(entry.map_or(0, |entry| entry.time))
    }

    /// Makes a tag mean a version that is known here; whether it is.
    pub fn tag(
        &self,
        name: &PackageName,
        tag: &Version,
        version: &Version,
    ) -> Result<bool, CacheError> {
        let mut known = false;
        self.change_index(name, |index| known = index.tag(tag, version).is_ok())?;
        Ok(known)
    }

    /// Forgets a version or, given a tag, only the tag. What no version needs goes with the next prune.
    pub fn forget(&self, package: &PackageRef) -> Result<(), LookupError> {
        let resolved = self.resolve(package)?;
        self.change_index(&package.name, |index| match &resolved.tag {
            Some(tag) if package.selector.is_some() => {
                index.tags.remove(tag);
            }
            _ => {
                index.forget(&resolved.version);
            }
        })?;
        Ok(())
    }

    /// What a reference means here, without asking any registry.
    pub fn resolve(&self, package: &PackageRef) -> Result<Resolved, LookupError> {
        let unknown = || LookupError::UnknownPackage(package.name.clone());
        let index = self.index(&package.name)?.ok_or_else(unknown)?;
        Ok(index.resolve(package)?)
    }

    /// A manifest that is here, verified.
    pub fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, CacheError> {
        let path = self.manifest_path(digest);
        let Some(bytes) = file::read_small(&path, Manifest::BOUNDS.bytes)? else { return Ok(None) };
        match Manifest::from_json(&bytes) {
            Ok(manifest) if Digest::of(&bytes) == *digest => Ok(Some(manifest)),
            _ => Err(CacheError::Document { path }),
        }
    }

    /// The manifest a reference means here.
    pub fn lookup(&self, package: &PackageRef) -> Result<Manifest, LookupError> {
        let digest = self.resolve(package)?.manifest.digest;
        let what = || format!("the manifest of {package}");
        Ok(self.manifest(&digest)?.ok_or_else(|| CacheError::Missing { what: what() })?)
    }

    /// Every version known here, by name, newest first.
    pub fn packages(&self) -> Result<Vec<CachedPackage>, CacheError> {
        let leased = {
            let _gc = self.exclusive("gc")?;
            self.leased()?
        };
        let mut packages = Vec::new();
        for name in self.names()? {
            let Some(index) = self.index(&name)? else { continue };
            for entry in &index.versions {
                let Some(manifest) = self.manifest(&entry.manifest.digest)? else { continue };
                packages.push(self.describe(&index, entry, manifest, leased.as_ref())?);
            }
        }
        Ok(packages)
    }

    fn describe(
        &self,
        index: &Index,
        entry: &Entry,
        manifest: Manifest,
        leased: Option<&HashSet<Digest>>,
    ) -> Result<CachedPackage, CacheError> {
        let digest = entry.manifest.digest;
        let added = UNIX_EPOCH + Duration::from_secs(entry.time);
        let meta = file::stat(&self.manifest_path(&digest))?;
        let used = meta.and_then(|meta| meta.modified().ok()).unwrap_or(added);
        // Each image counts once, however many modules share it.
        let mut seen = HashSet::new();
        let (mut local, mut layers) = (0, 0);
        for layer in &manifest.layers {
            if self.holds(layer) {
                layers += 1;
                local += if seen.insert(layer.digest) { layer.size } else { 0 };
            }
        }
        let leased =
            leased.is_none_or(|leased| blobs(&manifest).iter().all(|d| leased.contains(d)));
        let tags = index.tags_of(&entry.version);
        Ok(CachedPackage { manifest, digest, tags, local, layers, added, used, leased })
    }

    /// The layer packed from these inputs, if its image is here.
    pub fn layer_by_inputs(&self, inputs: &Digest) -> Result<Option<Layer>, CacheError> {
        for name in file::names(&self.folder("manifests"))? {
            let Some(digest) = crate::registry::layout::parse_hex(&name) else { continue };
            let Ok(Some(manifest)) = self.manifest(&digest) else { continue };
            let found = manifest.layers.into_iter().find(|layer| layer.inputs == *inputs);
            if let Some(layer) = found
                && self.holds(&layer)
            {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    pub(crate) fn names(&self) -> Result<Vec<PackageName>, CacheError> {
        let names = file::names(&self.folder("packages"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    pub(crate) fn index(&self, name: &PackageName) -> Result<Option<Index>, CacheError> {
        let path = self.index_path(name);
        let Some(bytes) = file::read_small(&path, Index::BOUNDS.bytes + CHECK_LINE)? else {
            return Ok(None);
        };
        match checked(&bytes).and_then(|body| Index::from_json(body, name).ok()) {
            Some(index) => Ok(Some(index)),
            None => Err(CacheError::Document { path }),
        }
    }

    pub(super) fn index_path(&self, name: &PackageName) -> PathBuf {
        self.folder("packages").join(name.as_str())
    }

    pub(super) fn change_index(
        &self,
        name: &PackageName,
        change: impl FnOnce(&mut Index),
    ) -> Result<(), CacheError> {
        let _lock = self.exclusive(&format!("package-{name}"))?;
        let mut index = self.index(name)?.unwrap_or_else(|| Index::new(name.clone()));
        let before = index.clone();
        change(&mut index);
        if index.versions.is_empty() {
            file::remove(&self.index_path(name))?;
        } else if index != before {
            self.write_index(&index)?;
        }
        Ok(())
    }

    pub(super) fn write_index(&self, index: &Index) -> Result<(), CacheError> {
        let json = index.to_json();
        let mut bytes = check_line(&json).into_bytes();
        bytes.extend_from_slice(&json);
        Ok(self.staging.write(&self.index_path(&index.name), &bytes)?)
    }
}

/// What follows the first line, if that is its digest.
pub(super) fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (check, body) = bytes.split_at(bytes.iter().position(|b| *b == b'\n')? + 1);
    (check == check_line(body).as_bytes()).then_some(body)
}

/// The length of a first line.
const CHECK_LINE: u64 = 72;

pub(super) fn check_line(body: &[u8]) -> String {
    format!("{}\n", Digest::of(body))
}
