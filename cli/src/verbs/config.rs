//! `mica config`: the settings, and who set them.

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

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let Verb::Show(args) = &args.verb;
    let rows = places::origins(&std::env::current_dir()?, &context.places)?;
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
