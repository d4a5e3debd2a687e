//! `mica xar`: self-contained files, ours and those of XAR's own tools.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_squashfs::{Image, OpenOptions};

use super::{image, run};
use crate::context::Context;
use crate::error::Advise as _;

/// Look at, run and verify .xar files, also those that XAR's own tools made
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show a file's header and parameters
    Info(image::info::Args),
    /// Run the program that a file names in its header
    Run(RunArgs),
    /// Read everything in a file and name what is damaged
    Verify(image::verify::Args),
}

/// Run the program that a .xar names in its header
///
/// As XAR's own xarexec does, with the caller's environment, folder and streams, and the file as the first argument; but
/// as a job of `mica run`, for which all of the host but that folder is read-only, and without root.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The file and the program's arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "FILE")]
    words: Vec<OsString>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Info(args) => image::info::run(args),
        Verb::Verify(args) => image::verify::run(args),
        Verb::Run(args) => run::run_words(job(&args.words)?, context),
    }
}

impl Args {
    /// Whether it passes on the exit code of a program.
    pub(crate) fn runs(&self) -> bool {
        matches!(self.verb, Verb::Run(_))
    }
}

/// The words of `mica run` that do it.
fn job(words: &[OsString]) -> anyhow::Result<Vec<OsString>> {
    let Some((file, arguments)) = words.split_first() else { bail!("which file?") };
    let path = PathBuf::from(file);
    let image = Image::open(&path, &OpenOptions::default())?;
    let Some(header) = image.xar_header() else {
        return Err(anyhow::anyhow!("{} is not a XAR, but a plain image", path.display()))
            .hint("`mica run --image FILE -- COMMAND` runs a program of it");
    };
    let Some(target) = &header.xarexec_target else {
        return Err(anyhow::anyhow!("{} does not say what to run", path.display()))
            .hint("`mica run --image FILE -- COMMAND` runs a program of it");
    };
    let mut words: Vec<OsString> = ["--rm", "-i", "--env-host"].map(OsString::from).into();
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        words.push("-t".into());
    }
    let here = std::env::current_dir().context("cannot find the current folder")?;
    // The root of the host can't be shown as a whole, and /tmp and the like only where there is something to show.
    if here.parent().is_some() {
        words.extend(["--mount".into(), bind(&here), "-w".into(), here.into_os_string()]);
    }
    words.extend(["--image".into(), file.clone(), "--".into()]);
    words.extend([format!("./{target}").into(), file.clone()]);
    words.extend(arguments.first().filter(|word| *word != "--").cloned());
    words.extend(arguments.iter().skip(1).cloned());
    Ok(words)
}

fn bind(here: &std::path::Path) -> OsString {
    let mut text = OsString::from("type=bind,source=");
    text.push(here);
    text.push(",target=");
    text.push(here);
    text
}
