//! `mica top`: the processes of a job.

use std::process::ExitCode;

use crate::context::Context;
use crate::output;

/// Show the processes of a job
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, beginning of an id, or name of the job
    job: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let job = context.jobs()?.find(&args.job)?;
    let processes = mica_agent::processes(&job);
    if processes.is_empty() {
        anyhow::bail!("job {} is not running", job.id());
    }
    let rows: Vec<[String; 7]> = processes
        .into_iter()
        .map(|process| {
            [
                process.uid.to_string(),
                process.pid.to_string(),
                process.parent.to_string(),
                process.state.to_string(),
                output::bytes(process.resident),
                output::duration(process.cpu),
                process.command,
            ]
        })
        .collect();
    output::table(["UID", "PID", "PPID", "STATE", "MEMORY", "CPU TIME", "COMMAND"], &rows)?;
    Ok(ExitCode::SUCCESS)
}
