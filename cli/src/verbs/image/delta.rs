//! `mica image delta`: what a node that holds one image lacks of another.

use std::path::PathBuf;
use std::process::ExitCode;

use mica_squashfs::delta::delta;
use mica_squashfs::{Image, OpenOptions};
use serde_json::json;

use crate::output;

/// Bytes to ship for a new image to a node that has the old one
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image that is there
    old: PathBuf,
    /// The image that is wanted
    new: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let open = |path| Image::open(path, &OpenOptions::default());
    let delta = delta(&open(&args.old)?, &open(&args.new)?)?;
    if args.json {
        output::json(&json!({
            "total": delta.total, "bytes": delta.bytes(), "data": delta.data, "metadata": delta.metadata,
            "tables": delta.tables, "blocks": delta.blocks, "new_blocks": delta.new_blocks,
        }))?;
    } else {
        let row = |name: &str, bytes| [name.to_owned(), output::bytes(bytes), bytes.to_string()];
        let rows = [
            row("new data blocks", delta.data),
            row("new metadata", delta.metadata),
            row("tables", delta.tables),
            row("to ship", delta.bytes()),
            row("of", delta.total),
        ];
        output::table(["", "SIZE", "BYTES"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}
