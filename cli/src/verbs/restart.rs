//! `mica restart`: end jobs and start them again.

use std::process::ExitCode;

use mica_agent::ControlError;

use crate::context::Context;
use crate::error;

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
        match mica_agent::stop(job, None, args.time) {
            Ok(()) | Err(ControlError::NotRunning(_)) => {}
            Err(error) => return Err(error::of_control(error)),
        }
        super::start::start(job, context, &crate::terminal::DetachKeys::default())
    })
}
