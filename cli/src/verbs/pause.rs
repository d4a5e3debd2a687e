//! `mica pause`: stop all processes of jobs where they are.

use std::process::ExitCode;

use mica_agent::Remote;

use crate::context::Context;
use crate::error;
use crate::output;

/// Stop all processes of jobs where they are
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.each_job(&args.jobs, |job| {
        Remote::connect(job).and_then(|job| job.pause(true)).map_err(error::of_control)?;
        output::lines([job.id()])
    })
}
