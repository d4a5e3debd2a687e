//! `mica rename`: give a job another name.

use std::process::ExitCode;

use crate::context::Context;

/// Give a job another name
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, beginning of an id, or name of the job
    job: String,
    /// The new name
    name: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let state = context.jobs()?;
    state.rename(&state.find(&args.job)?, &args.name)?;
    Ok(ExitCode::SUCCESS)
}
