//! How a pull would go, without going.

use mica_graph::{Label, Manifest, PackageRef};

use crate::cache::Cache;
use crate::delta;
use crate::patch::{self, Offer};
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
    /// What each way would cost, of the layers that are not here; in the same order.
    pub costs: Vec<Option<Costs>>,
}

/// Bytes to fetch, by each way there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// All that is missing.
    pub whole: u64,
    /// Only chunks that are not here, if any is.
    pub chunks: Option<u64>,
    /// A patch, if the registry has one for an image that is here.
    pub patch: Option<u64>,
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
    /// By a patch of an earlier version's image.
    Patch {
        /// Bytes to fetch.
        fetch: u64,
        /// Bytes of it that an earlier fetch left.
        resume: u64,
    },
    /// Only the chunks that no earlier version here holds; the rest stays where it is.
    Borrowed {
        /// Bytes to fetch.
        fetch: u64,
        /// Bytes that lie in other images.
        borrow: u64,
        /// Requests for what is to be fetched.
        requests: usize,
    },
    /// Only the chunks that no earlier version here holds; the rest is copied.
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
            Self::Whole { fetch, .. }
            | Self::Chunks { fetch, .. }
            | Self::Borrowed { fetch, .. }
            | Self::Patch { fetch, .. } => *fetch,
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
    let mut costs = Vec::new();
    for (i, layer) in manifest.layers.iter().enumerate() {
        let blob = layer.image();
        let mut cost = None;
        let way = if cache.holds(layer) {
            Way::Cached
        } else if manifest.layers[..i].iter().any(|above| above.digest == layer.digest) {
            Way::Same
        } else {
            let recipe = delta::recipe(registry, cache, &manifest.name, layer);
            let resume = cache.part_len(&blob)?.min(layer.size);
            let offer = patch::offer(registry, cache, &manifest.name, layer);
            let by_chunks = recipe.fetch(resume, layer.size);
            cost = Some(Costs {
                whole: layer.size - resume,
                chunks: (recipe.local() > 0).then_some(by_chunks),
                patch: offer.as_ref().map(Offer::fetch),
            });
            let plan = recipe.borrow().filter(|_| resume == 0);
            let beats = |offer: &Offer| offer.beats(plan.as_ref(), by_chunks, layer.size);
            match (recipe.local(), offer.filter(beats)) {
                (_, Some(offer)) => Way::Patch { fetch: offer.fetch(), resume: offer.held },
                (0, None) => Way::Whole { fetch: layer.size - resume, resume },
                (local, None) => {
                    let (fetch, requests) = (layer.size - local, recipe.requests());
                    match plan {
                        Some(plan) => Way::Borrowed { fetch, borrow: plan.borrowed(), requests },
                        None => Way::Chunks { fetch, copy: local, requests },
                    }
                }
            }
        };
        layers.push((layer.module.clone(), way));
        costs.push(cost);
    }
    Ok(Explained { resolved, manifest, layers, costs })
}
