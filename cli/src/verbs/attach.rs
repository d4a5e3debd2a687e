//! `mica attach`: take part in a running job's output and input.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use mica_agent::{Phase, Remote};
use signal_hook::iterator::Signals;

use crate::context::Context;
use crate::terminal::{self, DetachKeys, Dialogue, Passing};
use crate::{error, signals};

/// Take part in a running job's output and input
///
/// Ends with the job, and with its exit code; or by the keys to let go of a job with a terminal.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Don't connect standard input
    #[arg(long)]
    no_stdin: bool,
    /// Don't pass signals on
    #[arg(long)]
    no_sig_proxy: bool,
    /// Keys by which to let go of the job
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Id, beginning of an id, or name of the job
    job: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let job = context.jobs()?.find(&args.job)?;
    let config = job.config()?;
    if job.status()?.is_some_and(|status| status.phase == Phase::Paused) {
        bail!("job {} is paused; `mica unpause` lets it go on", job.id());
    }
    let remote = Remote::connect(&job).map_err(error::of_control)?;
    let signals = Signals::new(signals::forwarded()).context("cannot catch signals")?;
    let input = config.open_stdin && !args.no_stdin;
    let raw = terminal::check(config.terminal, input)?;
    let (far, near) = match input {
        true => terminal::pipe().map(|(far, near)| (Some(far), Some(near)))?,
        false => (None, None),
    };
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let output = [stdout.as_fd(), stderr.as_fd()];
    let connected =
        remote.attach(output, far.as_ref().map(AsFd::as_fd)).map_err(error::of_control)?;
    drop(far);
    if config.terminal {
        connected.resize(terminal::size());
    }
    let connected = Arc::new(connected);
    let (signalled, passes) = (Arc::clone(&connected), !args.no_sig_proxy);
    let each = move |signal| {
        let pass = |signal| {
            if passes {
                signalled.signal(signal);
            }
        };
        terminal::pass_signal(signal, config.terminal, |size| signalled.resize(size), pass);
    };
    let keys = near.as_ref().filter(|_| config.terminal).map(|_| args.detach_keys.clone());
    let dialogue = Dialogue { input: near, keys, watched: true, ..Dialogue::default() };
    let passing = Passing::start(signals, each)?;
    let ended = terminal::converse(dialogue, &connected);
    drop((passing, raw));
    ended
}
