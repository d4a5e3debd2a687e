//! What a pull did.

use mica_graph::Manifest;

use crate::cache::Lease;
use crate::registry::Resolved;

/// A package that is in the cache, and protected there.
#[derive(Debug)]
pub struct Pulled {
    /// What the reference meant.
    pub resolved: Resolved,
    /// The package's manifest.
    pub manifest: Manifest,
    /// How each layer came, in the manifest's order.
    pub layers: Vec<Outcome>,
    /// Keeps the images from being removed until it is dropped.
    pub lease: Lease,
}

/// How a layer came to be in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was there.
    Cached,
    /// It was fetched.
    Fetched {
        /// Bytes that came over the network.
        bytes: u64,
        /// Bytes that an earlier, interrupted fetch had left.
        resumed: u64,
        /// Bytes that were copied from earlier versions of the layer.
        copied: u64,
    },
    /// Its new bytes were fetched; the rest stays in images that are here.
    Borrowed {
        /// Bytes that came over the network.
        bytes: u64,
        /// Bytes that an earlier, interrupted fetch had left.
        resumed: u64,
        /// Bytes that lie in other images.
        borrowed: u64,
    },
    /// It was made of an older version's image and a patch.
    Patched {
        /// Bytes that came over the network.
        bytes: u64,
        /// Bytes of the patch that an earlier, interrupted fetch had left.
        resumed: u64,
    },
    /// Another process was fetching it.
    Shared,
    /// Only its chunk table was.
    Lazy,
}

impl Pulled {
    /// Bytes of images that came over the network.
    pub fn fetched_bytes(&self) -> u64 {
        self.layers.iter().map(Outcome::bytes).sum()
    }

    /// Number of layers that came over the network.
    pub fn fetched_layers(&self) -> usize {
        let fetched = |outcome: &&Outcome| {
            matches!(
                outcome,
                Outcome::Fetched { .. } | Outcome::Patched { .. } | Outcome::Borrowed { .. }
            )
        };
        self.layers.iter().filter(fetched).count()
    }
}

impl Outcome {
    /// Bytes that came over the network.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Fetched { bytes, .. }
            | Self::Patched { bytes, .. }
            | Self::Borrowed { bytes, .. } => *bytes,
            Self::Cached | Self::Shared | Self::Lazy => 0,
        }
    }
}
