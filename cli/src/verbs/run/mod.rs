//! `mica run`: run a package, or image files, as a confined job.

mod flags;
mod host;
mod log;
mod mounts;
pub(crate) mod recommended;
mod spec;
mod values;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_agent::{
    Attach, HeldSignals, Invocation, JobDir, Remote, StartedJob, Status, Supervisor, Verify,
};
use mica_graph::{PackageRef, Process};
use mica_launcher::HostFacts;
use mica_squashfs::{Image, OpenOptions};
use signal_hook::consts::signal as signo;
use signal_hook::iterator::Signals;

pub(crate) use self::flags::{Args, HealthFlags, PullWhen};
pub(crate) use self::log::log_settings;
pub(crate) use self::spec::set_variable;
use self::spec::{Source, job_config};
pub(crate) use self::values::{parse_cpus, parse_duration, parse_list, parse_pair, parse_size};
use crate::context::Context;
use crate::output::note;
use crate::terminal::{self, DetachKeys, Dialogue, Over, Passing, Raw};
use crate::{app, error, hints, output, signals, stacks};

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let (source, command) = source(args, context)?;
    if args.recommended {
        return run(&recommended::args(&source, args, context)?, context);
    }
    if args.dry_run {
        return dry_run(args, context, &source, &command);
    }
    if !args.quiet {
        args.confinement.gives_away().into_iter().for_each(note);
    }
    match start(args, context, &source, &command)?.finish()? {
        Some(status) => exit_code(status),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// `mica run` with these words, on behalf of another verb.
pub(crate) fn run_words(words: Vec<OsString>, context: &Context) -> anyhow::Result<ExitCode> {
    run(&recommended::parse(words.into_iter())?, context)
}

/// Runs a job to its end, as `mica run` without `--detach` does.
pub(crate) fn run_to_end(args: &Args, context: &Context) -> anyhow::Result<Status> {
    let (source, command) = source(args, context)?;
    start(args, context, &source, &command)?.finish()?.context("nobody lets go of this job")
}

/// Starts the job's supervisor; returns when the program runs, or has failed to.
fn start<'a>(
    args: &'a Args,
    context: &Context,
    source: &Source,
    command: &[OsString],
) -> anyhow::Result<Session<'a>> {
    let state = context.jobs()?;
    let life = &args.life;
    let places = &context.places;
    let (job, lock) = state.create(|job| job_config(args, source, command, job, &state, places))?;
    let way = Way { detach: life.detach, tty: life.tty, input: life.interactive };
    start_job(job, lock, way, &life.detach_keys, args.quiet)
}

/// How a command is connected with the job it starts.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    /// Not at all.
    pub(crate) detach: bool,
    /// The job has a terminal.
    pub(crate) tty: bool,
    /// It reads what the command reads.
    pub(crate) input: bool,
}

/// Starts the supervisor of a job whose folder is there.
pub(crate) fn start_job(
    job: JobDir,
    lock: mica_agent::Lock,
    way: Way,
    keys: &DetachKeys,
    quiet: bool,
) -> anyhow::Result<Session<'_>> {
    let raw = terminal::check(way.tty && !way.detach, way.input)?;
    // Passed on, never handed over: with the descriptor the job would own the caller's terminal, file or FIFO.
    let (stdin, typed) = match !way.detach && way.input {
        true => terminal::pipe().map(|(far, near)| (Some(far), Some(near)))?,
        false => (None, None),
    };
    let attach = Attach { stdin, output: (!way.detach).then(terminal::size) };
    let catch = || Signals::new(signals::forwarded()).context("cannot catch signals");
    let (mut started, signals) = if mica_agent::may_fork() {
        let held = HeldSignals::new();
        let started = mica_agent::start(Supervisor::Fork(&supervise_here), job, lock, attach)?;
        let signals = catch()?;
        drop(held);
        (started, signals)
    } else {
        let signals = catch()?;
        let program = own_program()?;
        (mica_agent::start(Supervisor::Program(&program), job, lock, attach)?, signals)
    };
    let passing = match Passing::start(signals, pass_on(started.job(), way.tty)) {
        Ok(passing) => passing,
        Err(error) => {
            // Nobody would know of it; and what keeps it from ending is said by whoever finds it.
            mica_agent::stop(started.job(), Some(signo::SIGKILL), Some(0)).ok();
            return Err(error);
        }
    };
    let status = started.wait_started()?;
    if !quiet {
        status.warnings.iter().for_each(|warning| note(format_args!("warning: {warning}")));
    }
    Ok(Session { started, status, passing, typed, raw, way, keys })
}

/// A job that was just started by this command.
pub(crate) struct Session<'a> {
    started: StartedJob,
    status: Status,
    passing: Passing,
    typed: Option<OwnedFd>,
    raw: Option<Raw>,
    way: Way,
    keys: &'a DetachKeys,
}

