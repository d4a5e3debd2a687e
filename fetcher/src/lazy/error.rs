//! Why an image cannot be used lazily.

use mica_squashfs::chunks::ChunkTableError;

use crate::cache::CacheError;
use crate::registry::RegistryError;

/// An image that cannot be used lazily.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// The layer was published without a chunk table.
    #[error("layer {0} has no chunk table")]
    NoTable(String),
    /// The table cannot be had.
    #[error("cannot fetch the chunk table of layer {layer}")]
    Fetch {
        /// The layer.
        layer: String,
        /// The reason.
        #[source]
        source: Box<RegistryError>,
    },
    /// The table is not one.
    #[error("cannot use the chunk table of layer {layer}")]
    Table {
        /// The layer.
        layer: String,
        /// The reason.
        #[source]
        source: ChunkTableError,
    },
    /// The table is that of another image.
    #[error("the chunk table of layer {layer} covers {found} bytes, not {expected}")]
    OtherImage {
        /// The layer.
        layer: String,
        /// The image's length.
        expected: u64,
        /// The table's.
        found: u64,
    },
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
}
