//! `mica sign`: sign a package that is published, or in the cache.

use std::path::PathBuf;
use std::process::ExitCode;

use mica_fetcher::registry;
use mica_graph::PackageRef;

use crate::context::Context;
use crate::output::{self, note};
use crate::registries::RegistryFlags;
use crate::trust;

/// Sign a package that was published before
///
/// The signature is over the manifest, which names the package, its version and every layer's digest. It is added to those that are
/// there. Prints the manifest's digest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package
    #[arg(value_name = "REF")]
    reference: PackageRef,
    /// The secret key, of `mica key new` or of minisign; may be given several times
    #[arg(short, long = "key", value_name = "KEY", required = true)]
    keys: Vec<PathBuf>,
    /// Read the secret keys' passwords from standard input, one a line
    #[arg(long)]
    password_stdin: bool,
    /// Sign what is in the cache, for `mica save` and `mica push`, and ask no registry
    #[arg(long)]
    cached: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let keys = trust::unlock(&args.keys, args.password_stdin)?;
    let cache = context.cache()?;
    let (manifest, signatures) = if args.cached {
        let manifest = cache.lookup(&args.reference)?;
        let signatures = trust::sign(&keys, &manifest)?;
        (manifest, signatures)
    } else {
        // For reading first: that tells a folder without a registry from one with.
        let readable = registry::open(&context.places.registry, &context.registries())?;
        readable.resolve(&args.reference)?;
        let registry = registry::open_writable(&context.places.registry, &context.registries())?;
        let manifest = registry.manifest(&registry.resolve(&args.reference)?)?;
        let signatures = trust::sign(&keys, &manifest)?;
        registry.add_signatures(&manifest.digest(), &signatures)?;
        (manifest, signatures)
    };
    let digest = manifest.digest();
    if cache.manifest(&digest)?.is_some() {
        cache.add_signatures(&manifest, &signatures, &context.places.trust)?;
    }
    note(format_args!("signed {}@{}", manifest.name, manifest.version));
    output::lines([digest.to_string().as_str()])?;
    Ok(ExitCode::SUCCESS)
}
