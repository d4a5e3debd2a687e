//! The signatures of the manifests that are here.

use std::path::PathBuf;

use mica_graph::{Digest, Manifest};

use super::names::{check_line, checked};
use super::{Cache, CacheError};
use crate::file;
use crate::trust::{Signatures, Trust, TrustError};

/// A package that the policy does not let be used, or whose signatures cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DistrustError {
    /// The policy.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl DistrustError {
    /// What a person could do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Trust(error) => Some(error.hint()),
            Self::Cache(error) => error.hint().map(str::to_owned),
        }
    }
}

impl Cache {
    pub(super) fn signatures_path(&self, manifest: &Digest) -> PathBuf {
        self.root.join("signatures").join(manifest.hex())
    }

    /// The signatures of a manifest that are known here; what they are worth is not said by that.
    pub fn signatures(&self, manifest: &Digest) -> Result<Signatures, CacheError> {
        let path = self.signatures_path(manifest);
        let Some(bytes) = file::read_small(&path, Signatures::MAX_SIZE + 128)? else {
            return Ok(Signatures::default());
        };
        let parsed = checked(&bytes).and_then(|body| Signatures::parse(body).ok());
        parsed.ok_or(CacheError::Document { path })
    }

    /// Adds signatures to those known of a manifest. Of too many, those by the keys that `trust` names are kept first.
    pub fn add_signatures(
        &self,
        manifest: &Manifest,
        more: &Signatures,
        trust: &Trust,
    ) -> Result<(), CacheError> {
        if more.is_empty() {
            return Ok(());
        }
        let (json, digest) = (manifest.to_json(), manifest.digest());
        let _lock = self.exclusive("signatures")?;
        let held = match self.signatures(&digest) {
            // What is damaged is replaced.
            Err(CacheError::Document { .. }) => Signatures::default(),
            other => other?,
        };
        let mut all = held.clone();
        all.merge(more);
        let all = all.capped(trust.keys(), &json);
        if all != held {
            let body = all.to_text();
            let text = check_line(body.as_bytes()) + &body;
            self.staging.write(&self.signatures_path(&digest), text.as_bytes())?;
        }
        Ok(())
    }

    /// Whether a package may be used, by the signatures that are here. Of one that needs signatures, what its images are read by
    /// is hashed again: chunk tables, by which every block is verified when it is read, and images that have none.
    pub fn check_trust(&self, trust: &Trust, manifest: &Manifest) -> Result<(), DistrustError> {
        if !trust.covers(&manifest.name) {
            return Ok(());
        }
        trust.check(manifest, &self.signatures(&manifest.digest())?)?;
        for layer in &manifest.layers {
            let image = layer.image();
            let read_by = layer.chunks.as_ref().unwrap_or(&image);
            let Some(path) = self.blob(read_by)? else { continue };
            let file = file::open(&path).map_err(CacheError::from)?;
            let (found, _) = file::hash(&file, &path).map_err(CacheError::from)?;
            if found != read_by.digest {
                let expected = read_by.digest;
                return Err(CacheError::NotThisBlob { path, expected, found }.into());
            }
        }
        Ok(())
    }
}
