//! `mica wait`: wait for jobs to end and print their exit codes.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use mica_agent::Remote;

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
        // A job that is removed when it ends leaves nothing to read its code from.
        let told = Remote::connect(job).and_then(Remote::await_end).ok().flatten();
        job.wait_until_released(Duration::MAX)?;
        mica_agent::reconcile(&context.state()?)?; // if its supervisor was killed
        let code = match job.status()? {
            Some(status) => status.exit_code.unwrap_or_default(),
            None => told.context("the job was removed when it ended")?,
        };
        output::lines([code.to_string().as_str()])
    })
}
