//! From the files of a stack to what the mounter takes.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mica_fetcher::registry::Registry;
use mica_fetcher::{Cache, CacheError, Lazy, LazyOptions, Lease};
use mica_graph::{Manifest, PackageRef};
use mica_launcher::{IdMapping, IdRange};
use mica_mounter::{
    ChunkTable, ChunkTableError, MountOptions, OpenError, Owners, Stack, StackLayer, Trace, Upper,
    Verify,
};
use serde::{Deserialize, Serialize};

use crate::config::{JobConfig, JobLayer, LazySource, UpperDirs};

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
    /// It is not all here, and cannot be fetched when it is read.
    #[error("it is not all here")]
    Lazy(#[source] Box<dyn std::error::Error + Send + Sync>),
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
            LayerFault::Image(_) | LayerFault::Lazy(_) => None,
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
///
/// Those that are not all here come from the registry and into the cache that `lazy` names.
pub(crate) fn open(
    layers: &[JobLayer],
    verify: Verify,
    lazy: Option<(&Path, &LazySource)>,
) -> Result<Stack, StackError> {
    let fetching = OnceCell::new();
    let open = |layer: &JobLayer| {
        let opened = match lazy {
            Some((cache, source)) if !layer.path.exists() => {
                Fetching::get(&fetching, cache, source).and_then(|fetching| fetching.open(layer))
            }
            _ => open_layer(layer, verify),
        };
        opened.map_err(|source| StackError {
            layer: layer.name.clone(),
            path: layer.path.clone(),
            source,
        })
    };
    Ok(Stack { layers: layers.iter().map(open).collect::<Result<_, _>>()? })
}

/// What images are fetched from and into.
struct Fetching {
    registry: Arc<dyn Registry>,
    cache: Cache,
    manifest: Manifest,
    deadline: Duration,
}

impl Fetching {
    fn get<'a>(
        cell: &'a OnceCell<Self>,
        cache: &Path,
        source: &LazySource,
    ) -> Result<&'a Self, LayerFault> {
        if let Some(fetching) = cell.get() {
            return Ok(fetching);
        }
        let new = Self::new(cache, source).map_err(LayerFault::Lazy)?;
        Ok(cell.get_or_init(|| new))
    }

    fn new(
        cache: &Path,
        source: &LazySource,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let cache = Cache::open(cache)?;
        let selector = Some(source.version.clone());
        let package = PackageRef { name: source.name.clone(), selector };
        let manifest = cache.lookup(&package)?;
        let registry: Arc<dyn Registry> = Arc::from(source.registry.open()?);
        // An OCI registry learns so what its blobs are called. Without an answer, readers will say what is wrong.
        if let Err(error) = registry.resolve(&package) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the registry does not answer"
            );
        }
        Ok(Self { registry, cache, manifest, deadline: Duration::from_secs(source.deadline) })
    }

    fn open(&self, layer: &JobLayer) -> Result<StackLayer, LayerFault> {
        let wanted = self.manifest.layers.iter().find(|other| Some(other.digest) == layer.digest);
        let Some(wanted) = wanted else { return Ok(StackLayer::open(&layer.name, &layer.path)?) };
        let options = LazyOptions { deadline: self.deadline, ..LazyOptions::default() };
        let opened =
            mica_fetcher::open_lazy(Arc::clone(&self.registry), &self.cache, wanted, options);
        match opened.map_err(|error| LayerFault::Lazy(Box::new(error)))? {
            Lazy::Complete(path) => Ok(StackLayer::open(&layer.name, &path)?),
            Lazy::Partial(source) => Ok(StackLayer::from_source(&layer.name, source)?),
        }
    }
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

/// The same for a job, whose root may be another user outside.
pub(crate) fn options_of_job(config: &JobConfig) -> MountOptions {
    let owners = match &config.spec.ids {
        IdMapping::Ranges { uids, gids } => {
            let runs = |ranges: &[IdRange]| {
                ranges.iter().map(|range| [range.inside, range.outside, range.count]).collect()
            };
            Some(Owners { uids: runs(uids), gids: runs(gids) })
        }
        IdMapping::Auto | IdMapping::Single => None,
    };
    let push = config.lazy.is_none();
    MountOptions { owners, push, ..options(config.upper.as_ref()) }
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
