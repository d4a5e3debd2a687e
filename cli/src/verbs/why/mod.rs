//! `mica why`: how something came into a package.

mod module;
mod place;
mod target;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use mica_graph::{Label, PackageRef};

use super::plan::Source;
use crate::context::Context;
use crate::registries::RegistryFlags;

/// Show how something came into a package: which module put a path there, which dependencies lead to a module
///
/// Of a path of a package, the layers that have it: a folder is merged from all that are shown. Of a path or a module
/// of a target, the dependencies that lead from the target to it. Of a module and another version, what has changed in
/// its layer since: A is added, C changed, D deleted.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Args {
    /// The package
    #[arg(value_name = "REF", required_unless_present = "target", conflicts_with_all = ["target", "graph", "workspace", "jobs"])]
    reference: Option<PackageRef>,
    /// A path, from the root of the stack, or a module: //package:name
    #[arg(value_name = "PATH|MODULE", required = true)]
    what: PathBuf,
    /// Instead of a package, a target as it is now: //package:name
    #[arg(long, value_name = "LABEL")]
    target: Option<Label>,
    #[command(flatten)]
    source: Source,
    /// Show what has changed in the module since this version, so that it was or would be packed again
    #[arg(long, value_name = "REF")]
    since: Option<PackageRef>,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let module = module(&args.what)?;
    match (&args.reference, &args.target, module, &args.since) {
        (Some(package), _, Some(module), Some(since)) => {
            let new = module::Layer::of_package(context, package, &module)?;
            module::since(context, &module, &new, since, args.json)?;
        }
        (None, Some(target), Some(module), Some(since)) => {
            let new = module::Layer::of_target(&args.source.plan(target)?, &module)?;
            module::since(context, &module, &new, since, args.json)?;
        }
        (.., None, Some(_)) => bail!("{} is no module", args.what.display()),
        (Some(package), _, Some(module), None) => {
            module::show(context, package, &module, args.json)?;
        }
        (Some(package), _, None, None) => place::show(context, package, &args.what, args.json)?,
        (None, Some(target), module, None) => {
            let built = args.source.plan(target)?;
            target::show(&built, &args.what, module.as_ref(), args.json)?;
        }
        (None, None, ..) => bail!("of which package?"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The module that is meant, if it is none of the tree's paths.
fn module(what: &Path) -> anyhow::Result<Option<Label>> {
    match what.to_str() {
        Some(text) if text.starts_with("//") || text.starts_with('@') && text.contains("//") => {
            Ok(Some(text.parse()?))
        }
        _ => Ok(None),
    }
}
