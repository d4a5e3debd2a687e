//! `mica cp`: files into and out of a job, whether it runs or has ended.
//!
//! Both sides speak tar. The job's side is another process of this binary, which goes where the job's files are: a link in
//! the job leads where it leads in the job, and nowhere else. What comes out of a job stays below the target, see [`unpack`].

mod archive;
mod unpack;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, anyhow, bail};
use mica_agent::JobDir;
use rustix::fs::Mode;

use self::unpack::Rules;
use super::run;
use crate::context::Context;
use crate::error::Advise;
use crate::{app, error, output};

/// The word that makes the binary the job's side of a copy.
pub(crate) const COPY: &str = "copy-job-files";

/// Copy files between a job and the host
///
/// `-` is a tar archive on standard input or output. Folders are copied with all they hold; `FOLDER/.` means what it holds.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "mica cp [OPTIONS] JOB:PATH PATH|-\n       mica cp [OPTIONS] PATH|- JOB:PATH"
)]
pub(crate) struct Args {
    /// Keep owners, set-user-id and set-group-id bits, and device nodes
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to, if SOURCE is one
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// What to copy
    #[arg(value_name = "SOURCE")]
    from: OsString,
    /// Where to
    #[arg(value_name = "TARGET")]
    to: OsString,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let (from, to) = (split(&args.from), split(&args.to));
    let flags = Flags { keep_owners: args.archive, follow: args.follow_link };
    match (from, to) {
        (Side::Job(word, path), Side::Host(to)) => {
            let job = context.jobs()?.find(word)?;
            let mut remote = Remote::start(&job, "read", flags, path)?;
            let tar = remote.child.stdout.take().context("the copy has no output")?;
            let copied = receive(tar, &to, flags);
            remote.finish(copied)
        }
        (Side::Host(from), Side::Job(word, path)) => {
            let job = context.jobs()?.find(word)?;
            let mut remote = Remote::start(&job, "write", flags, path)?;
            let tar = remote.child.stdin.take().context("the copy has no input")?;
            let sent = send(tar, &from, flags);
            remote.finish(sent)
        }
        _ => bail!("one of both is a path in a job, written JOB:PATH, and the other is not"),
    }
}

/// What is copied how.
#[derive(Clone, Copy)]
pub(crate) struct Flags {
    keep_owners: bool,
    follow: bool,
}

enum Side<'a> {
    Job(&'a str, &'a Path),
    Host(PathBuf),
}

/// `JOB:PATH`; a colon after a slash belongs to the name of a file.
fn split(word: &OsString) -> Side<'_> {
    let parts = word.to_str().and_then(|word| word.split_once(':'));
    match parts {
        Some((job, path)) if !job.is_empty() && !job.contains('/') && !job.starts_with('.') => {
            Side::Job(job, Path::new(path))
        }
        _ => Side::Host(PathBuf::from(word)),
    }
}

fn receive(mut tar: impl Read, to: &Path, flags: Flags) -> anyhow::Result<()> {
    if to != Path::new("-") {
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        let (keep_owners, umask) = (flags.keep_owners, umask.as_raw_mode());
        return unpack::write(tar, to, Rules { keep_owners, inside: false, umask });
    }
    if io::stdout().is_terminal() {
        bail!("an archive is not written to a terminal; redirect standard output");
    }
    let mut out = output::stdout();
    io::copy(&mut tar, &mut out)?;
    Ok(out.flush()?)
}

fn send(mut tar: impl Write, from: &Path, flags: Flags) -> anyhow::Result<()> {
    if from == Path::new("-") {
        io::copy(&mut io::stdin().lock(), &mut tar)?;
        return Ok(());
    }
    archive::read(from, flags.follow, &mut tar)
}

/// The job's side of a copy.
struct Remote {
    child: Child,
}

impl Remote {
    fn start(job: &JobDir, verb: &str, flags: Flags, path: &Path) -> anyhow::Result<Self> {
        let child = Command::new(run::own_program()?)
            .arg(COPY)
            .args([verb, flag(flags.keep_owners), flag(flags.follow)])
            // As with docker, paths in a job begin at its root.
            .arg(Path::new("/").join(path))
            .arg(job.path())
            .stdin(if verb == "write" { Stdio::piped() } else { Stdio::null() })
            .stdout(if verb == "read" { Stdio::piped() } else { Stdio::null() })
            .spawn()
            .context("cannot start the job's side of the copy")?;
        Ok(Self { child })
    }

    /// Its own failure is the reason for ours, and it has told it.
    fn finish(mut self, here: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
        let ended = self.child.wait()?;
        match here {
            // The other side has said why.
            Err(error) if !ended.success() && is_cut_short(&error) => Ok(ExitCode::FAILURE),
            Err(error) => Err(error),
            Ok(()) if ended.success() => Ok(ExitCode::SUCCESS),
            Ok(()) => Ok(ExitCode::FAILURE),
        }
    }
}

/// Whether an error only says that the other side went away.
fn is_cut_short(error: &anyhow::Error) -> bool {
    let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe];
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| kinds.contains(&cause.kind()))
}

fn flag(set: bool) -> &'static str {
    if set { "yes" } else { "no" }
}

/// The job's side: its own process, of one thread.
pub(crate) fn serve(words: &[OsString]) -> ExitCode {
    let [verb, owners, follow, path, place @ ..] = words else { return app::not_for_people() };
    let flags = Flags { keep_owners: owners == "yes", follow: follow == "yes" };
    let path = Path::new(path);
    let job = match place {
        [job] => job,
        // The second process of a copy from a job that has ended: see below.
        [dash, tree] if dash == "-" => {
            let entered = rustix::process::chroot(tree).map_err(anyhow::Error::from);
            return finish(entered.and_then(|()| copy(verb, flags, path)));
        }
        _ => return app::not_for_people(),
    };
    let entered = mica_agent::in_job(Path::new(job), |places| match places {
        None => copy(verb, flags, path),
        Some(places) => {
            let (tree, inside) = find(places, path)?;
            // This process serves the mount, so another one has it as its root.
            let status = Command::new(run::own_program()?)
                .arg(COPY)
                .args([verb, owners, follow])
                .arg(Path::new("/").join(inside))
                .arg("-")
                .arg(tree)
                .status()?;
            Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    });
    finish(entered.map_err(anyhow::Error::from).and_then(|copied| copied))
}

/// Where a path of a job that has ended is now: a directory, and the path in it.
fn find<'a>(
    places: &'a [(PathBuf, PathBuf)],
    path: &'a Path,
) -> anyhow::Result<(&'a Path, &'a Path)> {
    let inside = |(at, tree): &'a (PathBuf, PathBuf)| {
        path.strip_prefix(at).ok().map(|inside| (tree.as_path(), inside))
    };
    let all: Vec<_> = places.iter().map(|(at, _)| at.display().to_string()).collect();
    places
        .iter()
        .find_map(inside)
        .ok_or_else(|| anyhow!("{} is outside of the job's stack", path.display()))
        .hint(format!("of a job that has ended, what is below {} is there", all.join(" and ")))
}

fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| error::report(&error, 1))
}

fn copy(verb: &OsString, flags: Flags, path: &Path) -> anyhow::Result<ExitCode> {
    std::env::set_current_dir("/")?;
    if verb == "read" {
        archive::read(path, flags.follow, &mut output::stdout())?;
    } else {
        let rules = Rules { keep_owners: flags.keep_owners, inside: true, umask: 0 };
        unpack::write(io::stdin().lock(), path, rules)?;
    }
    Ok(ExitCode::SUCCESS)
}
