//! `mica pull`: fetch a package into the cache.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use mica_agent::{JobLayer, TraceFile};
use mica_fetcher::registry::{self, Access, HttpOptions, OpenOptions};
use mica_fetcher::{Cache, Event, LookupError, Outcome, Progress, PullOptions, Pulled};
use mica_graph::{Manifest, PackageRef};

use super::run::PullWhen;
use crate::context::Context;
use crate::output::{self, note};

/// Fetch a package into the cache
///
/// Prints the digest of its manifest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package: A, A@tag, A@commit or A@ and the beginning of a commit
    #[arg(value_name = "REF")]
    reference: PackageRef,
    /// Registry to pull from: a folder or a URL
    #[arg(long, value_name = "R")]
    pub(crate) registry: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let cache = context.cache()?;
    let pulled = pull(&context.places.registry, &args.reference, &cache, args.quiet)?;
    if !args.quiet {
        for (layer, outcome) in pulled.manifest.layers.iter().zip(&pulled.layers) {
            let (came, size) = (output::bytes(outcome.bytes()), output::bytes(layer.size));
            note(format_args!("{}  {came:>10} of {size:>11}  {}", word(outcome), layer.module));
        }
    }
    output::lines([pulled.manifest.digest().to_string().as_str()])?;
    Ok(ExitCode::SUCCESS)
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Cached => "cached ",
        Outcome::Fetched { resumed: 0, .. } => "fetched",
        Outcome::Fetched { .. } => "resumed",
        Outcome::Shared => "shared ",
    }
}

/// Fetches a package from the registry at `address`.
pub(crate) fn pull(
    address: &str,
    reference: &PackageRef,
    cache: &Cache,
    quiet: bool,
) -> anyhow::Result<Pulled> {
    let registry = registry::open(address, &registry_options())?;
    let bar = Bar::new(quiet);
    let pulled = mica_fetcher::pull(&*registry, reference, cache, &PullOptions::default(), &bar);
    pulled.with_context(|| format!("cannot pull {reference}"))
}

/// How registries are reached: with the token in `MICA_TOKEN`, where there is one.
pub(crate) fn registry_options() -> OpenOptions {
    let access = match std::env::var("MICA_TOKEN") {
        Ok(token) if !token.is_empty() => Access::Bearer(token),
        _ => Access::Anonymous,
    };
    let http = HttpOptions { access, ..HttpOptions::default() };
    OpenOptions { http, ..OpenOptions::default() }
}

/// The package's manifest, its images being in the cache: from there, or from the registry.
pub(crate) fn obtain(
    context: &Context,
    cache: &Cache,
    reference: &PackageRef,
    when: PullWhen,
    quiet: bool,
) -> anyhow::Result<Manifest> {
    if when != PullWhen::Always {
        match cache.lookup(reference) {
            // A version whose images were pruned is known but not here.
            Ok(manifest) if when == PullWhen::Never || cache.stack(&manifest).is_ok() => {
                return Ok(manifest);
            }
            Ok(_) => {}
            Err(LookupError::UnknownPackage(_) | LookupError::Select(_))
                if when == PullWhen::Missing => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(pull(&context.places.registry, reference, cache, quiet)?.manifest)
}

/// The stack of a package whose images are in the cache.
pub(crate) fn cached_layers(cache: &Cache, manifest: &Manifest) -> anyhow::Result<Vec<JobLayer>> {
    let paths = cache.stack(manifest)?;
    let layers = manifest.layers.iter().zip(paths).map(|(layer, path)| {
        let chunks = match &layer.chunks {
            Some(table) => cache.blob(table)?,
            None => None,
        };
        Ok(JobLayer { name: layer.module.to_string(), path, digest: Some(layer.digest), chunks })
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
                self.0.set_message(output::short_source(&format!(
                    "{}@{}",
                    manifest.name, manifest.version
                )));
            }
            Event::LayerStarted { resumed: bytes, .. } | Event::Bytes { bytes, .. } => {
                self.0.inc(bytes)
            }
            Event::Retrying { error, wait, .. } => {
                let again = output::duration(wait);
                self.0.suspend(|| note(format_args!("{error}; trying again in {again}")));
            }
            _ => {}
        }
    }
}
