//! `mica history`: the versions of a package and what each costs to ship.

use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use mica_fetcher::{HistoryEntry, registry};
use mica_graph::PackageName;
use serde_json::json;

use crate::context::Context;
use crate::output;
use crate::registries::RegistryFlags;

/// List the versions of a package in the registry, newest first
///
/// SHIP is what a node that has the version before must fetch at most.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package
    #[arg(value_name = "NAME")]
    name: PackageName,
    /// Show so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let registry = registry::open(&context.places.registry, &context.registries())?;
    let entries = mica_fetcher::history(&*registry, &args.name, args.limit)?;
    if args.json {
        let rows: Vec<_> = entries.iter().map(as_json).collect();
        output::json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 7]> = entries.iter().map(|entry| cells(&args.name, entry)).collect();
    let heading = ["VERSION", "PUBLISHED", "LAYERS", "CHANGED", "SIZE", "SHIP", "TAGS"];
    output::table(heading, &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn ms(entry: &HistoryEntry) -> i64 {
    let since = entry.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn cells(name: &PackageName, entry: &HistoryEntry) -> [String; 7] {
    let reference = output::short_source(&format!("{name}@{}", entry.version));
    let tags: Vec<&str> = entry.tags.iter().map(|tag| tag.as_str()).collect();
    [
        reference.split_once('@').map_or("", |(_, version)| version).to_owned(),
        output::ago(ms(entry)),
        entry.layers.to_string(),
        entry.changed.to_string(),
        output::bytes(entry.size),
        output::bytes(entry.ship),
        if tags.is_empty() { "-".into() } else { tags.join(",") },
    ]
}

fn as_json(entry: &HistoryEntry) -> serde_json::Value {
    json!({
        "version": entry.version,
        "digest": entry.digest,
        "tags": entry.tags,
        "published_ms": ms(entry),
        "layers": entry.layers,
        "changed_layers": entry.changed,
        "size": entry.size,
        "ship": entry.ship,
    })
}
