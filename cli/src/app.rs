//! From words to verbs, from errors to exit codes.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Verb};
use crate::context::Context;
use crate::output::note;
use crate::{error, shown, verbs};

/// Runs the command line.
pub(crate) fn run() -> ExitCode {
    mica_launcher::init_main(); // a job's init is this binary, too
    mica_agent::put_process_right();
    let args: Vec<OsString> = std::env::args_os().collect();
    // Words that mica says to itself, before anything else is set up: they never come back here.
    match args.get(1).and_then(|word| word.to_str()) {
        Some(mica_agent::SUPERVISE) => return verbs::run::supervise(&args[2..]),
        Some(verbs::cp::COPY) => return verbs::cp::serve(&args[2..]),
        Some(mica_agent::REMOVE_FILES) => return verbs::rm::serve(&args[2..]),
        Some(mica_agent::SERVE_MOUNT) => return verbs::mount::serve(&args[2..]),
        _ => {}
    }
    mica_agent::keep_descriptors();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return misused(&error, &args),
    };
    log_to_stderr(cli.log.as_deref());
    let usual = match &cli.verb {
        Verb::Run(_) | Verb::Exec(_) | Verb::Shell(_) => error::MICA_FAILED,
        Verb::Xar(args) if args.runs() => error::MICA_FAILED,
        _ => 1,
    };
    dispatch(&cli.verb).unwrap_or_else(|error| error::report(&error, usual))
}

/// Words that are no command line, or that ask for help. Of verbs that pass on a program's code, ours must not be taken for it.
fn misused(error: &clap::Error, words: &[OsString]) -> ExitCode {
    let plain = error.render().to_string();
    match shown::text(&plain) {
        // Nobody to tell it to, if that fails.
        Cow::Borrowed(_) => drop(error.print()),
        // Of a word that came from somewhere else, without colours.
        Cow::Owned(text) => note(text.trim_end()),
    }
    let runs = |word: &OsString| word == "run" || word == "exec" || word == "shell";
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if words.iter().skip(1).any(runs) => ExitCode::from(error::MICA_FAILED),
        _ => ExitCode::from(2),
    }
}

/// Where the log goes when the process has let go of its terminal; made when there is something to say.
static LOG_PATH: OnceLock<PathBuf> = OnceLock::new();
static LOG_FILE: OnceLock<Option<File>> = OnceLock::new();

