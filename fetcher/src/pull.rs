//! From a registry into the cache: only what is missing, all of it verified.
//!
//! Each image is fetched by one request into its `.part` file, several images at a time; of a large one only the chunks
//! that no earlier version here holds, by a request for each run of them, and if those are few, nothing else is stored. A connection that breaks is taken up again where it broke, as often as progress is made; so is the file of a process that died. Bytes count as
//! cached when the digest of all of them is right; wrong ones are thrown away and fetched once more.

mod borrow;
mod outcome;
mod sink;
mod transfer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mica_graph::{Blob, Digest, Layer, Manifest, PackageName, PackageRef};

use crate::admit;
use crate::cache::{Cache, CacheError, Part, Reserved};
use crate::delta::{self, Recipe, Step};
use crate::parallel;
use crate::patch::{self, Offer};
use crate::progress::{Event, Progress};
use crate::registry::{Registry, RegistryError, longest_table};
use crate::retry::Retry;
use crate::trust::{Trust, TrustError};

pub use outcome::{Outcome, Pulled};
pub(crate) use sink::Sink;
pub(crate) use transfer::{Came, TransferError};

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Images fetched at a time.
    pub parallel: usize,
    /// How often a connection is tried again without progress.
    pub retry: Retry,
    /// Of images with a chunk table, fetch only that: they are to be used by [`open_lazy`](crate::open_lazy).
    pub lazy: bool,
    /// Which packages need signatures.
    pub trust: Trust,
    /// How long to wait for another process that fetches the same image and gets nowhere.
    pub stall: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        let (retry, stall) = (Retry::default(), Duration::from_secs(180));
        Self { parallel: 4, retry, lazy: false, trust: Trust::default(), stall }
    }
}

/// A pull that failed. What it fetched so far is kept, and the next one goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// One image.
    #[error("cannot fetch {what}")]
    Blob {
        /// The layer, by name and digest.
        what: String,
        /// The reason.
        #[source]
        source: Box<PullError>,
    },
    /// The policy does not let the package be used. Nothing of it was fetched.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// No room, and nothing left to remove.
    #[error("no room for {needed} more bytes in {}", path.display())]
    Full {
        /// The cache's file.
        path: PathBuf,
        /// What is still to come.
        needed: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process holds the lock and gets nowhere.
    #[error("another process has been fetching {digest} for {} s without progress", waited.as_secs())]
    Stalled {
        /// What it fetches.
        digest: Digest,
        /// Since when nothing came.
        waited: Duration,
    },
    /// Another image failed, so this one was not finished.
    #[error("the pull was given up")]
    GivenUp,
}

impl PullError {
    /// What a person could do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::Cache(error) => error.hint().map(str::to_owned),
            Self::Blob { source, .. } => source.hint(),
            Self::Trust(error) => Some(error.hint()),
            Self::Full { .. } => Some("`mica prune` frees what no job uses".to_owned()),
            Self::Stalled { .. } => Some("end that process, or wait for it".to_owned()),
            Self::GivenUp => None,
        }
    }
}

/// Between two looks at a lock that another process holds.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// What is read and written at a time.
pub(crate) const PIECE: usize = 256 << 10;

/// An attempt that brought so much counts as progress.
pub(crate) const PROGRESS: u64 = 1 << 20;

