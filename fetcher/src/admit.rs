//! Whether a package that was found may come in.

use mica_graph::Manifest;

use crate::cache::Cache;
use crate::pull::PullError;
use crate::registry::Registry;
use crate::trust::{Signatures, Trust};

/// The signatures of a package that may be used. They are asked for with a new manifest, and again where those here are not enough.
pub(crate) fn signatures(
    registry: &dyn Registry,
    manifest: &Manifest,
    is_known: bool,
    cache: &Cache,
    trust: &Trust,
) -> Result<Signatures, PullError> {
    let digest = manifest.digest();
    let mut signatures = cache.signatures(&digest).unwrap_or_default();
    if is_known && trust.check(manifest, &signatures).is_ok() {
        return Ok(signatures);
    }
    match registry.signatures(&digest) {
        Ok(found) => drop(signatures.merge(&found)),
        // Whoever needs them says what is missing.
        Err(error) if trust.covers(&manifest.name) => return Err(error.into()),
        Err(error) => tracing::warn!(%error, "doing without signatures"),
    }
    trust.check(manifest, &signatures)?;
    Ok(signatures)
}
