//! `mica commit`: what a job wrote, as a layer and a new version of its package.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use mica_agent::{JobConfig, Remote};
use mica_durable::{FileError, Found, Scratch, walk};
use mica_graph::{Blob, Digest, Layer, Manifest, PackageRef, Version};
use mica_launcher::IdMapping;
use mica_packer::{PackOptions, Packed, chunks_path, pack_dir};
use rustix::fs::FileType;

use super::pack_defaults::{Defaults, VERSION, label};
use crate::context::Context;
use crate::error::{self, Advise};
use crate::output;

/// Make a layer of what a job wrote, and a new version of its package in the cache
///
/// Prints the reference of the new version; `mica push` publishes it. With --output the layer becomes a file instead.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The version [default: made from the content]
    #[arg(long, value_name = "V")]
    version: Option<Version>,
    /// Tags to move to this version
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Version>,
    #[command(flatten)]
    defaults: Defaults,
    /// Write the layer to this image file
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["version", "tags", "Defaults"])]
    output: Option<PathBuf>,
    /// Take it also in place of other content that this version has here
    #[arg(long, conflicts_with = "output")]
    replace: bool,
    /// Keep the owners of files, instead of making all of them root's
    #[arg(long)]
    keep_owners: bool,
    /// Id, beginning of an id, or name of the job
    job: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let state = context.jobs()?;
    let job = state.find(&args.job)?;
    let config = job.config()?;
    let Some(upper) = &config.stack.upper else {
        bail!("job {} cannot have written anything: its stack is read-only", job.id());
    };
    if args.keep_owners && matches!(config.spec.ids, IdMapping::Ranges { .. }) {
        bail!(
            "the owners of what job {} wrote cannot be kept: they are those of --userns remap",
            job.id()
        );
    }
    // What is written meanwhile would be in it by halves. However this process ends, the job goes on then.
    let held = Remote::connect(&job).and_then(Remote::hold).ok();
    // The upper holds files of all users that the job has.
    mica_agent::see_owners()?;
    let committed = match first_incomplete(&upper.upper)? {
        Some(file) => Err(anyhow::anyhow!("{} is here in part only", file.display()))
            .hint("the rest is brought when the job ends: `mica stop` it, commit, and `mica start` it again"),
        None => args.commit(context, &config, &upper.upper, &state.tmp()),
    };
    if let Some(held) = held {
        held.release().map_err(error::of_control)?;
    }
    output::lines([committed?.as_str()])?;
    Ok(ExitCode::SUCCESS)
}

/// A large file of a layer that a running job has changed is in the upper in part only, with overlayfs's mark of such files.
fn first_incomplete(upper: &Path) -> Result<Option<PathBuf>, FileError> {
    let marks = ["trusted.overlay.metacopy", "user.overlay.metacopy"];
    walk(upper, |Found { path, folder, name, stat }| {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return ControlFlow::Continue(());
        }
        // Attributes are asked of paths: the descriptor's is a short one, and the name no link.
        let file = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        let marked = |name: &&str| rustix::fs::lgetxattr(&file, *name, &mut [0_u8; 0][..]).is_ok();
        match marks.iter().any(marked) {
            true => ControlFlow::Break(upper.join(path)),
            false => ControlFlow::Continue(()),
        }
    })
}

impl Args {
    /// Says what was made.
    fn commit(
        &self,
        context: &Context,
        config: &JobConfig,
        upper: &Path,
        scratch: &Path,
    ) -> anyhow::Result<String> {
        let mut options = PackOptions { mtime: u32::MAX, ..PackOptions::default() };
        if self.keep_owners {
            options.owner = None;
        }
        if let Some(file) = &self.output {
            let packed = pack_dir(upper, file, &options)?;
            return Ok(packed.digest.to_string());
        }
        let reference: PackageRef = match config.stack.cache {
            Some(_) => config.stack.source.parse()?,
            None => Err(anyhow::anyhow!("the job runs no package")).hint(
                "`mica commit --output FILE` writes the layer alone, to be used with --image",
            )?,
        };
        let cache = context.cache()?.replacing(self.replace);
        let below = cache.lookup(&reference)?;
        let scratch = Scratch::new(scratch)?;
        let image = scratch.path().join("layer.xar");
        let packed = pack_dir(upper, &image, &options)?;
        let manifest = self.manifest(below, &packed)?;
        let table = packed.chunks.encode();
        let blob = |bytes: &[u8]| Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
        cache.insert(&Blob { digest: packed.digest, size: packed.size }, &image)?;
        if manifest.layers[0].chunks.is_some() {
            cache.insert(&blob(&table), &chunks_path(&image))?;
        }
        cache.record(&manifest, &self.tags)?;
        Ok(format!("{}@{}", manifest.name, manifest.version))
    }

    /// The package that the job ran, with what it wrote on top.
    fn manifest(&self, below: Manifest, packed: &Packed) -> anyhow::Result<Manifest> {
        let table = packed.chunks.encode();
        let large = packed.size >= mica_fetcher::SMALLEST_DELTA;
        let chunks = Blob { digest: Digest::of(&table), size: table.len() as u64 };
        let version = self.version.clone().unwrap_or_else(|| below.version.clone());
        let layer = Layer {
            module: below.target.clone(),
            version: version.clone(),
            digest: packed.digest,
            size: packed.size,
            // Nothing but these bytes themselves makes the same layer again.
            inputs: packed.digest,
            chunks: large.then_some(chunks),
            root: false,
        };
        let mut labels = below.labels.clone();
        labels.insert("mica.commit.base".into(), format!("{}@{}", below.name, below.version));
        labels.remove(VERSION);
        let layers = std::iter::once(layer).chain(below.layers.iter().cloned()).collect();
        let mut manifest = Manifest { version, layers, labels, ..below };
        self.defaults.apply(&mut manifest)?;
        if self.version.is_none() {
            let digest = Digest::of(&manifest.to_json()).hex().to_string();
            // As long as a commit's name, which it stands in for.
            if let Ok(version) = digest[..40].parse::<Version>() {
                manifest.layers[0].version = version.clone();
                manifest.version = version;
            }
        }
        label(&mut manifest, None);
        Ok(manifest)
    }
}
