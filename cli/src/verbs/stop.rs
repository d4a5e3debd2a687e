//! `mica stop`: ask jobs to end, and make them after a while.

use std::process::ExitCode;

use mica_agent::{ControlError, JobDir};

use crate::context::Context;
use crate::{error, output, signals};

/// Ask jobs to end, and make them after a while
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
    /// Seconds to wait before the job is killed, instead of the job's own
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u64>,
    /// The signal to send, instead of the job's own
    #[arg(short, long, value_parser = signals::parse)]
    signal: Option<i32>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.each_job(&args.jobs, |job| {
        stop(job, args.signal, args.time)?;
        output::lines([job.id()])
    })
}

/// As with docker, a job that has ended is stopped.
pub(super) fn stop(job: &JobDir, signal: Option<i32>, time: Option<u64>) -> anyhow::Result<()> {
    match mica_agent::stop(job, signal, time) {
        Ok(()) | Err(ControlError::NotRunning(_)) => Ok(()),
        Err(error) => Err(error::of_control(error)),
    }
}
