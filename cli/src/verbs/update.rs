//! `mica update`: change limits and the restart policy of jobs.

use std::process::ExitCode;

use mica_agent::{CreateError, Remote, Restart};
use mica_launcher::Limits;

use super::run::{parse_cpus, parse_size};
use crate::context::Context;
use crate::error;
use crate::output;

/// Change limits and the restart policy of jobs
///
/// A limit can be changed at once if the job was started with one of its kind; otherwise the next start has it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Limit the memory, as in 512m or 2g
    #[arg(short, long, value_parser = parse_size, value_name = "SIZE")]
    memory: Option<u64>,
    /// Limit memory and swap together
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    memory_swap: Option<u64>,
    /// Limit the processors, as in 1.5
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<f64>,
    /// Processors the jobs may run on, as in 0-3,6
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Limit the number of processes and threads
    #[arg(long, value_name = "N")]
    pids_limit: Option<u64>,
    /// What to do when the program ends: no, on-failure, on-failure:N, always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<Restart>,
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let state = context.state()?;
    context.each_job(&args.jobs, |job| {
        if job.is_owned() {
            Remote::connect(job)
                .and_then(|job| job.update(args.limits(), args.restart))
                .map_err(error::of_control)?;
        }
        state.reconfigure(job, |config| {
            config.spec.limits.change(args.limits());
            config.restart = args.restart.unwrap_or(config.restart);
            Ok::<_, CreateError>(())
        })?;
        output::lines([job.id()])
    })
}

impl Args {
    fn limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            memory_swap: self.memory_swap,
            pids: self.pids_limit,
            cpus: self.cpus,
            cpuset_cpus: self.cpuset_cpus.clone(),
            ..Limits::default()
        }
    }
}
