//! `mica start`: start jobs that have ended again, with what they wrote.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use mica_agent::{Attach, JobConfig, JobDir, StackConfig, StartedJob, StateDir, Supervisor};
use mica_fetcher::Cache;
use mica_graph::PackageRef;

use super::run::{self, Way};
use crate::context::Context;
use crate::error::Advise;
use crate::terminal::DetachKeys;
use crate::{error, output, trust};

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
    /// All jobs that a restart policy wants and whose supervisor is gone, killed or with the machine: for a unit that runs
    /// at boot. Those that `mica stop` ended aren't started, but with `--restart always` after the machine was restarted
    #[arg(long, conflicts_with_all = ["attach", "jobs"])]
    all_restartable: bool,
    /// Ids, beginnings of ids, or names
    #[arg(required_unless_present = "all_restartable")]
    jobs: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    if args.all_restartable {
        return start_restartable(context);
    }
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

/// Starts what restart policies want, all at once: one whose start hangs holds up no other.
fn start_restartable(context: &Context) -> anyhow::Result<ExitCode> {
    let state = context.jobs()?;
    let program = run::own_program()?;
    let mut exit = ExitCode::SUCCESS;
    let mut started = Vec::new();
    for job in state.jobs()? {
        match resume(&job, &state, &program, context) {
            Ok(job) => started.extend(job),
            // Removed between the listing and now.
            Err(_) if !job.path().exists() => {}
            Err(error) => {
                let error = error.context(format!("cannot start job {}", job.id()));
                exit = error::report(&error, 1);
            }
        }
    }
    for mut job in started {
        let status = job.wait_started().map_err(anyhow::Error::from);
        let status = status.and_then(|status| match status.error {
            Some(failure) => Err(error::of_failure(failure)),
            None => Ok(()),
        });
        match status {
            Ok(()) => output::lines([job.job().id()])?,
            Err(error) => {
                let error = error.context(format!("cannot start job {}", job.job().id()));
                exit = error::report(&error, 1);
            }
        }
    }
    Ok(exit)
}

/// Starts one job, if its restart policy wants that.
fn resume(
    job: &JobDir,
    state: &StateDir,
    program: &Path,
    context: &Context,
) -> anyhow::Result<Option<StartedJob>> {
    let (config, status) = (job.config()?, job.status()?);
    if !status.is_some_and(|status| mica_agent::restart_pending(&config, &status)) {
        return Ok(None);
    }
    let Some(lock) = state.take(job)? else { return Ok(None) };
    check(&config, context)?;
    if !mica_agent::resume(job, &lock)? {
        return Ok(None);
    }
    let nobody = Attach { stdin: None, output: None };
    Ok(Some(mica_agent::start(Supervisor::Program(program), job.clone(), lock, nobody)?))
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
