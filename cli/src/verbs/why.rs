//! `mica why`: which module put a path into a package, and what it hides.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use mica_graph::PackageRef;
use mica_mounter::View;
use serde::Serialize;

use super::image;
use crate::context::Context;
use crate::output;
use crate::registries::RegistryFlags;
use crate::stacks::{self, Opened};

/// Show which module put a path into a package, and whose it hides
///
/// A folder is merged from all layers that are shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package
    #[arg(value_name = "REF")]
    reference: PackageRef,
    /// The path, from the root of the stack
    path: PathBuf,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    module: String,
    version: String,
    kind: &'static str,
    size: u64,
    /// The package shows it; else another layer hides it.
    shown: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let Opened { manifest, stack } = stacks::open_package(context, &args.reference)?;
    let images: Vec<_> = stack.layers.iter().map(|layer| layer.image.clone()).collect();
    let shown = View::new(stack).layers_of(&args.path)?;
    let inside = Path::new("/").join(&args.path);
    let mut rows = Vec::new();
    for (index, (layer, image)) in manifest.layers.iter().zip(&images).enumerate() {
        if let Some(inode) = image::lookup(image, &inside)? {
            rows.push(Row {
                module: layer.module.to_string(),
                version: layer.version.to_string(),
                kind: image::kind_word(&inode),
                size: inode.size(),
                shown: shown.contains(&index),
            });
        }
    }
    if rows.is_empty() {
        bail!("no layer of {}@{} has {}", manifest.name, manifest.version, inside.display());
    }
    if args.json {
        output::json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cells = |row: &Row| {
        let state = if row.shown { "shown" } else { "hidden" };
        let (kind, size) = (row.kind.to_owned(), output::bytes(row.size));
        [row.module.clone(), row.version.chars().take(12).collect(), kind, size, state.to_owned()]
    };
    let cells: Vec<[String; 5]> = rows.iter().map(cells).collect();
    output::table(["MODULE", "VERSION", "KIND", "SIZE", "STATE"], &cells)?;
    Ok(ExitCode::SUCCESS)
}
