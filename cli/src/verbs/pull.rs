//! `mica pull`: fetch a package into the cache.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use mica_agent::{JobLayer, LazySource, TraceFile};
use mica_fetcher::registry;
use mica_fetcher::{
    Cache, Costs, Event, Held, LookupError, Outcome, Progress, PullOptions, Pulled, Way,
};
use mica_graph::{Blob, Manifest, PackageRef};
use serde_json::json;

use super::run::PullWhen;
use crate::context::Context;
use crate::output::{self, note};
use crate::registries::RegistryFlags;
use crate::shown;

/// Fetch a package into the cache
///
/// Prints the digest of its manifest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package: A, A@tag, A@commit or A@ and the beginning of a commit
    #[arg(value_name = "REF")]
    reference: PackageRef,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    /// Fetch only what a job needs to start with: `mica run --lazy` fetches the rest when it is read
    #[arg(long, conflicts_with = "explain")]
    lazy: bool,
    /// Only say how each layer would come, and at what cost
    #[arg(long)]
    explain: bool,
    /// With --explain: print JSON
    #[arg(long, requires = "explain")]
    json: bool,
    /// Take it also in place of other content that this version has here
    #[arg(long)]
    replace: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let cache = context.cache()?.replacing(args.replace);
    if args.explain {
        return explain(args, context, &cache);
    }
    let pulled = pull(context, &args.reference, &cache, args.quiet, args.lazy)?;
    if !args.quiet {
        for (layer, outcome) in pulled.manifest.layers.iter().zip(&pulled.layers) {
            let (came, size) = (output::bytes(outcome.bytes()), output::bytes(layer.size));
            note(format_args!("{}  {came:>10} of {size:>11}  {}", word(outcome), layer.module));
        }
    }
    output::lines([pulled.manifest.digest().to_string().as_str()])?;
    Ok(ExitCode::SUCCESS)
}

