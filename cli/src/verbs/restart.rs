//! `mica restart`: end jobs and start them again.

use std::process::ExitCode;

use crate::context::Context;

/// End jobs and start them again
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
        super::stop::stop(job, None, args.time)?;
        super::start::start(job, context, &crate::terminal::DetachKeys::default())
    })
}
