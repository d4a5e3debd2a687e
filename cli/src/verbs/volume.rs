//! `mica volume`: folders that outlive jobs.

use std::process::ExitCode;

use mica_agent::VolumeName;

use crate::context::Context;
use crate::output;

/// Look after named volumes
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a volume; `mica run -v NAME:DIR` makes it, too
    Create {
        /// Its name
        name: VolumeName,
    },
    /// List volumes
    #[command(alias = "list")]
    Ls {
        /// Names only
        #[arg(short, long)]
        quiet: bool,
        /// Print JSON
        #[arg(long, conflicts_with = "quiet")]
        json: bool,
    },
    /// Remove volumes that no job has
    #[command(alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<VolumeName>,
    },
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let state = context.jobs()?;
    let volumes = state.volumes();
    match &args.verb {
        Verb::Create { name } => {
            volumes.create(name)?;
            output::lines([name.as_str()])?;
        }
        Verb::Ls { quiet: true, .. } => {
            output::lines(volumes.list()?.iter().map(|(name, _)| name.as_str()))?;
        }
        Verb::Ls { json: true, .. } => {
            let row = |(name, path): &(VolumeName, std::path::PathBuf)| serde_json::json!({ "name": name.as_str(), "path": path });
            output::json(&volumes.list()?.iter().map(row).collect::<Vec<_>>())?;
        }
        Verb::Ls { .. } => {
            let rows: Vec<[String; 2]> = volumes
                .list()?
                .into_iter()
                .map(|(name, path)| [name.to_string(), path.display().to_string()])
                .collect();
            output::table(["NAME", "PATH"], &rows)?;
        }
        Verb::Rm { names } => {
            for name in names {
                volumes.remove(name)?;
                output::lines([name.as_str()])?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
