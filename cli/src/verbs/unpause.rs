//! `mica unpause`: let paused jobs go on.

use std::process::ExitCode;

use mica_agent::Remote;

use crate::context::Context;
use crate::error;
use crate::output;

/// Let paused jobs go on
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.each_job(&args.jobs, |job| {
        Remote::connect(job).and_then(|job| job.pause(false)).map_err(error::of_control)?;
        output::lines([job.id()])
    })
}
