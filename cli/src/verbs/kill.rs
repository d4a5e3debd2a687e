//! `mica kill`: send a signal to jobs.

use std::process::ExitCode;

use crate::context::Context;
use crate::{error, output, signals};

/// Send a signal to jobs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
    /// The signal, by name or number
    #[arg(short, long, default_value = "KILL", value_parser = signals::parse)]
    signal: i32,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.each_job(&args.jobs, |job| {
        mica_agent::signal(job, args.signal).map_err(error::of_control)?;
        output::lines([job.id()])
    })
}
