//! `mica completion`: what a shell needs to complete mica's words, and manual pages, made from the command line itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::output;

/// Print what a shell needs to complete mica's words
///
/// For bash: mica completion bash > ~/.local/share/bash-completion/completions/mica. For zsh, a file _mica in a folder of
/// $fpath; for fish, ~/.config/fish/completions/mica.fish.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum, required_unless_present = "man")]
    shell: Option<Shell>,
    /// Write the manual pages into this folder instead, mica.1 and one for each verb
    #[arg(long, value_name = "DIR", conflicts_with = "shell")]
    man: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut command = Cli::command();
    if let Some(dir) = &args.man {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        command.build();
        page(dir, &command)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(shell) = args.shell {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "mica", &mut script);
        let mut out = output::stdout();
        out.write_all(&script)?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The page of a command, and those of the ones below it.
fn page(dir: &Path, command: &clap::Command) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let path = dir.join(format!("{name}.1"));
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.clone()).render(&mut text)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .try_for_each(|verb| page(dir, verb))
}