impl Session<'_> {
    /// Waits for the job's end, passing on signals and what is typed; `None` if the job goes on without this command.
    pub(crate) fn finish(self) -> anyhow::Result<Option<Status>> {
        let Self { mut started, status, passing, typed, raw, way, keys } = self;
        if let Some(failure) = status.error {
            drop(raw);
            return Err(error::of_failure(failure));
        }
        if way.detach {
            output::lines([started.job().id()])?;
            return Ok(None);
        }
        if status.is_final() {
            return Ok(Some(status));
        }
        let attend = || -> anyhow::Result<_> {
            let keys = typed.as_ref().filter(|_| way.tty).map(|_| keys.clone());
            let mut dialogue = Dialogue { input: typed, keys, ..Dialogue::default() };
            loop {
                if dialogue.run(started.as_fd())? == Over::Detached {
                    return Ok(None);
                }
                // It may have been started again.
                let status = started.wait_started()?;
                if status.is_final() {
                    return Ok(Some(status));
                }
            }
        };
        let ended = attend();
        drop((passing, raw));
        match ended? {
            Some(Status { error: Some(failure), .. }) => Err(error::of_failure(failure)),
            status => Ok(status),
        }
    }
}

/// The binary to start the supervisor from: this one, also when its file has been replaced meanwhile.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    let own = Path::new("/proc/self/exe");
    let resolved = std::fs::read_link(own).context("cannot find mica's own program in /proc")?;
    Ok(if resolved.exists() { resolved } else { own.to_owned() })
}

/// Passes signals to this command on to the job: also while it is being started, which ends that.
fn pass_on(job: &JobDir, tty: bool) -> impl FnMut(i32) + Send + use<> {
    let job = job.clone();
    move |signal| {
        let resize = |size| drop(Remote::connect(&job).and_then(|job| job.resize(size)));
        terminal::pass_signal(signal, tty, resize, |signal| {
            // A job that has just ended has no use for it.
            if let Err(error) = mica_agent::signal(&job, signal) {
                tracing::debug!("{error}");
            }
        });
    }
}

pub(crate) fn exit_code(status: Status) -> anyhow::Result<ExitCode> {
    // One that lost a process and went well is none that was killed.
    if status.oom_killed && status.exit_code != Some(0) {
        note("mica: the job was killed: it ran out of the memory it may use");
    }
    let code = status.exit_code.and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(error::MICA_FAILED)))
}

fn source(args: &Args, context: &Context) -> anyhow::Result<(Source, Vec<OsString>)> {
    let after_dashes = |words: &[OsString]| match words.first() {
        Some(first) if first == "--" => words[1..].to_vec(),
        _ => words.to_vec(),
    };
    let way = stacks::Way {
        pull: args.pull,
        quiet: args.quiet,
        lazy: &args.lazy,
        verify: args.storage.verify,
        record_trace: args.storage.record_trace,
    };
    let (mut source, command) = match (&args.images[..], args.words.split_first()) {
        ([], None) => bail!(
            "nothing to run; name a package (mica run A@953bc) or an image (mica run --image FILE -- COMMAND)"
        ),
        ([], Some((reference, rest))) => {
            let reference: PackageRef = reference.to_string_lossy().parse()?;
            let (stack, manifest) = stacks::of_package(context, &reference, &way)?;
            (Source::of_package(&manifest, stack), after_dashes(rest))
        }
        (images, _) => {
            let command = after_dashes(&args.words);
            (image_source(images, command.is_empty(), way.verify)?, command)
        }
    };
    let further = stacks::Way { record_trace: false, ..way };
    let images = args.storage.images().map(|image| image.stack(context, &further));
    source.images = images.collect::<anyhow::Result<_>>()?;
    Ok((source, command))
}

/// A stack of image files. Without a command, a XAR says itself what to run.
fn image_source(
    images: &[PathBuf],
    wants_entrypoint: bool,
    verify: Verify,
) -> anyhow::Result<Source> {
    let top = &images[0];
    let folder = top.file_stem().unwrap_or(top.as_os_str()).to_string_lossy().into_owned();
    let mut process = Process::default();
    if wants_entrypoint {
        let image = Image::open(top, &OpenOptions::default())?;
        let target = image.xar_header().and_then(|header| header.xarexec_target.clone());
        // `./` keeps it a path in the stack when it has no slash. XAR's own tools put the file first as well.
        let words = target.map(|target| [format!("./{target}"), top.display().to_string()]);
        process.entrypoint.extend(words.into_iter().flatten());
    }
    let stack = stacks::of_images(images, verify)?;
    Ok(Source { folder, process, stack, ..Source::default() })
}

/// The supervisor's own process.
pub(crate) fn supervise(words: &[OsString]) -> ExitCode {
    let Some(invocation) = Invocation::parse(words) else { return app::not_for_people() };
    supervise_here(invocation);
    ExitCode::SUCCESS
}

fn supervise_here(invocation: Invocation) {
    app::log_to_file(invocation.log_path());
    mica_agent::supervise(invocation, |error| hints::for_chain(error.inner()));
}

fn dry_run(
    args: &Args,
    context: &Context,
    source: &Source,
    command: &[OsString],
) -> anyhow::Result<ExitCode> {
    let mut spec = spec::spec(args, source, command, None, &context.places)?;
    spec.link = spec::dry_link(args, context)?;
    let plan = mica_launcher::plan(&spec, &HostFacts::read(&spec)?)?;
    let lines: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    output::lines(lines.iter().map(String::as_str))?;
    Ok(ExitCode::SUCCESS)
}
