//! Which dependencies lead from a target to a module, or to the modules that have a path.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use anyhow::bail;
use mica_graph::Label;
use mica_packer::PackOptions;

use crate::output;
use crate::verbs::plan::{Built, PlannedLayer};

pub(super) fn show(
    built: &Built,
    what: &Path,
    module: Option<&Label>,
    json: bool,
) -> anyhow::Result<()> {
    let modules = match module {
        Some(module) => vec![module.clone()],
        None => modules_of(built, what)?,
    };
    let mut paths = Vec::new();
    for module in &modules {
        match built.graph.path(&built.target, module)? {
            Some(path) => paths.push(path),
            None => bail!("{} does not depend on {module}", built.target),
        }
    }
    if json {
        return output::json(&paths);
    }
    let line =
        |path: &Vec<&Label>| path.iter().map(ToString::to_string).collect::<Vec<_>>().join(" -> ");
    let lines: Vec<String> = paths.iter().map(line).collect();
    output::lines(lines.iter().map(String::as_str))
}

/// Those whose layers have something at this path, topmost first.
fn modules_of(built: &Built, path: &Path) -> anyhow::Result<Vec<Label>> {
    let names = path.components().filter(|part| *part != Component::RootDir);
    let wanted: std::path::PathBuf = names.collect();
    let layers = built.scan_layers(&PackOptions::default(), None)?;
    // Of what is not built only the outputs' names are known.
    let has = |layer: &PlannedLayer<'_>| match &layer.scanned {
        Some(scanned) => scanned.scan.tree.find(wanted.as_os_str().as_bytes()).is_some(),
        None => {
            layer.module.outputs.iter().any(|output| Path::new(&output.path).starts_with(&wanted))
        }
    };
    let with_it = layers.iter().filter(|layer| has(layer));
    let modules: Vec<Label> = with_it.map(|layer| layer.module.label.clone()).collect();
    if modules.is_empty() {
        bail!("no module of {} has /{}", built.target, wanted.display());
    }
    Ok(modules)
}