/// Brings a package into the cache.
pub fn pull(
    registry: &dyn Registry,
    package: &PackageRef,
    cache: &Cache,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Pulled, PullError> {
    let resolved = registry.resolve(package)?;
    let cached = cache.manifest(&resolved.manifest.digest).ok().flatten();
    let is_known = cached.is_some();
    let manifest = cached.map_or_else(|| registry.manifest(&resolved), Ok)?;
    let signatures = admit::signatures(registry, &manifest, is_known, cache, &options.trust)?;
    cache.check_version(&manifest)?;
    // From here on nothing that this package needs is removed.
    let lease = with_room(cache, || cache.lease_package(&manifest))?;
    let layers = fetch_layers(registry, &manifest, cache, options, progress)?;
    let tags: Vec<_> = resolved.tag.iter().cloned().collect();
    with_room(cache, || cache.add_signatures(&manifest, &signatures, &options.trust))?;
    with_room(cache, || cache.record(&manifest, &tags))?;
    Ok(Pulled { resolved, manifest, layers, lease })
}

/// Brings in one blob that no package is pulled for.
pub(crate) fn fetch_blob(
    registry: &dyn Registry,
    cache: &Cache,
    blob: &Blob,
    options: &PullOptions,
) -> Result<(), PullError> {
    let _lease = cache.lease(&[blob.digest])?;
    fetch(registry, cache, options, blob)
}

/// Brings one image into the cache, whole. The caller has a lease.
pub(crate) fn fetch_image(
    registry: &dyn Registry,
    cache: &Cache,
    blob: &Blob,
) -> Result<(), PullError> {
    fetch(registry, cache, &PullOptions::default(), blob)
}

fn fetch(
    registry: &dyn Registry,
    cache: &Cache,
    options: &PullOptions,
    blob: &Blob,
) -> Result<(), PullError> {
    let stop = AtomicBool::new(false);
    let job = Job { registry, cache, options, progress: &(), stop: &stop, layer: 0, blob };
    job.run(None).map(drop)
}

/// Runs a small write again if the disk was full and something could be removed.
pub(crate) fn with_room<T>(
    cache: &Cache,
    write: impl Fn() -> Result<T, CacheError>,
) -> Result<T, CacheError> {
    match write() {
        Err(error) if error.is_full() && cache.make_room(1 << 20)? > 0 => write(),
        other => other,
    }
}

fn fetch_layers(
    registry: &dyn Registry,
    manifest: &Manifest,
    cache: &Cache,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Vec<Outcome>, PullError> {
    let mut missing: Vec<usize> = Vec::new();
    for (i, layer) in manifest.layers.iter().enumerate() {
        let known = missing.iter().any(|m| manifest.layers[*m].digest == layer.digest);
        // A damaged one is fetched again.
        if !known && !cache.holds(layer) {
            missing.push(i);
        }
    }
    let mut outcomes = vec![Outcome::Cached; manifest.layers.len()];
    if options.lazy {
        for i in missing.extract_if(.., |i| manifest.layers[*i].chunks.is_some()) {
            fetch_table(registry, cache, &manifest.layers[i])?;
            outcomes[i] = Outcome::Lazy;
        }
    }
    let bytes = missing.iter().map(|i| manifest.layers[*i].size).sum();
    progress.event(Event::Started { manifest, layers: &missing, bytes });
    let stop = AtomicBool::new(false);
    let fetch = |i: &usize| {
        let of = &manifest.layers[*i];
        let blob = of.image();
        let job = Job { registry, cache, options, progress, stop: &stop, layer: *i, blob: &blob };
        let result = job.run(Some((&manifest.name, of)));
        stop.fetch_or(result.is_err(), Ordering::Relaxed);
        let what = || format!("layer {} ({})", of.module, of.digest.short());
        result.map_err(|e| PullError::Blob { what: what(), source: Box::new(e) })
    };
    let results = parallel::map(options.parallel, &missing, fetch);
    let mut given_up = None;
    for (i, result) in missing.into_iter().zip(results) {
        match result {
            Ok(outcome) => outcomes[i] = outcome,
            // Not the reason, only its consequence.
            Err(PullError::Blob { source, .. }) if matches!(*source, PullError::GivenUp) => {
                given_up = Some(PullError::GivenUp);
            }
            Err(error) => return Err(error),
        }
    }
    given_up.map_or(Ok(outcomes), Err)
}

fn fetch_table(registry: &dyn Registry, cache: &Cache, layer: &Layer) -> Result<(), PullError> {
    let Some(table) = layer.chunks.as_ref() else { return Ok(()) };
    if !matches!(cache.blob(table), Ok(Some(_))) {
        let bytes = registry.document(table, longest_table(layer.size))?;
        with_room(cache, || cache.store(table, &bytes))?;
    }
    Ok(())
}

/// Brings the image of a layer in, in whatever way is cheapest.
pub(crate) fn fetch_layer(
    registry: &dyn Registry,
    cache: &Cache,
    package: &PackageName,
    layer: &Layer,
    options: &PullOptions,
) -> Result<(), PullError> {
    let tables = layer.chunks.iter().map(|table| table.digest);
    let _lease = cache.lease(&std::iter::once(layer.digest).chain(tables).collect::<Vec<_>>())?;
    if cache.holds(layer) {
        return Ok(());
    }
    let (stop, blob) = (AtomicBool::new(false), layer.image());
    let job = Job { registry, cache, options, progress: &(), stop: &stop, layer: 0, blob: &blob };
    job.run(Some((package, layer))).map(drop)
}

/// One blob to be brought in.
pub(crate) struct Job<'a> {
    pub(crate) registry: &'a dyn Registry,
    pub(crate) cache: &'a Cache,
    pub(crate) options: &'a PullOptions,
    pub(crate) progress: &'a dyn Progress,
    /// Set when another blob failed.
    stop: &'a AtomicBool,
    pub(crate) layer: usize,
    pub(crate) blob: &'a Blob,
}

impl Job<'_> {
    fn run(&self, of: Option<(&PackageName, &Layer)>) -> Result<Outcome, PullError> {
        let mut came = Came::default();
        let Some(mut part) = self.reserve()? else { return Ok(Outcome::Shared) };
        let resumed = part.len();
        let mut recipe = Recipe::whole();
        if let Some((package, of)) = of {
            self.progress.event(Event::LayerStarted { layer: self.layer, of, resumed });
            recipe = delta::recipe(self.registry, self.cache, package, of);
            let done = self.by_difference((package, of), &recipe, &mut part, &mut came)?;
            if let Some(outcome) = done {
                part.discard()?;
                return Ok(outcome);
            }
        }
        let mut wrong = 0;
        loop {
            if let Err(error) = self.fill(&mut part, &recipe, &mut came) {
                if matches!(error, PullError::Full { .. }) {
                    // Half an image helps nobody on a full disk.
                    part.discard()?;
                }
                return Err(error);
            }
            let Err(mismatch) = part.finish(self.cache)? else {
                self.cache.keep_quota()?;
                self.progress.event(Event::LayerDone { layer: self.layer });
                let bytes = came.received;
                return Ok(match came {
                    Came { patched: true, resumed, .. } => Outcome::Patched { bytes, resumed },
                    Came { copied, .. } => Outcome::Fetched { bytes, resumed, copied },
                });
            };
            let (found, expected) = (mismatch.found, self.blob.digest);
            tracing::warn!(%expected, %found, bytes = mismatch.len, "wrong bytes");
            wrong += 1;
            if wrong > self.registry.sources() {
                let registry = self.registry.address().to_owned();
                return Err(RegistryError::WrongBytes { registry, expected, found }.into());
            }
            // What was here, left over or copied, or one bad transfer, may be to blame: once more, all from there.
            self.registry.distrust(self.blob);
            self.progress.event(Event::Restarted { layer: self.layer });
            recipe = Recipe::whole();
            came.patched = false;
            match self.reserve()? {
                Some(again) => part = again,
                None => return Ok(Outcome::Shared),
            }
        }
    }

    /// Brings a layer's image in by what distinguishes it from earlier ones, if that is how it is best done, and otherwise than as
    /// a file. What a patch makes is in the part.
    fn by_difference(
        &self,
        (package, of): (&PackageName, &Layer),
        recipe: &Recipe,
        part: &mut Part,
        came: &mut Came,
    ) -> Result<Option<Outcome>, PullError> {
        if self.cache.holds(of) {
            // Another process was quicker.
            return Ok(Some(Outcome::Shared));
        }
        tracing::debug!(layer = %of.module, size = of.size, local = recipe.local(), "fetching");
        let offer = patch::offer(self.registry, self.cache, package, of);
        let fetch = recipe.fetch(part.len(), self.blob.size);
        if let (Some(table), Some(blob)) = (recipe.table(), &of.chunks) {
            part.compare(blob.digest, table.clone());
        }
        let plan = recipe.borrow().filter(|_| part.len() == 0);
        let beats = |offer: &Offer| offer.beats(plan.as_ref(), fetch, self.blob.size);
        if let Some(offer) = offer.filter(beats) {
            came.patched = self.patched(part, &offer, came)?;
            return Ok(None);
        }
        let Some(plan) = plan else { return Ok(None) };
        if self.borrow(of, &plan, came)? {
            return self.borrowed(plan.borrowed(), came).map(Some);
        }
        self.progress.event(Event::Restarted { layer: self.layer });
        Ok(None)
    }

    /// Waits for the lock of the digest; `None` if the blob came meanwhile.
    fn reserve(&self) -> Result<Option<Box<Part>>, PullError> {
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            match with_room(self.cache, || self.cache.reserve(self.blob))? {
                Reserved::Present => return Ok(None),
                Reserved::Ours(part) => return Ok(Some(part)),
                Reserved::Busy(len) => {
                    if seen.is_none() {
                        self.progress.event(Event::Waiting { layer: self.layer });
                    }
                    if seen.replace(len) != Some(len) {
                        since = Instant::now();
                    }
                    if since.elapsed() > self.options.stall {
                        let (digest, waited) = (self.blob.digest, since.elapsed());
                        return Err(PullError::Stalled { digest, waited });
                    }
                }
            }
            self.check_stop()?;
            std::thread::sleep(POLL);
        }
    }

    pub(crate) fn check_stop(&self) -> Result<(), PullError> {
        if self.stop.load(Ordering::Relaxed) { Err(PullError::GivenUp) } else { Ok(()) }
    }

    /// Brings what the part lacks, taking broken connections up again.
    fn fill(&self, part: &mut Part, recipe: &Recipe, came: &mut Came) -> Result<(), PullError> {
        let mut failed = 0;
        while part.len() < self.blob.size {
            let before = part.len();
            let step = match recipe.step(before, self.blob.size) {
                Step::Copy { file, offset, length } => self.copy(part, file, offset, length, came),
                Step::Fetch { until } => self.transfer(part, until, came),
            };
            match step {
                Ok(()) => failed = 0,
                Err(error) => self.go_on(error, part, before, &mut failed)?,
            }
        }
        Ok(())
    }

    /// After an error: makes room, or waits for the next try; fails if neither helps.
    fn go_on(
        &self,
        error: TransferError,
        sink: &dyn Sink,
        before: u64,
        failed: &mut u32,
    ) -> Result<(), PullError> {
        let error = match error {
            TransferError::Full(source) => {
                let needed = self.blob.size - sink.at();
                if self.cache.make_room(needed)? > 0 {
                    return Ok(());
                }
                return Err(PullError::Full { path: sink.path().to_owned(), needed, source });
            }
            TransferError::Pull(error) => return Err(error),
            TransferError::Wrong(error) => return Err(error.into()),
            TransferError::Registry(error) => error,
        };
        *failed = if sink.at().saturating_sub(before) >= PROGRESS { 1 } else { *failed + 1 };
        let Some(wait) = self.options.retry.after(*failed, &error) else {
            return Err(error.into());
        };
        self.progress.event(Event::Retrying { layer: self.layer, error: &error, wait });
        tracing::debug!(%error, ?wait, at = sink.at(), "resuming");
        std::thread::sleep(wait);
        self.check_stop()
    }
}
