//! Which module put a path into a package, and what it hides.

use std::path::Path;

use anyhow::bail;
use mica_graph::PackageRef;
use mica_mounter::View;
use serde::Serialize;

use crate::context::Context;
use crate::output;
use crate::stacks::{self, Opened};
use crate::verbs::image;

#[derive(Serialize)]
struct Row {
    module: String,
    version: String,
    kind: &'static str,
    size: u64,
    /// The package shows it; else another layer hides it.
    shown: bool,
}

pub(super) fn show(
    context: &Context,
    package: &PackageRef,
    path: &Path,
    json: bool,
) -> anyhow::Result<()> {
    let Opened { manifest, stack } = stacks::open_package(context, package)?;
    let images: Vec<_> = stack.layers.iter().map(|layer| layer.image.clone()).collect();
    let shown = View::new(stack).layers_of(path)?;
    let inside = Path::new("/").join(path);
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
    if json {
        return output::json(&rows);
    }
    let cells = |row: &Row| {
        let state = if row.shown { "shown" } else { "hidden" };
        let (kind, size) = (row.kind.to_owned(), output::bytes(row.size));
        [row.module.clone(), row.version.chars().take(12).collect(), kind, size, state.to_owned()]
    };
    let cells: Vec<[String; 5]> = rows.iter().map(cells).collect();
    output::table(["MODULE", "VERSION", "KIND", "SIZE", "STATE"], &cells)
}
