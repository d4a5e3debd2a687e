//! From the files of a stack to what the mounter takes.

use std::path::{Path, PathBuf};

use mica_fetcher::{Cache, CacheError, Lease};
use mica_mounter::{MountOptions, OpenError, Stack, StackLayer, Upper};

use crate::state::{JobLayer, UpperDirs};

/// An image that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open layer {layer} ({})", path.display())]
pub struct StackError {
    layer: String,
    path: PathBuf,
    #[source]
    source: OpenError,
}

/// Opens the images.
pub(crate) fn open(layers: &[JobLayer]) -> Result<Stack, StackError> {
    let open = |layer: &JobLayer| {
        StackLayer::open(&layer.name, &layer.path).map_err(|source| StackError {
            layer: layer.name.clone(),
            path: layer.path.clone(),
            source,
        })
    };
    Ok(Stack { layers: layers.iter().map(open).collect::<Result<_, _>>()? })
}

/// How to mount a job's stack: its upper is thrown away with it, unless it was named.
pub(crate) fn options(upper: Option<&UpperDirs>, volatile: bool) -> MountOptions {
    let upper =
        upper.map(|dirs| Upper { upper: dirs.upper.clone(), work: dirs.work.clone(), volatile });
    MountOptions { upper, ..MountOptions::default() }
}

/// Keeps the layers' images in the cache while the lease lives.
pub(crate) fn lease(
    cache: Option<&Path>,
    layers: &[JobLayer],
) -> Result<Option<Lease>, CacheError> {
    let Some(cache) = cache else { return Ok(None) };
    let digests: Vec<_> = layers.iter().filter_map(|layer| layer.digest).collect();
    Ok(Some(Cache::open(cache)?.lease(&digests)?))
}
