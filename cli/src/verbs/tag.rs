//! `mica tag`: make a tag mean a version.

use std::process::ExitCode;

use mica_fetcher::registry;
use mica_graph::{PackageRef, Version};

use crate::context::Context;
use crate::output;
use crate::registries::RegistryFlags;

/// Make a tag of a package mean one of its versions, in the registry and in the cache
///
/// Prints the tagged reference. Tags move; versions never change.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package: A, A@commit, or another tag of it
    #[arg(value_name = "REF")]
    reference: PackageRef,
    /// The tag
    #[arg(value_name = "TAG")]
    tag: Version,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    // Resolved for reading first: that tells a folder without a registry from one with.
    let readable = registry::open(&context.places.registry, &context.registries())?;
    let found = readable.resolve(&args.reference)?;
    let registry = registry::open_writable(&context.places.registry, &context.registries())?;
    registry.tag(&found.name, &args.tag, &found.version)?;
    context.cache()?.tag(&found.name, &args.tag, &found.version)?;
    output::lines([format!("{}@{}", found.name, args.tag).as_str()])?;
    Ok(ExitCode::SUCCESS)
}
