//! `mica start`: start jobs that have ended again, with what they wrote.

use std::process::ExitCode;

use anyhow::bail;
use mica_agent::{JobConfig, JobDir, StackConfig};
use mica_fetcher::Cache;
use mica_graph::PackageRef;

use super::run::{self, Way};
use crate::context::Context;
use crate::error::Advise;
use crate::terminal::DetachKeys;
use crate::{output, trust};

/// Start jobs that have ended again, with what they wrote
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Stay with the job: its output and signals, and its exit code
    #[arg(short, long)]
    attach: bool,
    /// Connect standard input, if the job was made with -i
    #[arg(short, long, requires = "attach")]
    interactive: bool,
    /// Keys by which to let go of the job
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Ids, beginnings of ids, or names
    #[arg(required = true)]
    jobs: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    if !args.attach {
        return context.each_job(&args.jobs, |job| start(job, context, &args.detach_keys));
    }
    let [word] = &args.jobs[..] else { bail!("only one job at a time can be attached to") };
    let state = context.jobs()?;
    let job = state.find(word)?;
    let config = job.config()?;
    let input = args.interactive && config.open_stdin;
    let way = Way { detach: false, tty: config.terminal, input };
    let Some(lock) = state.take(&job)? else { bail!("job {} is running", job.id()) };
    check(&config, context)?;
    match run::start_job(job, lock, way, &args.detach_keys, false)?.finish()? {
        Some(status) => run::exit_code(status),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Starts a job without staying with it; one that runs is left alone, as with docker.
pub(crate) fn start(job: &JobDir, context: &Context, keys: &DetachKeys) -> anyhow::Result<()> {
    let Some(lock) = context.state()?.take(job)? else { return output::lines([job.id()]) };
    check(&job.config()?, context)?;
    let way = Way { detach: true, tty: false, input: false };
    run::start_job(job.clone(), lock, way, keys, false)?.finish()?;
    Ok(())
}

/// Whether the packages of a job may still be used.
fn check(config: &JobConfig, context: &Context) -> anyhow::Result<()> {
    let further = config.images.iter().map(|image| &image.stack);
    std::iter::once(&config.stack).chain(further).try_for_each(|stack| check_stack(stack, context))
}

fn check_stack(stack: &StackConfig, context: &Context) -> anyhow::Result<()> {
    let rules = &context.places.trust;
    let Some(folder) = &stack.cache else { return Ok(()) };
    let package: PackageRef = stack.source.parse()?;
    if !rules.covers(&package.name) {
        return Ok(());
    }
    trust::check_verify(rules, &package.name, stack.verify)?;
    let manifest = match &stack.manifest {
        Some(digest) => Cache::open(folder)?.manifest(digest)?,
        None => None,
    };
    let Some(manifest) = manifest else {
        return Err(anyhow::anyhow!("the manifest of {package} is not in the cache")).hint(
            "it says who signed the package: `mica pull` brings it, `mica run` makes a new job",
        );
    };
    Ok(Cache::open(folder)?.check_trust(rules, &manifest)?)
}