fn explain(args: &Args, context: &Context, cache: &Cache) -> anyhow::Result<ExitCode> {
    let registry = registry::open(&context.places.registry, &context.registries())?;
    let explained = mica_fetcher::explain(&*registry, &args.reference, cache)?;
    let layers = explained.manifest.layers.iter().zip(&explained.layers);
    if args.json {
        let rows: Vec<_> = layers
            .zip(&explained.costs)
            .map(|((layer, (module, way)), costs)| {
                let (way, fetch) = (way_word(way), way.fetch());
                let ways = costs.map(|Costs { whole, chunks, patch }| {
                    json!({ "whole": whole, "chunks": chunks, "patch": patch })
                });
                json!({ "layer": module, "size": layer.size, "way": way, "fetch": fetch, "ways": ways })
            })
            .collect();
        output::json(&json!({ "layers": rows, "fetch": explained.fetch() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 6]> = layers
        .zip(&explained.costs)
        .map(|((layer, (module, way)), costs)| {
            let shown = |bytes: Option<u64>| bytes.map_or("-".to_owned(), output::bytes);
            let (module, way, fetch) = (module.to_string(), way_word(way), way.fetch());
            let chunks = shown(costs.and_then(|costs| costs.chunks));
            let patch = shown(costs.and_then(|costs| costs.patch));
            let (fetch, size) = (output::bytes(fetch), output::bytes(layer.size));
            [module, way.to_owned(), fetch, patch, chunks, size]
        })
        .collect();
    output::table(["LAYER", "WAY", "FETCH", "PATCH", "CHUNKS", "SIZE"], &rows)?;
    note(format_args!("{} to fetch", output::bytes(explained.fetch())));
    Ok(ExitCode::SUCCESS)
}

fn way_word(way: &Way) -> &'static str {
    match way {
        Way::Cached => "cached",
        Way::Same => "same",
        Way::Whole { resume: 0, .. } => "whole",
        Way::Whole { .. } => "resumed",
        Way::Chunks { .. } => "chunks",
        Way::Borrowed { .. } => "borrowed",
        Way::Patch { .. } => "patch",
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Cached => "cached ",
        Outcome::Fetched { resumed: 0, .. } => "fetched",
        Outcome::Fetched { .. } => "resumed",
        Outcome::Borrowed { .. } => "fetched",
        Outcome::Patched { .. } => "patched",
        Outcome::Shared => "shared ",
        Outcome::Lazy => "lazy   ",
    }
}

/// Fetches a package from the configured registry.
pub(crate) fn pull(
    context: &Context,
    reference: &PackageRef,
    cache: &Cache,
    quiet: bool,
    lazy: bool,
) -> anyhow::Result<Pulled> {
    let registry = registry::open(&context.places.registry, &context.registries())?;
    let bar = Bar::new(quiet);
    let trust = context.places.trust.clone();
    let options = PullOptions { lazy, trust, ..PullOptions::default() };
    let pulled = mica_fetcher::pull(&*registry, reference, cache, &options, &bar);
    pulled.with_context(|| format!("cannot pull {reference}"))
}

/// The package's manifest, its images being in the cache: from there, or from the registry.
pub(crate) fn obtain(
    context: &Context,
    cache: &Cache,
    reference: &PackageRef,
    when: PullWhen,
    quiet: bool,
    lazy: &LazyFlags,
) -> anyhow::Result<Manifest> {
    if when != PullWhen::Always {
        match cache.lookup(reference) {
            // A version whose images were pruned is known but not here.
            Ok(manifest)
                if when == PullWhen::Never
                    || cache.sources(&manifest).is_ok()
                    || (lazy.lazy && has_tables(cache, &manifest)) =>
            {
                cache.check_trust(&context.places.trust, &manifest)?;
                return Ok(manifest);
            }
            Ok(_) => {}
            Err(LookupError::UnknownPackage(_) | LookupError::Select(_))
                if when == PullWhen::Missing => {}
            Err(error) => return Err(error.into()),
        }
    }
    let manifest = pull(context, reference, cache, quiet, lazy.lazy)?.manifest;
    cache.check_trust(&context.places.trust, &manifest)?;
    Ok(manifest)
}

/// Whether each image is here, or at least its chunk table.
fn has_tables(cache: &Cache, manifest: &Manifest) -> bool {
    let here = |blob: &Blob| matches!(cache.blob(blob), Ok(Some(_)));
    manifest
        .layers
        .iter()
        .all(|layer| cache.holds(layer) || layer.chunks.as_ref().is_some_and(here))
}

/// Flags of jobs and mounts that start before all of their images are here.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct LazyFlags {
    /// Start with the manifest and chunk tables, and fetch what is read when it is read; the rest follows
    #[arg(long)]
    lazy: bool,
    /// With --lazy: how long a reader waits for what is missing; then it gets an I/O error
    #[arg(long, value_name = "SECONDS", default_value_t = 30, requires = "lazy")]
    lazy_deadline: u64,
}

impl LazyFlags {
    /// Whence the images come that are not all here.
    pub(crate) fn source(
        &self,
        context: &Context,
        manifest: &Manifest,
    ) -> anyhow::Result<Option<LazySource>> {
        if !self.lazy {
            return Ok(None);
        }
        Ok(Some(LazySource {
            registry: context.source()?,
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            deadline: self.lazy_deadline,
        }))
    }
}

/// The stack of a package whose images are in the cache, or come there when they are read.
pub(crate) fn cached_layers(
    cache: &Cache,
    manifest: &Manifest,
    lazy: &LazyFlags,
) -> anyhow::Result<Vec<JobLayer>> {
    if !lazy.lazy {
        cache.sources(manifest)?;
    }
    let layers = manifest.layers.iter().map(|layer| {
        let held = cache.source(layer).ok().flatten();
        let foreign = held.as_ref().is_some_and(|held| cache.is_foreign(held));
        let path = match held {
            Some(Held::Whole(path)) => path,
            // Where it would be: whoever opens it asks the cache for what it has instead.
            _ => cache.blob_path(&layer.digest),
        };
        let chunks = match &layer.chunks {
            Some(table) => cache.blob(table)?,
            None => None,
        };
        let (name, digest) = (layer.module.to_string(), Some(layer.digest));
        let table = layer.chunks.as_ref().map(|table| table.digest);
        Ok(JobLayer { name, path, digest, chunks, table, foreign })
    });
    layers.collect()
}

/// Where a package's trace is kept: beside it in the cache.
pub(crate) fn trace_file(cache: &Path, manifest: &Manifest, record: bool) -> TraceFile {
    let path = cache.join("traces").join(manifest.digest().hex());
    TraceFile { path, record }
}

/// One bar for all of a package's bytes.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = match output::shows_progress(quiet) {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self(bar)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Started { manifest, bytes, .. } => {
                self.0.set_length(bytes);
                let source = format!("{}@{}", manifest.name, manifest.version);
                self.0.set_message(shown::line(&output::short_source(&source)).into_owned());
            }
            Event::LayerStarted { resumed: bytes, .. } | Event::Bytes { bytes, .. } => {
                self.0.inc(bytes)
            }
            Event::PatchStarted { of } => {
                let module = output::short_source(&of.module.to_string());
                self.0.set_message(format!("patch of {}", shown::line(&module)));
                self.0.reset();
            }
            Event::PatchMade { done, total } => {
                self.0.set_length(total);
                self.0.set_position(done);
            }
            Event::Retrying { error, wait, .. } => {
                let again = output::duration(wait);
                self.0.suspend(|| note(format_args!("{error}; trying again in {again}")));
            }
            _ => {}
        }
    }
}
