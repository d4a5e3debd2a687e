//! Packages and image files as stacks to mount.

use std::path::PathBuf;

use anyhow::Context as _;
use mica_agent::{JobLayer, StackConfig, Verify};
use mica_graph::{Manifest, PackageRef};
use mica_mounter::Stack;
use mica_squashfs::{Image, OpenOptions};

use crate::context::Context;
use crate::trust;
use crate::verbs::pull::{self, LazyFlags};
use crate::verbs::run::PullWhen;

/// How the images of packages are got and read.
pub(crate) struct Way<'a> {
    /// When to ask the registry.
    pub(crate) pull: PullWhen,
    /// Show no progress.
    pub(crate) quiet: bool,
    /// Start before all is here.
    pub(crate) lazy: &'a LazyFlags,
    /// When what is read is verified.
    pub(crate) verify: Verify,
    /// Note in which order it is first read.
    pub(crate) record_trace: bool,
}

/// A package, whose images are in the cache afterwards.
pub(crate) fn of_package(
    context: &Context,
    reference: &PackageRef,
    way: &Way<'_>,
) -> anyhow::Result<(StackConfig, Manifest)> {
    let cache = context.cache()?;
    trust::check_verify(&context.places.trust, &reference.name, way.verify)?;
    let manifest = pull::obtain(context, &cache, reference, way.pull, way.quiet, way.lazy)?;
    let folder = &context.places.cache;
    let stack = StackConfig {
        source: format!("{}@{}", manifest.name, manifest.version),
        manifest: Some(manifest.digest()),
        layers: pull::cached_layers(&cache, &manifest, way.lazy)?,
        upper: None,
        cache: Some(folder.clone()),
        shared_cache: context.places.shared_cache.clone(),
        verify: way.verify,
        trace: Some(pull::trace_file(folder, &manifest, way.record_trace)),
        lazy: way.lazy.source(context, &manifest)?,
    };
    Ok((stack, manifest))
}

/// A package whose images are open.
pub(crate) struct Opened {
    pub(crate) manifest: Manifest,
    pub(crate) stack: Stack,
}

/// Opens a package to look at it; it is fetched if need be.
pub(crate) fn open_package(context: &Context, reference: &PackageRef) -> anyhow::Result<Opened> {
    let way = Way {
        pull: PullWhen::Missing,
        quiet: false,
        lazy: &LazyFlags::default(),
        verify: Verify::FirstRead,
        record_trace: false,
    };
    let (config, manifest) = of_package(context, reference, &way)?;
    Ok(Opened { manifest, stack: config.open()? })
}

/// Image files, topmost first; each must be a file that opens as an image.
pub(crate) fn of_images(images: &[PathBuf], verify: Verify) -> anyhow::Result<StackConfig> {
    let layer = |file: &PathBuf| {
        let path =
            file.canonicalize().with_context(|| format!("cannot find image {}", file.display()))?;
        Image::open(&path, &OpenOptions::default())?;
        let chunks = Some(mica_packer::chunks_path(&path)).filter(|table| table.exists());
        Ok(JobLayer {
            name: file.display().to_string(),
            path,
            digest: None,
            chunks,
            table: None,
            foreign: false,
        })
    };
    let layers = images.iter().map(layer).collect::<anyhow::Result<_>>()?;
    let source = images.first().map(|top| top.display().to_string()).unwrap_or_default();
    Ok(StackConfig { source, layers, verify, ..StackConfig::default() })
}
