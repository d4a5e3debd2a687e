//! `mica stop`: ask jobs to end, and make them after a while.

use std::process::ExitCode;
use std::time::Duration;

use crate::context::Context;
use crate::output;

/// Ask jobs to end, and make them after a while
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
    /// Seconds to wait before the job is killed, instead of the job's own
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u64>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.each_job(&args.jobs, |job| {
        let config = job.config()?;
        let timeout = Duration::from_secs(args.time.unwrap_or(config.stop_timeout));
        mica_agent::stop(job, config.stop_signal, timeout)?;
        output::lines([job.id()])
    })
}
