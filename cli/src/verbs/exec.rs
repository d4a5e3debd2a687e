//! `mica exec`: run a further program in a running job.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use mica_agent::{Connected, Remote};
use mica_launcher::ExecSpec;
use signal_hook::iterator::Signals;

use super::run::set_variable;
use crate::context::Context;
use crate::terminal::{self, DetachKeys, Dialogue, Passing};
use crate::{error, signals};

/// Run a further program in a running job
///
/// It gets the job's namespaces, limits, user, rights and environment. Exit codes are those of `mica run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    tty: bool,
    /// Don't wait for the program
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Set an environment variable; NAME alone takes the host's value
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// User, and group, by number or by a name in the job's passwd file
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory in the job
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Keys by which to let go of the program
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Id, beginning of an id, or name of the job
    job: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let job = context.state()?.find(&args.job)?;
    let remote = Remote::connect(&job).map_err(error::of_control)?;
    let spec = args.spec()?;
    let raw = terminal::check(args.tty, args.interactive)?;
    let (connected, dialogue) = args.start(remote, &spec)?;
    // Until it runs, signals end this command.
    let signals = Signals::new(signals::forwarded()).context("cannot catch signals")?;
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let terminal = dialogue.stdout.as_ref().filter(|_| args.tty).map(AsFd::as_fd);
    let terminal = terminal.map(|fd| fd.try_clone_to_owned()).transpose()?;
    let connected = Arc::new(connected);
    let (signalled, tty) = (Arc::clone(&connected), args.tty);
    let each = move |signal| {
        let resize = |size| set_size(terminal.as_ref(), size);
        terminal::pass_signal(signal, tty, resize, |signal| signalled.signal(signal));
    };
    let passing = Passing::start(signals, each)?;
    let ended = terminal::converse(dialogue, &connected);
    drop((passing, raw));
    ended
}

fn set_size(terminal: Option<&OwnedFd>, size: mica_agent::Size) {
    let Some(terminal) = terminal else { return };
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    if let Err(error) = rustix::termios::tcsetwinsize(terminal, size) {
        tracing::debug!(%error, "the terminal is gone");
    }
}

impl Args {
    fn spec(&self) -> anyhow::Result<ExecSpec> {
        let mut env = std::collections::BTreeMap::new();
        if self.tty {
            env.insert("TERM".into(), "xterm".into());
        }
        self.env.iter().for_each(|variable| set_variable(&mut env, variable));
        Ok(ExecSpec {
            argv: self.command.clone(),
            env: env.into_iter().collect(),
            cwd: self.workdir.clone(),
            user: self.user.clone(),
        })
    }

    /// Starts the program. Its streams are pipes or a terminal of its own: nothing of the caller's gets into a job, as what
    /// is in a job can be given other rights there, opened anew and kept.
    fn start(&self, remote: Remote, spec: &ExecSpec) -> anyhow::Result<(Connected, Dialogue)> {
        let mut dialogue = Dialogue::default();
        if self.tty {
            let mut connected =
                remote.exec(spec, Err(terminal::size())).map_err(error::of_control)?;
            let master = connected.terminal.take().context("the program got no terminal")?;
            dialogue.stdout = Some(master.try_clone()?);
            if self.interactive {
                dialogue.input = Some(master);
                dialogue.keys = Some(self.detach_keys.clone());
            }
            return Ok((connected, dialogue));
        }
        let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let stdin = match self.interactive {
            false => null()?,
            true => {
                let (far, near) = terminal::pipe()?;
                dialogue.input = Some(near);
                far
            }
        };
        let output = |near: &mut Option<OwnedFd>| -> anyhow::Result<OwnedFd> {
            if self.detach {
                return Ok(null()?);
            }
            let (read, write) = terminal::pipe()?;
            *near = Some(read);
            Ok(write)
        };
        let (stdout, stderr) = (output(&mut dialogue.stdout)?, output(&mut dialogue.stderr)?);
        let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let connected = remote.exec(spec, Ok(streams)).map_err(error::of_control)?;
        Ok((connected, dialogue))
    }
}
