//! What a pull or push tells whoever wants to show it.

use std::time::Duration;

use mica_graph::{Layer, Manifest};

use crate::registry::RegistryError;

/// Listens to a transfer. Called from several threads; must not block for long.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);
}

/// Shows nothing.
impl Progress for () {
    fn event(&self, _: Event<'_>) {}
}

/// A step of a transfer. `layer` is the number of a layer in the manifest.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The manifest is known.
    Started {
        /// The package.
        manifest: &'a Manifest,
        /// Numbers of the layers to be transferred: one for each image, however many layers share it.
        layers: &'a [usize],
        /// Their bytes.
        bytes: u64,
    },
    /// Another process is bringing this one in; we wait for it.
    Waiting {
        /// Which.
        layer: usize,
    },
    /// The transfer of an image begins.
    LayerStarted {
        /// Which.
        layer: usize,
        /// The layer itself.
        of: &'a Layer,
        /// Bytes that an earlier transfer left.
        resumed: u64,
    },
    /// Bytes came or went.
    Bytes {
        /// Of which layer.
        layer: usize,
        /// How many.
        bytes: u64,
    },
    /// Bytes that were counted are thrown away.
    Restarted {
        /// Of which layer.
        layer: usize,
    },
    /// A connection failed; it is tried again.
    Retrying {
        /// For which layer.
        layer: usize,
        /// Why.
        error: &'a RegistryError,
        /// After how long.
        wait: Duration,
    },
    /// A patch is being made.
    PatchStarted {
        /// Of this layer.
        of: &'a Layer,
    },
    /// So much of the layer's contents is done.
    PatchMade {
        /// Bytes.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// An image is complete: in the cache, or in the registry.
    LayerDone {
        /// Which.
        layer: usize,
    },
}
