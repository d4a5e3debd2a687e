//! From the files of a stack to what the mounter takes.

use std::cell::OnceCell;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mica_fetcher::registry::Registry;
use mica_fetcher::{
    BorrowedImage, Cache, CacheError, Held, Lazy, LazyOptions, Lease, MadeTableError,
};
use mica_graph::{Digest, Layer, Manifest, PackageRef};
use mica_launcher::{IdMapping, IdRange};
use mica_mounter::{
    ChunkTable, ChunkTableError, Mount, MountError, MountOptions, OpenError, Owners, Stack,
    StackLayer, Trace, Upper, Verify,
};
use serde::{Deserialize, Serialize};

use crate::config::{JobConfig, JobLayer, LazySource, StackConfig};
use crate::state::JobDir;

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
    /// Its chunk table is not the one that the manifest names.
    #[error("its chunk table {} has digest {found}, the manifest says {expected}", path.display())]
    WrongTable { path: PathBuf, expected: Digest, found: Digest },
    /// Another account can change it, and it is not what the manifest names, or cannot be read.
    #[error(transparent)]
    Foreign(#[from] MadeTableError),
    /// Another account can change it, and nothing says what it should be.
    #[error("it is another account's to change, and has no digest to be verified by")]
    NoDigest,
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
            LayerFault::Image(_) | LayerFault::Lazy(_) | LayerFault::NoDigest => None,
            LayerFault::WrongTable { .. } | LayerFault::Foreign(_) => Some(
                "somebody changed the cached copy: `mica cache verify --repair` fetches ours again; a shared cache is for its owner to mend"
                    .to_owned(),
            ),
            LayerFault::Table { path, .. }
            | LayerFault::BadTable { path, .. }
            | LayerFault::OtherTable { path, .. } => Some(format!(
                "if the image was replaced, remove {}; `--verify never` mounts without looking at it",
                path.display()
            )),
        }
    }
}

/// A stack that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountStackError {
    /// The cache has not what it needs.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An image cannot be opened.
    #[error(transparent)]
    Open(#[from] StackError),
    /// The kernel refuses.
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl MountStackError {
    /// The error that this one passes on as it is.
    pub fn inner(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Self::Cache(error) => error,
            Self::Open(error) => error,
            Self::Mount(error) => error,
        }
    }
}

/// Images up to this size are verified as one chunk, by their own digest, where they have no table.
const ONE_CHUNK: u64 = 1 << 20;
/// A trace longer than this is none.
const MAX_TRACE: u64 = 64 << 20;

impl StackConfig {
    /// Keeps the images in the cache while the lease lives.
    pub(crate) fn lease(&self) -> Result<Option<Lease>, MountStackError> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let digests: Vec<_> = self.layers.iter().filter_map(|layer| layer.digest).collect();
        let cache = Cache::open(cache)?;
        // With its chunk tables and its name, where that is known: they are needed to mount it again.
        let manifest =
            self.manifest.as_ref().and_then(|digest| cache.manifest(digest).ok().flatten());
        Ok(Some(match manifest {
            Some(manifest) => cache.lease_package(&manifest)?,
            None => cache.lease(&digests)?,
        }))
    }

    /// Opens the images. Those that are not all here come from the registry and into the cache.
    pub fn open(&self) -> Result<Stack, StackError> {
        let (cached, fetching) = (OnceCell::new(), OnceCell::new());
        let lazy = self.cache.as_deref().zip(self.lazy.as_ref());
        let open = |layer: &JobLayer| {
            let elsewhere = || cached.get_or_init(|| self.cached()).as_ref()?.source(layer);
            let opened = if layer.path.exists() {
                open_layer(layer, self.verify)
            } else if let Some((held, foreign)) = elsewhere() {
                open_held(&JobLayer { foreign, ..layer.clone() }, held, self.verify)
            } else if let Some((cache, source)) = lazy {
                Fetching::get(&fetching, cache, source)
                    .and_then(|fetching| fetching.open(layer, self.verify))
            } else {
                // Says what is missing.
                open_layer(layer, self.verify)
            };
            opened.map_err(|source| StackError {
                layer: layer.name.clone(),
                path: layer.path.clone(),
                source,
            })
        };
        Ok(Stack { layers: self.layers.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Its package, as the cache knows it. What is wrong with that is said when an image is missing for it.
    fn cached(&self) -> Option<Cached> {
        let mut cache = Cache::open(self.cache.as_ref()?).ok()?;
        if let Some(shared) = &self.shared_cache {
            cache = cache.with_shared(shared);
        }
        let manifest = cache.manifest(self.manifest.as_ref()?).ok()??;
        Some(Cached { cache, manifest })
    }

    /// How to mount it.
    pub(crate) fn options(&self) -> MountOptions {
        let upper = self.upper.as_ref().map(|dirs| Upper {
            upper: dirs.upper.clone(),
            work: dirs.work.clone(),
            volatile: false,
            thrown_away: false,
        });
        let push = self.lazy.is_none();
        MountOptions { upper, push, ..MountOptions::default() }
    }

    /// The same for a job, whose root may be another user outside.
    pub(crate) fn options_in_job(&self, ids: &IdMapping) -> MountOptions {
        let owners = match ids {
            IdMapping::Ranges { uids, gids } => {
                let runs = |ranges: &[IdRange]| {
                    ranges.iter().map(|range| [range.inside, range.outside, range.count]).collect()
                };
                Some(Owners { uids: runs(uids), gids: runs(gids) })
            }
            IdMapping::Auto | IdMapping::Single => None,
        };
        MountOptions { owners, ..self.options() }
    }

    /// Mounts it for a job that runs.
    pub(crate) fn mount_for(
        &self,
        job: &JobDir,
        config: &JobConfig,
        at: &Path,
    ) -> Result<Mount, MountStackError> {
        let mut options = self.options_for(job, config);
        if let Some(trace) = &self.trace {
            trace.apply(&mut options);
        }
        self.mount(at, &options)
    }

    /// How to mount it for a job that runs.
    fn options_for(&self, job: &JobDir, config: &JobConfig) -> MountOptions {
        let mut options = self.options_in_job(&config.spec.ids);
        if let Some(upper) = &mut options.upper {
            // What is kept must be on the disk when the job says that it is (fsync).
            upper.thrown_away = config.remove && upper.upper.starts_with(job.path());
            upper.volatile = upper.thrown_away;
        }
        options
    }

    pub(crate) fn mount(
        &self,
        at: &Path,
        options: &MountOptions,
    ) -> Result<Mount, MountStackError> {
        Ok(mica_mounter::mount(self.open()?, at, options)?)
    }
}

/// What the package says of a job's layer.
fn find<'a>(manifest: &'a Manifest, layer: &JobLayer) -> Option<&'a Layer> {
    manifest.layers.iter().find(|other| Some(other.digest) == layer.digest)
}

