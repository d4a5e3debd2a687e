//! `mica rm`: remove ended jobs.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use mica_agent::ControlError;

use crate::context::Context;
use crate::error::Advise;
use crate::{app, error, output};

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
        let status = match job.config().and_then(|_| job.status()) {
            Ok(status) => status,
            // Nothing of it is known, so it may be running.
            Err(_) if args.force => None,
            Err(error) => {
                return Err(error)
                    .hint("`mica rm --force` removes the job with what it has written");
            }
        };
        if status.is_none_or(|status| !status.is_final()) {
            if !args.force {
                bail!("job {} is running; stop it first, or use --force", job.id());
            }
            match mica_agent::stop(job, Some(9), Some(0)) {
                // It may end by itself between the question and the signal.
                Ok(()) | Err(ControlError::NotRunning(_)) => {}
                Err(error) => return Err(error::of_control(error)),
            }
        } else {
            // It says that it has ended a moment before it is gone.
            let released = job.wait_until_released(Duration::from_millis(500));
            if let (true, Err(_)) = (args.force, released) {
                mica_agent::stop(job, Some(9), Some(0)).map_err(error::of_control)?;
            }
        }
        mica_agent::remove(job)?;
        output::lines([job.id()])
    })
}

/// The process that removes what only another user, or root of a user namespace, may.
pub(crate) fn serve(words: &[OsString]) -> ExitCode {
    match mica_agent::remove_files(words) {
        None => app::not_for_people(),
        Some(removed) => ExitCode::from(u8::from(!removed)),
    }
}
