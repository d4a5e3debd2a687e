//! `mica cache`: look after the node's images.

use std::process::ExitCode;

use anyhow::Context as _;
use mica_fetcher::{PullOptions, registry};

use crate::context::Context;
use crate::output::{self, note};
use crate::registries::RegistryFlags;

/// Look after the node's images
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Hash everything in the cache again and name what is damaged
    Verify(Verify),
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// Remove what is damaged and fetch it again
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

impl Args {
    /// The registry named by a flag.
    pub(crate) fn registry(&self) -> &RegistryFlags {
        let Verb::Verify(args) = &self.verb;
        &args.registry
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let Verb::Verify(args) = &args.verb;
    if args.repair && mica_fetcher::Cache::open_damaged(&context.places.cache)?.1 {
        note(format_args!("the cache's version file was written anew"));
    }
    let cache = context.cache()?;
    let verified = cache.verify(args.repair)?;
    let paths: Vec<String> =
        verified.damage.iter().map(|damage| damage.path().display().to_string()).collect();
    output::lines(paths.iter().map(String::as_str))?;
    note(format_args!("verified {} files, {}", verified.files, output::bytes(verified.bytes)));
    if paths.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if !args.repair {
        note(format_args!(
            "{} files are damaged; `mica cache verify --repair` fetches them again",
            paths.len()
        ));
        return Ok(ExitCode::FAILURE);
    }
    let registry = registry::open(&context.places.registry, &context.registries())?;
    let trust = context.places.trust.clone();
    let options = PullOptions { trust, ..PullOptions::default() };
    mica_fetcher::heal(&*registry, &cache, &verified, &options)
        .context("what is damaged was removed, but cannot be fetched again")?;
    note(format_args!("{} files were repaired", paths.len()));
    Ok(ExitCode::SUCCESS)
}
