//! `mica df`: how the cache's bytes are used.

use std::process::ExitCode;

use serde_json::json;

use crate::context::Context;
use crate::output;

/// Show how the cache's bytes are used
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.jobs()?; // what killed jobs held is free then
    let used = context.cache()?.disk_use()?;
    if args.json {
        output::json(&json!({
            "images": used.blobs,
            "bytes": used.bytes,
            "in_use": used.leased,
            "unneeded": used.unneeded,
            "interrupted": used.parts,
            "interrupted_bytes": used.part_bytes,
            "borrowed": used.borrowed,
            "spared": used.spared,
            "reclaimable": used.reclaimable(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |name: &str, count: String, bytes| [name.to_owned(), count, output::bytes(bytes)];
    let rows = [
        row("images", used.blobs.to_string(), used.bytes),
        row("  in use", "-".into(), used.leased),
        row("  of no known package", "-".into(), used.unneeded),
        row("spared by borrowing", used.borrowed.to_string(), used.spared),
        row("interrupted fetches", used.parts.to_string(), used.part_bytes),
        row("reclaimable", "-".into(), used.reclaimable()),
    ];
    output::table(["", "NUMBER", "SIZE"], &rows)?;
    Ok(ExitCode::SUCCESS)
}