/// A package in a cache.
struct Cached {
    cache: Cache,
    manifest: Manifest,
}

impl Cached {
    /// A layer's image, and whether another account can change it.
    fn source(&self, layer: &JobLayer) -> Option<(Held, bool)> {
        let held = self.cache.source(find(&self.manifest, layer)?).ok()??;
        let foreign = self.cache.is_foreign(&held);
        Some((held, foreign))
    }
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
        let deadline = Duration::from_secs(source.deadline);
        let places = std::iter::once(&source.registry.address).chain(&source.registry.mirrors);
        if places.into_iter().any(|address| address.starts_with("oci:")) {
            learn_names(&registry, package, deadline);
        }
        Ok(Self { registry, cache, manifest, deadline })
    }

    fn open(&self, layer: &JobLayer, verify: Verify) -> Result<StackLayer, LayerFault> {
        let Some(wanted) = find(&self.manifest, layer) else {
            return Ok(StackLayer::open(&layer.name, &layer.path)?);
        };
        let options = LazyOptions { deadline: self.deadline, ..LazyOptions::default() };
        let opened =
            mica_fetcher::open_lazy(Arc::clone(&self.registry), &self.cache, wanted, options);
        match opened.map_err(|error| LayerFault::Lazy(Box::new(error)))? {
            Lazy::Complete(held) => open_held(layer, held, verify),
            Lazy::Partial(source) => Ok(StackLayer::from_source(&layer.name, source)?),
        }
    }
}

/// Lets an OCI registry learn what its blobs are called. Without an answer in time, readers will say what is wrong.
fn learn_names(registry: &Arc<dyn Registry>, package: PackageRef, deadline: Duration) {
    let (registry, (told, hears)) = (Arc::clone(registry), std::sync::mpsc::channel());
    let ask = move || {
        // Nobody waits for it any more if it comes too late.
        told.send(registry.resolve(&package).map(drop)).ok();
    };
    let asked = std::thread::Builder::new().name("mica-names".to_owned()).spawn(ask);
    let answer = asked.map(|_| hears.recv_timeout(deadline));
    if let Ok(Ok(Err(error))) = &answer {
        tracing::warn!(error = error as &dyn std::error::Error, "the registry does not answer");
    } else if !matches!(answer, Ok(Ok(Ok(())))) {
        tracing::warn!("the registry did not answer in time");
    }
}

/// Opens an image of the cache in whatever form it is there.
fn open_held(layer: &JobLayer, held: Held, verify: Verify) -> Result<StackLayer, LayerFault> {
    match held {
        Held::Whole(path) => open_layer(&JobLayer { path, ..layer.clone() }, verify),
        Held::Borrowed(image) => open_borrowed(layer, image, verify),
    }
}

