//! What of the host a job sees, and what it doesn't.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::Context as _;
use mica_agent::{JobDir, StateDir};
use mica_launcher::{Hidden, HostView, Mount, Root, Spec};

use super::flags::Args;
use crate::homes;
use crate::places::Places;

/// Of a job whose stack is no root.
pub(super) fn view(args: &Args, places: &Places) -> HostView {
    match args.host_root {
        true => HostView::Whole,
        false => HostView::Paths(places.host_paths.clone()),
    }
}

/// What no job sees: other jobs, what is in the cache, and the sockets of mounts; but for the volumes that are kept there,
/// and the job's own images.
pub(super) fn hidden(
    spec: &Spec,
    args: &Args,
    job: Option<(&JobDir, &StateDir)>,
    places: &Places,
) -> anyhow::Result<Hidden> {
    let mut hidden = Hidden { folders: places.hidden(), but: Vec::new() };
    let Some((job, state)) = job else { return Ok(hidden) };
    hidden.but.push(state.volumes().path());
    let images = args.storage.images().enumerate();
    hidden.but.extend(images.map(|(index, _)| job.image_tree(index)));
    let binds = |mount: &Mount| matches!(mount, Mount::Bind { .. });
    let whole = matches!(spec.root, Root::Host { view: HostView::Whole, .. });
    if whole || spec.mounts.iter().any(binds) {
        // What is not there can't be hidden, and might be made while the job runs.
        for folder in [&places.cache, &places.runtime] {
            make(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        if rustix::process::geteuid().is_root() {
            hidden.folders.extend(homes::of_everybody());
        }
    }
    Ok(hidden)
}

fn make(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}
