//! The signatures of the manifests that are here.

use std::path::PathBuf;

use mica_graph::{Digest, Manifest};

use super::names::{check_line, checked};
use super::{Cache, CacheError};
use crate::file::{self, Lock};
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

    /// Adds signatures to those known of a manifest.
    pub fn add_signatures(&self, manifest: &Digest, more: &Signatures) -> Result<(), CacheError> {
        if more.is_empty() {
            return Ok(());
        }
        let _lock = Lock::exclusive(&self.lock_path("signatures"))?;
        let mut all = match self.signatures(manifest) {
            // What is damaged is replaced.
            Err(CacheError::Document { .. }) => Signatures::default(),
            other => other?,
        };
        if all.merge(more) {
            let body = all.to_text();
            let text = check_line(body.as_bytes()) + &body;
            self.staging.write(&self.signatures_path(manifest), text.as_bytes())?;
        }
        Ok(())
    }

    /// Whether a package may be used, by the signatures that are here.
    pub fn check_trust(&self, trust: &Trust, manifest: &Manifest) -> Result<(), DistrustError> {
        if trust.covers(&manifest.name) {
            trust.check(manifest, &self.signatures(&manifest.digest())?)?;
        }
        Ok(())
    }
}
