//! `mica push`: publish a package of the cache.

use std::process::ExitCode;

use anyhow::Context as _;
use mica_fetcher::{PushOptions, registry};
use mica_graph::{PackageRef, Version};

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
    sign: SignFlags,
    /// Say nothing but the digest
    #[arg(short, long)]
    quiet: bool,
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
    let file = |digest: &_| Some(cache.blob_path(digest)).filter(|path| path.exists());
    let pushed = mica_fetcher::push(&*registry, &manifest, &file, &options, &bar)
        .with_context(|| format!("cannot push {}", args.reference))?;
    drop(bar);
    cache.add_signatures(&pushed.digest, &new)?;
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