fn open_borrowed(
    layer: &JobLayer,
    image: BorrowedImage,
    verify: Verify,
) -> Result<StackLayer, LayerFault> {
    let (size, verify) = (image.size(), layer.when(verify));
    let table = layer.chunks.as_deref().filter(|_| verify != Verify::Never);
    let table = match table {
        Some(path) => Some(read_table(path, size, layer.table)?),
        None if layer.foreign => Some(make_table(layer, &Held::Borrowed(image.clone()))?),
        None => None,
    };
    Ok(StackLayer::from_local(&layer.name, image, table, verify)?)
}

fn open_layer(layer: &JobLayer, verify: Verify) -> Result<StackLayer, LayerFault> {
    let (name, path, verify) = (layer.name.as_str(), layer.path.as_path(), layer.when(verify));
    if verify == Verify::Never {
        return Ok(StackLayer::open(name, path)?);
    }
    // Whether it can be opened is the next one's to say.
    let size = fs::metadata(path).map_or(0, |meta| meta.len());
    let table = match (&layer.chunks, layer.digest) {
        (Some(path), _) => read_table(path, size, layer.table)?,
        (None, Some(digest)) if (1..=ONE_CHUNK).contains(&size) => {
            let mut table = ChunkTable::default();
            table.push(size as u32, *digest.as_bytes());
            table
        }
        (None, _) if layer.foreign => make_table(layer, &Held::Whole(path.to_owned()))?,
        _ => return Ok(StackLayer::open(name, path)?),
    };
    Ok(StackLayer::open_verified(name, path, table, verify)?)
}

impl JobLayer {
    /// When it is verified.
    fn when(&self, asked: Verify) -> Verify {
        if self.foreign { Verify::Always } else { asked }
    }
}

/// The table of an image of that size. What is compared with the digest is what is used: the file is read once.
fn read_table(path: &Path, size: u64, expected: Option<Digest>) -> Result<ChunkTable, LayerFault> {
    let (path, limit) = (path.to_owned(), ChunkTable::longest(size));
    let bytes = match read_regular(&path, limit) {
        Ok(bytes) => bytes,
        Err(source) => return Err(LayerFault::Table { path, source }),
    };
    let found = Digest::of(&bytes);
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        return Err(LayerFault::WrongTable { path, expected, found });
    }
    match ChunkTable::parse(&bytes) {
        Ok(table) if table.image_len() == size => Ok(table),
        Ok(table) => Err(LayerFault::OtherTable { path, covered: table.image_len(), size }),
        Err(source) => Err(LayerFault::BadTable { path, source }),
    }
}

fn read_regular(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let file = mica_durable::open_regular(path).map_err(|error| error.source)?;
    let file = file.ok_or(std::io::ErrorKind::NotFound)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// A table of an image that has none, and that another account can change.
fn make_table(layer: &JobLayer, image: &Held) -> Result<ChunkTable, LayerFault> {
    match &layer.digest {
        Some(digest) => Ok(mica_fetcher::made_table(image, digest)?),
        None => Err(LayerFault::NoDigest),
    }
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
            let trace = read_regular(&self.path, MAX_TRACE).ok();
            let trace = trace.and_then(|bytes| String::from_utf8(bytes).ok());
            options.trace = trace.and_then(|text| Trace::parse(&text)).map(Arc::new);
        }
    }

    /// Keeps what was recorded; a reader sees the old trace or the new one.
    pub(crate) fn save(&self, trace: Option<Trace>) {
        let Some(trace) = trace.filter(|_| self.record) else { return };
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return;
        };
        let saved = mica_durable::Folder::create(folder, 0o755)
            .and_then(|folder| folder.replace(name, trace.to_text().as_bytes(), 0o644));
        if let Err(error) = saved {
            let reason = &error.source;
            tracing::warn!(path = %self.path.display(), %error, %reason, "cannot keep the trace");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;
    use crate::config::{Restart, UpperDirs};

    /// A power loss may take what is written there without a sync, whatever the program asked for.
    #[test]
    fn only_what_is_thrown_away_is_written_without_a_sync() {
        let job = JobDir::at(PathBuf::from("/state/jobs/0123"));
        let elsewhere = UpperDirs { upper: "/data/upper".into(), work: "/data/work".into() };
        let cases = [
            (false, job.private_upper(), false),
            (true, job.private_upper(), true),
            (true, job.image_upper(0), true),
            // Of a job that goes, but a layer that the caller named and keeps.
            (true, elsewhere.clone(), false),
            (false, elsewhere, false),
        ];
        for (remove, upper, expected) in cases {
            let stack = StackConfig { upper: Some(upper), ..StackConfig::default() };
            let config = JobConfig { remove, ..config(Restart::No) };
            let options = stack.options_for(&job, &config);
            let upper = options.upper.unwrap();
            assert_eq!((upper.volatile, upper.thrown_away), (expected, expected), "{upper:?}");
            // One that is mounted beside jobs is always kept.
            assert!(!stack.options().upper.unwrap().volatile);
        }
    }
}
