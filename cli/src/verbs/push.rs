//! `mica push`: publish a package of the cache.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use mica_fetcher::registry::{self, WriteRegistry};
use mica_fetcher::{Cache, PatchBases, PushOptions, PushedPatch};
use mica_graph::{Digest, Manifest, PackageRef, Version};

use super::pull;
use crate::context::Context;
use crate::output::{self, note};
use crate::registries::RegistryFlags;
use crate::trust::{self, SignFlags};

/// Publish a package of the cache to a registry
///
/// What the registry has is not sent again. Prints the digest of the manifest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package
    #[arg(value_name = "REF")]
    reference: PackageRef,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    /// Tags to move to this version, besides `latest`
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Version>,
    #[command(flatten)]
    patches: PatchFlags,
    #[command(flatten)]
    sign: SignFlags,
    /// Say nothing but the digest
    #[arg(short, long)]
    quiet: bool,
}

/// Which patches to add to what is published.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct PatchFlags {
    /// Add patches: what makes the new layers of those of this package, where that is less than the new chunks
    #[arg(long, value_name = "REF", value_delimiter = ',')]
    patch_from: Vec<PackageRef>,
    /// Add patches from the newest so many other versions in the registry
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    patch_newest: usize,
}

impl PatchFlags {
    /// Makes the patches of a package that was published, if any were asked for.
    pub(crate) fn add(
        &self,
        registry: &dyn WriteRegistry,
        cache: &Cache,
        manifest: &Manifest,
        file: &dyn Fn(&Digest) -> Option<PathBuf>,
        quiet: bool,
    ) -> anyhow::Result<()> {
        let bases = PatchBases { packages: self.patch_from.clone(), newest: self.patch_newest };
        if bases.packages.is_empty() && bases.newest == 0 {
            return Ok(());
        }
        let bar = pull::Bar::new(quiet);
        let patches = mica_fetcher::push_patches(registry, cache, manifest, file, &bases, &bar)
            .context("the package is published, but not all of its patches")?;
        drop(bar);
        for PushedPatch { module, old, size, chunks, sent } in patches.iter().filter(|_| !quiet) {
            let (size, chunks) = (output::bytes(*size), output::bytes(*chunks));
            let does = if *sent { "patch" } else { "no patch" };
            note(format_args!("{does} from {old}: {size}, by chunks {chunks}  {module}"));
        }
        Ok(())
    }
}

/// The file of an image or chunk table of a package. A borrowed image is assembled.
fn blob_file(cache: &Cache, manifest: &Manifest, digest: &Digest) -> Option<PathBuf> {
    let found = match manifest.layers.iter().find(|layer| layer.digest == *digest) {
        Some(layer) => cache.image(layer),
        None => {
            let mut tables = manifest.layers.iter().filter_map(|layer| layer.chunks.as_ref());
            cache.blob(tables.find(|table| table.digest == *digest)?)
        }
    };
    // It is missing then, which is said with its name.
    found
        .inspect_err(
            |error| tracing::warn!(%digest, error = error as &dyn std::error::Error, "cannot read"),
        )
        .ok()?
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let keys = args.sign.unlock()?;
    let cache = context.cache()?;
    let manifest = cache.lookup(&args.reference)?;
    let mut signatures = cache.signatures(&manifest.digest())?;
    let new = trust::sign(&keys, &manifest)?;
    signatures.merge(&new);
    let _lease = cache.lease_package(&manifest)?;
    let registry = registry::open_writable(&context.places.registry, &context.registries())?;
    let options = PushOptions { tags: args.tags.clone(), signatures, ..PushOptions::default() };
    let bar = pull::Bar::new(args.quiet);
    let file = |digest: &_| blob_file(&cache, &manifest, digest);
    let pushed = mica_fetcher::push(&*registry, &manifest, &file, &options, &bar)
        .with_context(|| format!("cannot push {}", args.reference))?;
    drop(bar);
    cache.add_signatures(&manifest, &new, &context.places.trust)?;
    args.patches.add(&*registry, &cache, &manifest, &file, args.quiet)?;
    if !args.quiet {
        let sent = pushed.sent.iter().filter(|sent| **sent).count();
        note(format_args!(
            "sent {sent} of {} layers, {}",
            pushed.sent.len(),
            output::bytes(pushed.bytes)
        ));
    }
    output::lines([pushed.digest.to_string().as_str()])?;
    Ok(ExitCode::SUCCESS)
}
