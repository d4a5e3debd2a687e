//! `mica wait`: wait for jobs to end and print their exit codes.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::context::Context;
use crate::output;

/// Wait for jobs to end and print their exit codes
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.each_job(&args.jobs, |job| {
        job.wait_until_released()?;
        mica_agent::reconcile(&context.state()?)?; // if its supervisor was killed
        let status = job.status()?.context("the job was removed when it ended")?;
        output::lines([status.exit_code.unwrap_or_default().to_string().as_str()])
    })
}
