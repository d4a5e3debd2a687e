//! `mica config`: the settings, and who set them.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Map, json};

use crate::context::Context;
use crate::output;
use crate::places::{self, Origin};

/// Look at the settings
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the settings that hold here
    Show(ShowArgs),
    /// Let a folder's mica.toml count although somebody else can change it
    Trust(TrustArgs),
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct TrustArgs {
    /// The folder that holds the file
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// List the folders that are trusted
    #[arg(long)]
    list: bool,
    /// Trust a folder no more
    #[arg(long, value_name = "DIR")]
    remove: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Say where each comes from
    #[arg(long)]
    origin: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Show(args) => show(args, &Context::new()?),
        // Where one stands may be such a folder: nothing else is read there.
        Verb::Trust(args) => trust(args),
    }
}

fn trust(args: &TrustArgs) -> anyhow::Result<ExitCode> {
    let trusted = places::trusted_folders()?;
    if args.list {
        output::lines(trusted.list().iter().map(|folder| folder.to_string_lossy()))?;
    } else if let Some(folder) = &args.remove {
        trusted.remove(folder)?;
    } else if let Some(folder) = &args.folder {
        trusted.add(folder)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(args: &ShowArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let rows = places::origins(&crate::context::here(), &context.places)?;
    if args.json {
        let one = |value: &str, origin: &Origin| match args.origin {
            true => json!({ "value": value, "origin": origin.to_string() }),
            false => json!(value),
        };
        let all: Map<String, _> =
            rows.iter().map(|(name, value, origin)| (name.clone(), one(value, origin))).collect();
        output::json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.origin {
        let rows: Vec<[String; 3]> = rows
            .into_iter()
            .map(|(name, value, origin)| [name, value, origin.to_string()])
            .collect();
        output::table(["SETTING", "VALUE", "ORIGIN"], &rows)?;
    } else {
        let rows: Vec<[String; 2]> =
            rows.into_iter().map(|(name, value, _)| [name, value]).collect();
        output::table(["SETTING", "VALUE"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}
