//! From the files of a stack to what the mounter takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_fetcher::{Cache, CacheError, Lease};
use mica_mounter::{
    ChunkTable, ChunkTableError, MountOptions, OpenError, Stack, StackLayer, Trace, Upper, Verify,
};
use serde::{Deserialize, Serialize};

use crate::config::{JobLayer, UpperDirs};

/// An image that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open layer {layer} ({})", path.display())]
pub struct StackError {
    layer: String,
    path: PathBuf,
    #[source]
    source: LayerFault,
}

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
enum LayerFault {
    /// It is none.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// Its chunk table cannot be read.
    #[error("cannot read its chunk table {}", path.display())]
    Table { path: PathBuf, source: std::io::Error },
    /// Its chunk table is none.
    #[error("cannot use its chunk table {}", path.display())]
    BadTable { path: PathBuf, source: ChunkTableError },
    /// Its chunk table is that of another image.
    #[error("its chunk table {} covers {covered} bytes, the image has {size}", path.display())]
    OtherTable { path: PathBuf, covered: u64, size: u64 },
}

impl StackError {
    /// The image's own error, if it is one.
    pub fn image(&self) -> Option<&OpenError> {
        match &self.source {
            LayerFault::Image(error) => Some(error),
            _ => None,
        }
    }

    /// What to do about an error of its chunk table.
    pub fn hint(&self) -> Option<String> {
        match &self.source {
            LayerFault::Image(_) => None,
            LayerFault::Table { path, .. }
            | LayerFault::BadTable { path, .. }
            | LayerFault::OtherTable { path, .. } => Some(format!(
                "if the image was replaced, remove {}; `--verify never` mounts without looking at it",
                path.display()
            )),
        }
    }
}

/// Images up to this size are verified as one chunk, by their own digest, where they have no table.
const ONE_CHUNK: u64 = 1 << 20;

/// Opens the images.
pub(crate) fn open(layers: &[JobLayer], verify: Verify) -> Result<Stack, StackError> {
    let open = |layer: &JobLayer| {
        open_layer(layer, verify).map_err(|source| StackError {
            layer: layer.name.clone(),
            path: layer.path.clone(),
            source,
        })
    };
    Ok(Stack { layers: layers.iter().map(open).collect::<Result<_, _>>()? })
}

fn open_layer(layer: &JobLayer, verify: Verify) -> Result<StackLayer, LayerFault> {
    let (name, path) = (layer.name.as_str(), layer.path.as_path());
    if verify == Verify::Never {
        return Ok(StackLayer::open(name, path)?);
    }
    // Whether it can be opened is the next one's to say.
    let size = fs::metadata(path).map_or(0, |meta| meta.len());
    let table = match (&layer.chunks, layer.digest) {
        (Some(path), _) => read_table(path, size)?,
        (None, Some(digest)) if (1..=ONE_CHUNK).contains(&size) => {
            let mut table = ChunkTable::default();
            table.push(size as u32, *digest.as_bytes());
            table
        }
        _ => return Ok(StackLayer::open(name, path)?),
    };
    Ok(StackLayer::open_verified(name, path, table, verify)?)
}

fn read_table(path: &Path, size: u64) -> Result<ChunkTable, LayerFault> {
    let path = path.to_owned();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(LayerFault::Table { path, source }),
    };
    match ChunkTable::parse(&bytes) {
        Ok(table) if table.image_len() == size => Ok(table),
        Ok(table) => Err(LayerFault::OtherTable { path, covered: table.image_len(), size }),
        Err(source) => Err(LayerFault::BadTable { path, source }),
    }
}

/// How to mount a stack.
pub(crate) fn options(upper: Option<&UpperDirs>) -> MountOptions {
    let upper = upper.map(|dirs| Upper {
        upper: dirs.upper.clone(),
        work: dirs.work.clone(),
        volatile: false,
        thrown_away: false,
    });
    MountOptions { upper, ..MountOptions::default() }
}

/// Where the order of first reads of these images is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TraceFile {
    /// The file.
    pub path: PathBuf,
    /// Write it at the end, rather than read it ahead.
    pub record: bool,
}

impl TraceFile {
    /// Records, or reads ahead what was recorded.
    pub(crate) fn apply(&self, options: &mut MountOptions) {
        options.record_trace = self.record;
        if !self.record {
            // Without it reading is slower, nothing else.
            let trace = fs::read_to_string(&self.path).ok();
            options.trace = trace.and_then(|text| Trace::parse(&text)).map(Arc::new);
        }
    }

    /// Keeps what was recorded; a reader sees the old trace or the new one.
    pub(crate) fn save(&self, trace: Option<Trace>) {
        let Some(trace) = trace.filter(|_| self.record) else { return };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let temporary = self.path.with_extension(std::process::id().to_string());
        let saved = fs::create_dir_all(folder)
            .and_then(|()| fs::write(&temporary, trace.to_text()))
            .and_then(|()| fs::rename(&temporary, &self.path));
        if let Err(error) = saved {
            tracing::warn!(path = %self.path.display(), %error, "cannot keep the trace");
        }
    }
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
