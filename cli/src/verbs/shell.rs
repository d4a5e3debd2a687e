//! `mica shell`: a shell in a package's stack.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use super::run;
use crate::context::Context;

/// Open a shell in a package's stack
///
/// Short for `mica run --rm -it --entrypoint /bin/sh REF`, with the flags of `mica run` before REF.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Flags of `mica run`, and the package
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "REF"
    )]
    words: Vec<OsString>,
}

/// The words of `mica run`, by themselves.
#[derive(Debug, Parser)]
struct Words {
    #[command(flatten)]
    run: run::Args,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let own = ["shell", "--rm", "-i", "-t", "--entrypoint", "/bin/sh"].map(OsString::from);
    let words = Words::try_parse_from(own.iter().chain(&args.words))?;
    run::run(&words.run, context)
}
