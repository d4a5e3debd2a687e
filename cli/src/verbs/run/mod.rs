//! `mica run`: run a package, or image files, as a confined job.

mod flags;
mod spec;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use mica_agent::{Attach, Failure, Invocation, JobDir, JobLayer, StartedJob, Status};
use mica_graph::{PackageRef, Process};
use mica_launcher::HostFacts;
use mica_squashfs::{Image, OpenOptions};
use signal_hook::consts::signal as signo;
use signal_hook::iterator::Signals;

pub(crate) use self::flags::{Args, PullWhen, parse_size};
use self::spec::{Source, job_config};
use crate::context::Context;
use crate::output::note;
use crate::verbs::pull;
use crate::{app, error, hints, output};

/// What `mica run` passes on to the job, as docker does.
const FORWARDED: [i32; 7] = [
    signo::SIGINT,
    signo::SIGTERM,
    signo::SIGHUP,
    signo::SIGQUIT,
    signo::SIGUSR1,
    signo::SIGUSR2,
    signo::SIGWINCH,
];

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let (source, command) = source(args, context)?;
    if args.dry_run {
        return dry_run(args, &source, &command);
    }
    let (mut started, status, mut signals) = start(args, context, &source, &command)?;
    if args.life.detach && status.error.is_none() {
        output::lines([started.job().id()])?;
        return Ok(ExitCode::SUCCESS);
    }
    exit_code(wait(&mut started, status, &mut signals)?)
}

/// Runs a job to its end, as `mica run` without `--detach` does.
pub(crate) fn run_to_end(args: &Args, context: &Context) -> anyhow::Result<Status> {
    let (source, command) = source(args, context)?;
    let (mut started, status, mut signals) = start(args, context, &source, &command)?;
    wait(&mut started, status, &mut signals)
}

/// Starts the job's supervisor; returns when the program runs, or has failed to.
fn start(
    args: &Args,
    context: &Context,
    source: &Source,
    command: &[OsString],
) -> anyhow::Result<(StartedJob, Status, Signals)> {
    let state = context.jobs()?;
    let (job, lock) = state.create(|job| job_config(args, source, command, job))?;
    let signals = Signals::new(FORWARDED).context("cannot catch signals")?;
    let attach = Attach { stdin: args.life.interactive, output: !args.life.detach };
    let mut started = mica_agent::start(&own_program()?, job, lock, attach)?;
    let status = started.wait_started()?;
    if !args.quiet {
        status.warnings.iter().for_each(|warning| note(format_args!("warning: {warning}")));
    }
    Ok((started, status, signals))
}

/// Waits for the job's end, passing signals on.
fn wait(started: &mut StartedJob, status: Status, signals: &mut Signals) -> anyhow::Result<Status> {
    if let Some(failure) = status.error {
        return Err(failed(failure));
    }
    if status.is_final() {
        return Ok(status);
    }
    let handle = signals.handle();
    let job = started.job().clone();
    let status = std::thread::scope(|scope| {
        scope.spawn(|| forward(signals, &job));
        let ended = started.wait_ended();
        handle.close();
        ended
    })?;
    match status.error {
        Some(failure) => Err(failed(failure)),
        None => Ok(status),
    }
}

/// The binary to start the supervisor from: this one, also when its file has been replaced meanwhile.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    let own = Path::new("/proc/self/exe");
    let resolved = std::fs::read_link(own).context("cannot find mica's own program in /proc")?;
    Ok(if resolved.exists() { resolved } else { own.to_owned() })
}

fn forward(signals: &mut Signals, job: &JobDir) {
    for signal in signals.forever() {
        // A job that has just ended has no use for it.
        if let Err(error) = mica_agent::signal(job, signal) {
            tracing::debug!("{error}");
        }
    }
}

fn exit_code(status: Status) -> anyhow::Result<ExitCode> {
    if status.oom_killed {
        note("mica: the job was killed: it ran out of the memory it may use");
    }
    let code = status.exit_code.and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(error::MICA_FAILED)))
}

/// A supervisor's failure as an error of this process.
pub(crate) fn failed(failure: Failure) -> anyhow::Error {
    let mut causes = failure.chain.into_iter().rev();
    let innermost = anyhow!(causes.next().unwrap_or_else(|| "the job could not be started".into()));
    let error = causes.fold(innermost, |error, cause| error.context(cause));
    error::advised(error, failure.hint, u8::try_from(failure.exit_code).ok())
}

fn source(args: &Args, context: &Context) -> anyhow::Result<(Source, Vec<OsString>)> {
    let after_dashes = |words: &[OsString]| match words.first() {
        Some(first) if first == "--" => words[1..].to_vec(),
        _ => words.to_vec(),
    };
    if !args.images.is_empty() {
        let command = after_dashes(&args.words);
        return Ok((image_source(&args.images, command.is_empty())?, command));
    }
    let Some((reference, rest)) = args.words.split_first() else {
        bail!(
            "nothing to run; name a package (mica run A@953bc) or an image (mica run --image FILE -- COMMAND)"
        );
    };
    let reference: PackageRef = reference.to_string_lossy().parse()?;
    let cache = context.cache()?;
    let manifest = pull::obtain(context, &cache, &reference, args.pull, args.quiet)?;
    let layers = pull::cached_layers(&cache, &manifest)?;
    Ok((Source::of_package(&manifest, layers, &context.places.cache), after_dashes(rest)))
}

/// A stack of image files. Without a command, a XAR says itself what to run.
fn image_source(images: &[PathBuf], wants_entrypoint: bool) -> anyhow::Result<Source> {
    let top = &images[0];
    let folder = top.file_stem().unwrap_or(top.as_os_str()).to_string_lossy().into_owned();
    let mut process = Process::default();
    if wants_entrypoint {
        let image = Image::open(top, &OpenOptions::default())?;
        let target = image.xar_header().and_then(|header| header.xarexec_target.clone());
        // `./` keeps it a path in the stack when it has no slash.
        process.entrypoint.extend(target.map(|target| format!("./{target}")));
    }
    Ok(Source {
        name: top.display().to_string(),
        folder,
        layers: image_layers(images)?,
        is_root: false,
        process,
        limits: mica_graph::Limits::default(),
        cache: None,
    })
}

/// Image files as layers; each must be a file that opens as an image.
pub(crate) fn image_layers(images: &[PathBuf]) -> anyhow::Result<Vec<JobLayer>> {
    let layer = |file: &PathBuf| {
        let path =
            file.canonicalize().with_context(|| format!("cannot find image {}", file.display()))?;
        Image::open(&path, &OpenOptions::default())?;
        let chunks = Some(mica_packer::chunks_path(&path)).filter(|table| table.exists());
        Ok(JobLayer { name: file.display().to_string(), path, digest: None, chunks })
    };
    images.iter().map(layer).collect()
}

/// The supervisor's own process.
pub(crate) fn supervise(words: &[OsString]) -> ExitCode {
    let Some(invocation) = Invocation::parse(words) else { return app::not_for_people() };
    app::log_to_file(&invocation.log_path());
    mica_agent::supervise(invocation, |error| hints::for_chain(error.inner()));
    ExitCode::SUCCESS
}

fn dry_run(args: &Args, source: &Source, command: &[OsString]) -> anyhow::Result<ExitCode> {
    // There is no tree yet, so what is read from it (names of users) is not known.
    let spec = spec::spec(args, source, command, "dry-run", Path::new("/"))?;
    let plan = mica_launcher::plan(&spec, &HostFacts::read(&spec)?)?;
    let lines: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    output::lines(lines.iter().map(String::as_str))?;
    Ok(ExitCode::SUCCESS)
}