fn log_to_stderr(level: Option<&str>) {
    // No colours: a supervisor may go on as a copy of this process, and logs to a file.
    let filter = EnvFilter::new(level.unwrap_or("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log_writer);
    // There is one already in a copy.
    log.with_ansi(false).compact().try_init().ok();
}

/// The log of a process without a terminal. Without a place for it there is none.
pub(crate) fn log_to_file(path: PathBuf) {
    LOG_PATH.set(path).ok();
    log_to_stderr(std::env::var("MICA_LOG").ok().as_deref());
}

fn log_writer() -> Box<dyn Write> {
    let Some(path) = LOG_PATH.get() else { return Box::new(std::io::stderr()) };
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let open = || {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(nofollow).open(path).ok()
    };
    match LOG_FILE.get_or_init(open) {
        Some(file) => Box::new(file),
        None => Box::new(std::io::sink()),
    }
}

/// Somebody typed a word that mica says to itself.
pub(crate) fn not_for_people() -> ExitCode {
    crate::output::note("error: this word is for mica's own use; `mica --help` lists the others");
    ExitCode::from(2)
}

fn dispatch(verb: &Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Demo(args) => verbs::demo::run(args),
        Verb::Pack(args) => verbs::pack::run(args, &Context::with(&args.registry)?),
        Verb::Plan(args) => verbs::plan::run(args),
        Verb::Why(args) => verbs::why::run(args, &Context::with(&args.registry)?),
        Verb::Diff(args) => verbs::diff::run(args, &Context::with(&args.registry)?),
        Verb::Image(args) => verbs::image::run(args),
        Verb::Serve(args) => verbs::serve::run(args, &Context::new()?),
        Verb::Pull(args) => verbs::pull::run(args, &Context::with(&args.registry)?),
        Verb::Push(args) => verbs::push::run(args, &Context::with(&args.registry)?),
        Verb::RmImage(args) => verbs::rm_image::run(args, &Context::new()?),
        Verb::Prune(args) => verbs::prune::run(args, &Context::new()?),
        Verb::Df(args) => verbs::df::run(args, &Context::new()?),
        Verb::Cache(args) => verbs::cache::run(args, &Context::with(args.registry())?),
        Verb::Images(args) => verbs::images::run(args, &Context::with(&args.registry)?),
        Verb::Key(args) => verbs::key::run(args),
        Verb::Sign(args) => verbs::sign::run(args, &Context::with(&args.registry)?),
        Verb::Login(args) => verbs::login::run(args),
        Verb::Logout(args) => verbs::login::logout(args),
        Verb::History(args) => verbs::history::run(args, &Context::with(&args.registry)?),
        Verb::Tag(args) => verbs::tag::run(args, &Context::with(&args.registry)?),
        Verb::Save(args) => verbs::save::save(args, &Context::new()?),
        Verb::Load(args) => verbs::save::load(args, &Context::new()?),
        Verb::Import(args) => verbs::import::run(args, &Context::new()?),
        Verb::Export(args) => verbs::export::run(args, &Context::with(&args.registry)?),
        Verb::Inspect(args) => verbs::inspect::run(args, &Context::new()?),
        Verb::Mount(args) => verbs::mount::run(args, &Context::with(&args.registry)?),
        Verb::Umount(args) => verbs::umount::run(args, &Context::new()?),
        Verb::Run(args) => verbs::run::run(args, &Context::with(&args.registry)?),
        Verb::Ps(args) => verbs::ps::run(args, &Context::new()?),
        Verb::Logs(args) => verbs::logs::run(args, &Context::new()?),
        Verb::Stop(args) => verbs::stop::run(args, &Context::new()?),
        Verb::Kill(args) => verbs::kill::run(args, &Context::new()?),
        Verb::Wait(args) => verbs::wait::run(args, &Context::new()?),
        Verb::Exec(args) => verbs::exec::run(args, &Context::new()?),
        Verb::Attach(args) => verbs::attach::run(args, &Context::new()?),
        Verb::Start(args) => verbs::start::run(args, &Context::new()?),
        Verb::Restart(args) => verbs::restart::run(args, &Context::new()?),
        Verb::Pause(args) => verbs::pause::run(args, &Context::new()?),
        Verb::Unpause(args) => verbs::unpause::run(args, &Context::new()?),
        Verb::Rename(args) => verbs::rename::run(args, &Context::new()?),
        Verb::Update(args) => verbs::update::run(args, &Context::new()?),
        Verb::Stats(args) => verbs::stats::run(args, &Context::new()?),
        Verb::Top(args) => verbs::top::run(args, &Context::new()?),
        Verb::Events(args) => verbs::events::run(args, &Context::new()?),
        Verb::Cp(args) => verbs::cp::run(args, &Context::new()?),
        Verb::Commit(args) => verbs::commit::run(args, &Context::new()?),
        Verb::Shell(args) => verbs::shell::run(args, &Context::new()?),
        Verb::Volume(args) => verbs::volume::run(args, &Context::new()?),
        Verb::Network(args) => verbs::network::run(args, &Context::new()?),
        Verb::Xar(args) => verbs::xar::run(args, &Context::new()?),
        Verb::Config(args) => verbs::config::run(args),
        Verb::Info(args) => verbs::info::run(args, &Context::new()?),
        Verb::Version(args) => verbs::version::run(args),
        Verb::Completion(args) => verbs::completion::run(args),
        Verb::Rm(args) => verbs::rm::run(args, &Context::new()?),
    }
}
