//! `mica diff`: what changed between two packages, in paths and in bytes to ship.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::ExitCode;

use mica_fetcher::Cache;
use mica_graph::{Digest, Layer, Manifest, PackageRef};
use mica_mounter::{Seen, View};
use mica_squashfs::chunks::ChunkTable;
use mica_squashfs::{Image, Inode, InodeKind};
use serde_json::json;

use super::image;
use crate::context::Context;
use crate::output::{self, note};
use crate::registries::RegistryFlags;
use crate::stacks::{self, Opened};

/// Show what changed between two versions of a package, or two packages: paths, and bytes to ship
///
/// A is added, C changed, D deleted. The bytes are what a node that has OLD fetches for NEW, in whole images or in
/// chunks; patches may make it less.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What was
    #[arg(value_name = "OLD")]
    old: PackageRef,
    /// What is
    #[arg(value_name = "NEW")]
    new: PackageRef,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let old = stacks::open_package(context, &args.old)?;
    let new = stacks::open_package(context, &args.new)?;
    let bytes = bytes_to_ship(&context.cache()?, &old.manifest, &new.manifest)?;
    let layers = new.manifest.layers.iter().filter(|layer| !has(&old.manifest, layer)).count();
    let changes = changes(old, new)?;
    if args.json {
        output::json(&json!({ "changes": rows(&changes), "layers": layers, "bytes": bytes }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&changes)?;
    let paths = changes.len();
    note(format_args!("{paths} paths, {layers} layers, {} to ship", output::bytes(bytes)));
    Ok(ExitCode::SUCCESS)
}

/// The paths that are not what they were, without a leading slash.
pub(super) type Changes = BTreeMap<PathBuf, char>;

pub(super) fn rows(changes: &Changes) -> Vec<serde_json::Value> {
    let row = |(path, change): (&PathBuf, &char)| json!({ "path": path.to_string_lossy(), "change": change });
    changes.iter().map(row).collect()
}

pub(super) fn print(changes: &Changes) -> anyhow::Result<()> {
    let lines: Vec<String> =
        changes.iter().map(|(path, change)| format!("{change} /{}", path.display())).collect();
    output::lines(lines.iter().map(String::as_str))
}

fn has(manifest: &Manifest, layer: &Layer) -> bool {
    manifest.layers.iter().any(|other| other.digest == layer.digest)
}

/// What a pull moves at most for the layers that are new.
fn bytes_to_ship(cache: &Cache, old: &Manifest, new: &Manifest) -> anyhow::Result<u64> {
    let table = |layer: &Layer| -> anyhow::Result<Option<ChunkTable>> {
        let bytes = layer.chunks.as_ref().map(|blob| cache.document(blob)).transpose()?.flatten();
        Ok(bytes.and_then(|bytes| ChunkTable::parse(&bytes).ok()))
    };
    let mut held = HashSet::new();
    for layer in &old.layers {
        held.extend(table(layer)?.iter().flat_map(ChunkTable::chunks).map(|chunk| chunk.digest));
    }
    let mut bytes = 0;
    for layer in new.layers.iter().filter(|layer| !has(old, layer)) {
        let in_chunks = table(layer)?.map(|table| {
            let missing = table.chunks().iter().filter(|chunk| held.insert(chunk.digest));
            missing.map(|chunk| u64::from(chunk.length)).sum::<u64>() + table.encode().len() as u64
        });
        bytes += in_chunks.unwrap_or(layer.size).min(layer.size);
    }
    Ok(bytes)
}

/// An entry, and the layer whose it is.
struct Entry<'a> {
    layer: Digest,
    seen: Seen<'a>,
}

fn changes(old: Opened, new: Opened) -> anyhow::Result<Changes> {
    let (old_view, new_view) = (View::new(old.stack), View::new(new.stack));
    let mut before = BTreeMap::new();
    old_view.walk(|seen| {
        let layer = old.manifest.layers[seen.layer].digest;
        before.insert(seen.path.clone(), Entry { layer, seen });
    })?;
    let (mut changes, mut unsure) = (BTreeMap::new(), Vec::new());
    new_view.walk(|seen| {
        let layer = new.manifest.layers[seen.layer].digest;
        match before.remove(&seen.path) {
            None => drop(changes.insert(seen.path, 'A')),
            // The same inode of the same image.
            Some(old) if old.layer == layer && old.seen.inode.number == seen.inode.number => {}
            Some(old) => unsure.push((old.seen, seen)),
        }
    })?;
    for (old, new) in unsure {
        if !same((old.image, &old.inode), (new.image, &new.inode))? {
            changes.insert(new.path, 'C');
        }
    }
    changes.extend(before.into_keys().map(|path| (path, 'D')));
    Ok(changes)
}

/// What changed between two images, of which marks of the overlay are files like others.
pub(super) fn image_changes(old: &Image, new: &Image) -> anyhow::Result<Changes> {
    let all = |image: &Image| -> anyhow::Result<BTreeMap<PathBuf, Inode>> {
        let mut all = BTreeMap::new();
        let root = (PathBuf::new(), image.inode(image.root())?);
        image::walk(image, root, |path, inode| {
            all.insert(path.to_owned(), inode.clone());
            Ok(())
        })?;
        Ok(all)
    };
    let (mut before, mut changes) = (all(old)?, Changes::new());
    for (path, inode) in all(new)? {
        match before.remove(&path) {
            None => drop(changes.insert(path, 'A')),
            Some(was) if same((old, &was), (new, &inode))? => {}
            Some(_) => drop(changes.insert(path, 'C')),
        }
    }
    changes.extend(before.into_keys().map(|path| (path, 'D')));
    Ok(changes)
}

/// Times don't count: packing sets them.
fn same((old, a): (&Image, &Inode), (new, b): (&Image, &Inode)) -> anyhow::Result<bool> {
    let about =
        |inode: &Inode| (inode.file_kind(), inode.mode, inode.uid, inode.gid, inode.device());
    if about(a) != about(b) || old.xattrs(a)? != new.xattrs(b)? {
        return Ok(false);
    }
    Ok(match a.kind {
        InodeKind::File { .. } => a.size() == b.size() && same_content(old, a, new, b)?,
        InodeKind::Symlink { .. } => old.read_link(a)? == new.read_link(b)?,
        _ => true,
    })
}

fn same_content(old: &Image, a: &Inode, new: &Image, b: &Inode) -> anyhow::Result<bool> {
    let (mut left, mut right) = (vec![0; 1 << 17], vec![0; 1 << 17]);
    let mut offset = 0;
    while offset < a.size() {
        let count = old.read_at(a, offset, &mut left)?;
        if count == 0 || new.read_at(b, offset, &mut right[..count])? != count {
            return Ok(false);
        }
        if left[..count] != right[..count] {
            return Ok(false);
        }
        offset += count as u64;
    }
    Ok(true)
}
