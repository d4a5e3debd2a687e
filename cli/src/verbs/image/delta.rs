//! `mica image delta`: what a node that holds one image lacks of another.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mica_packer::chunks_path;
use mica_squashfs::chunks::ChunkTable;
use mica_squashfs::delta::delta;
use mica_squashfs::{Image, OpenOptions};
use serde_json::json;

use crate::output;

/// Bytes to ship for a new image to a node that has the old one
///
/// Blocks are compared as they are stored. Where both images have their FILE.chunks, also what that makes in chunks,
/// which is what a pull moves.
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
    let chunks = chunks(&args.old).zip(chunks(&args.new)).map(|(old, new)| in_chunks(&old, &new));
    if args.json {
        output::json(&json!({
            "in_chunks": chunks,
            "total": delta.total, "bytes": delta.bytes(), "data": delta.data, "metadata": delta.metadata,
            "tables": delta.tables, "blocks": delta.blocks, "new_blocks": delta.new_blocks,
        }))?;
    } else {
        let row = |name: &str, bytes| [name.to_owned(), output::bytes(bytes), bytes.to_string()];
        let mut rows = vec![
            row("new data blocks", delta.data),
            row("new metadata", delta.metadata),
            row("tables", delta.tables),
            row("to ship", delta.bytes()),
            row("of", delta.total),
        ];
        rows.extend(chunks.map(|bytes| row("in chunks, with their table", bytes)));
        output::table(["", "SIZE", "BYTES"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The chunk table beside an image, if it is that image's.
fn chunks(image: &Path) -> Option<ChunkTable> {
    let table = ChunkTable::parse(&std::fs::read(chunks_path(image)).ok()?).ok()?;
    (table.image_len() == std::fs::metadata(image).ok()?.len()).then_some(table)
}

/// What `mica pull` moves at most: whole chunks that are new, and the table that says which.
fn in_chunks(old: &ChunkTable, new: &ChunkTable) -> u64 {
    let mut held: HashSet<_> = old.chunks().iter().map(|chunk| chunk.digest).collect();
    let chunks = new.chunks().iter().filter(|chunk| held.insert(chunk.digest));
    chunks.map(|chunk| u64::from(chunk.length)).sum::<u64>() + new.encode().len() as u64
}
