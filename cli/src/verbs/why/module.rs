//! A module's layer in a package, and why it is not that of another version.

use std::sync::Arc;

use anyhow::Context as _;
use mica_durable::Scratch;
use mica_graph::{Digest, Label, PackageRef};
use mica_mounter::StackLayer;
use mica_packer::{PackOptions, pack_scan};
use mica_squashfs::Image;
use serde_json::json;

use crate::context::Context;
use crate::output::{self, note};
use crate::scratch;
use crate::stacks::{self, Opened};
use crate::verbs::diff;
use crate::verbs::image::source_date_epoch;
use crate::verbs::plan::{Built, Scanned};

/// The layer of a module: what it was made of, and its image.
pub(super) struct Layer {
    inputs: Digest,
    image: Arc<Image>,
    /// Where the image is, if it was made to look at it.
    _scratch: Option<Scratch>,
}

impl Layer {
    pub(super) fn of_package(
        context: &Context,
        package: &PackageRef,
        module: &Label,
    ) -> anyhow::Result<Self> {
        Self::find(stacks::open_package(context, package)?, module)
            .with_context(|| format!("{package} has no layer of {module}"))
    }

    fn find(opened: Opened, module: &Label) -> Option<Self> {
        let Opened { manifest, stack } = opened;
        let mut layers = manifest.layers.into_iter().zip(stack.layers);
        let (layer, StackLayer { image, .. }) =
            layers.find(|(layer, _)| layer.module == *module)?;
        Some(Self { inputs: layer.inputs, image, _scratch: None })
    }

    /// As `mica pack` would make it.
    pub(super) fn of_target(built: &Built, module: &Label) -> anyhow::Result<Self> {
        let options =
            PackOptions { mtime: source_date_epoch()?, durable: false, ..PackOptions::default() };
        let layers = built.scan_layers(&options, None)?;
        let layer = layers.iter().find(|layer| layer.module.label == *module);
        let layer = layer.with_context(|| format!("{} has no layer of {module}", built.target))?;
        let Scanned { scan, inputs } = layer.scanned()?;
        let scratch = scratch::folder()?;
        let file = scratch.path().join("image.xar");
        pack_scan(scan, &file, &options)
            .with_context(|| format!("cannot pack the layer of {module}"))?;
        let image = StackLayer::open(module.to_string(), &file)?.image;
        Ok(Self { inputs: *inputs, image, _scratch: Some(scratch) })
    }
}

/// Shows what has changed in a module's layer since another version.
pub(super) fn since(
    context: &Context,
    module: &Label,
    new: &Layer,
    since: &PackageRef,
    as_json: bool,
) -> anyhow::Result<()> {
    let old = Layer::find(stacks::open_package(context, since)?, module);
    let changes = match &old {
        Some(old) if old.inputs != new.inputs => diff::image_changes(&old.image, &new.image)?,
        _ => diff::Changes::new(),
    };
    let (state, said) = match &old {
        None => ("new", "is not in it".to_owned()),
        Some(old) if old.inputs == new.inputs => ("same", "is the same".to_owned()),
        Some(_) if changes.is_empty() => {
            ("parameters", "has other times or was packed with other parameters".to_owned())
        }
        Some(_) => ("changed", format!("has {} paths that changed", changes.len())),
    };
    if as_json {
        let since = since.to_string();
        let row = json!({ "module": module, "since": since, "state": state, "changes": diff::rows(&changes) });
        return output::json(&row);
    }
    diff::print(&changes)?;
    note(format_args!("since {since}: {module} {said}"));
    Ok(())
}

/// Shows a module's layer in a package.
pub(super) fn show(
    context: &Context,
    package: &PackageRef,
    module: &Label,
    as_json: bool,
) -> anyhow::Result<()> {
    let manifest = stacks::open_package(context, package)?.manifest;
    let layer = manifest.layers.iter().find(|layer| layer.module == *module);
    let layer = layer.with_context(|| format!("{package} has no layer of {module}"))?;
    let state = if layer.version == manifest.version { "packed" } else { "reused" };
    let (module, version) = (layer.module.to_string(), layer.version.to_string());
    if as_json {
        let row = json!({ "module": module, "version": version, "size": layer.size, "digest": layer.digest, "state": state });
        return output::json(&row);
    }
    let version = version.chars().take(12).collect();
    let cells = [module, version, output::bytes(layer.size), state.to_owned()];
    output::table(["MODULE", "VERSION", "SIZE", "STATE"], &[cells])
}
