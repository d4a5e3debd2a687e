//! How a pull would go, without going.

use mica_graph::{Blob, Label, Manifest, PackageRef};

use crate::cache::Cache;
use crate::delta;
use crate::pull::PullError;
use crate::registry::{Registry, Resolved};

/// What a pull would do.
#[derive(Clone, Debug)]
pub struct Explained {
    /// What the reference means.
    pub resolved: Resolved,
    /// The package's manifest.
    pub manifest: Manifest,
    /// For each layer, in the manifest's order.
    pub layers: Vec<(Label, Way)>,
}

/// How a layer would come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is there.
    Cached,
    /// Another layer above it has the same image.
    Same,
    /// By one request, from where an earlier fetch was cut off.
    Whole {
        /// Bytes to fetch.
        fetch: u64,
        /// Bytes that an earlier fetch left.
        resume: u64,
    },
    /// Only the chunks that no earlier version here holds.
    Chunks {
        /// Bytes to fetch.
        fetch: u64,
        /// Bytes to copy.
        copy: u64,
        /// Requests for them.
        requests: usize,
    },
}

impl Explained {
    /// Bytes of images that would be fetched.
    pub fn fetch(&self) -> u64 {
        self.layers.iter().map(|(_, way)| way.fetch()).sum()
    }
}

impl Way {
    /// Bytes that would be fetched.
    pub fn fetch(&self) -> u64 {
        match self {
            Self::Whole { fetch, .. } | Self::Chunks { fetch, .. } => *fetch,
            Self::Cached | Self::Same => 0,
        }
    }
}

/// Says how a package would be pulled. Only documents are fetched: index, manifest and chunk tables, which are kept.
pub fn explain(
    registry: &dyn Registry,
    package: &PackageRef,
    cache: &Cache,
) -> Result<Explained, PullError> {
    let resolved = registry.resolve(package)?;
    let manifest = registry.manifest(&resolved)?;
    // The tables are kept for as long as this takes; a pull that follows leases them itself.
    let _lease = cache.lease_package(&manifest)?;
    let mut layers: Vec<(Label, Way)> = Vec::new();
    for (i, layer) in manifest.layers.iter().enumerate() {
        let blob = Blob { digest: layer.digest, size: layer.size };
        let way = if matches!(cache.image(layer), Ok(Some(_))) {
            Way::Cached
        } else if manifest.layers[..i].iter().any(|above| above.digest == layer.digest) {
            Way::Same
        } else {
            let recipe = delta::recipe(registry, cache, &manifest.name, layer);
            let resume = cache.part_len(&blob)?.min(layer.size);
            match recipe.local() {
                0 => Way::Whole { fetch: layer.size - resume, resume },
                copy => Way::Chunks { fetch: layer.size - copy, copy, requests: recipe.requests() },
            }
        };
        layers.push((layer.module.clone(), way));
    }
    Ok(Explained { resolved, manifest, layers })
}
