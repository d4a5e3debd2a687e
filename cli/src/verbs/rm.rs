//! `mica rm`: remove ended jobs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use crate::context::Context;
use crate::output;

/// Remove ended jobs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
    /// End a running job first
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.each_job(&args.jobs, |job| {
        if job.status()?.is_none_or(|status| !status.is_final()) {
            if !args.force {
                bail!("job {} is running; stop it first, or use --force", job.id());
            }
            // It may end by itself between the question and the signal.
            match mica_agent::stop(job, 9, Duration::ZERO) {
                Ok(()) | Err(mica_agent::SignalError::NotRunning(_)) => {}
                Err(error) => return Err(error.into()),
            }
            job.wait_until_released()?;
        }
        mica_agent::remove(job)?;
        output::lines([job.id()])
    })
}
