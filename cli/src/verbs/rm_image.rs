//! `mica rm-image`: forget packages.

use std::process::ExitCode;

use mica_graph::PackageRef;

use crate::context::Context;
use crate::{error, output};

/// Forget versions of packages, or tags
///
/// The images that no other package needs go with the next `mica prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Packages, or tags of packages
    #[arg(required = true, value_name = "REF")]
    references: Vec<PackageRef>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let cache = context.cache()?;
    let mut exit = ExitCode::SUCCESS;
    for reference in &args.references {
        match cache.forget(reference) {
            Ok(()) => output::lines([reference.to_string().as_str()])?,
            Err(error) => exit = error::report(&error.into(), 1),
        }
    }
    Ok(exit)
}
