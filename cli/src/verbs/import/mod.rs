//! `mica import`: what other tools made, as a package.

mod archive;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_fetcher::{Cache, ImageDefaults};
use mica_graph::{Blob, Digest, Label, Layer, Manifest, PackageName, Version};
use mica_packer::{Keep, PackOptions, chunks_path, pack_dir, untar};
use mica_squashfs::{Image, OpenOptions};

use self::archive::{Container, decompressed};
use super::pack_defaults::{Defaults, label};
use crate::context::Context;
use crate::output::{self, note};

/// Make a package of an image of other tools, in the cache
///
/// SOURCE is a tar of `docker save` or of an OCI layout, such a layout in a folder, a tar of a tree (gzip, zstd, xz), a
/// folder, a .xar or a squashfs image; - is a tar on standard input. Layers stay what they are, whiteouts included, and
/// become the root of jobs. Run by root, owners and devices are kept; else everything belongs to root in the job.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to import
    source: PathBuf,
    /// The package's name [default: what it is called there, or the file]
    #[arg(long, value_name = "NAME")]
    name: Option<PackageName>,
    /// The version [default: the tag there, or made from the content]
    #[arg(long, value_name = "V")]
    version: Option<Version>,
    /// Tags to move to this version
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Version>,
    /// Show the tree at /packages/NAME-VERSION, not as the root of jobs
    #[arg(long)]
    no_root: bool,
    /// Compression level
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    #[command(flatten)]
    defaults: Defaults,
    /// Take it also in place of other content that this version has here
    #[arg(long)]
    replace: bool,
    /// Say nothing but the reference
    #[arg(short, long)]
    quiet: bool,
}

/// What there is to make a package of.
#[derive(Default)]
struct Found {
    /// Bottom first.
    layers: Vec<Packed>,
    defaults: ImageDefaults,
    /// `NAME`, `NAME:TAG` or `:TAG`, perhaps with a registry before it.
    name: Option<String>,
    root: bool,
}

/// An image in the cache.
struct Packed {
    image: Blob,
    chunks: Option<Blob>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let cannot = || format!("cannot import {}", args.source.display());
    let cache = context.cache()?.replacing(args.replace);
    let found = args.find(&cache, context).with_context(cannot)?;
    let manifest = args.manifest(found).with_context(cannot)?;
    cache.record(&manifest, &args.tags)?;
    output::lines([format!("{}@{}", manifest.name, manifest.version).as_str()])?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn find(&self, cache: &Cache, context: &Context) -> anyhow::Result<Found> {
        let scratch = context.scratch()?;
        let unpacked = scratch.path().join("unpacked");
        let dir = match self.source.is_dir() {
            true => self.source.as_path(),
            false => {
                if self.source.as_os_str() == "-" {
                    self.unpack(std::io::stdin().lock(), &unpacked)?;
                } else if let Some(found) = self.image(cache)? {
                    return Ok(found);
                } else {
                    self.unpack(File::open(&self.source)?, &unpacked)?;
                }
                unpacked.as_path()
            }
        };
        let Some(container) = Container::find(dir)? else {
            let layers = vec![self.pack(cache, dir, scratch.path())?];
            return Ok(Found { layers, root: true, ..Found::default() });
        };
        let Container { layers, defaults, name } = container;
        let tree = scratch.path().join("layer");
        let layer = |tar: PathBuf| {
            self.unpack(archive::open(dir, &tar)?, &tree)?;
            let packed = self.pack(cache, &tree, scratch.path())?;
            mica_durable::remove_tree(&tree)?;
            Ok(packed)
        };
        let layers = layers.into_iter().map(layer).collect::<anyhow::Result<_>>()?;
        Ok(Found { layers, defaults, name, root: true })
    }

    /// The file as it is, if it is an image.
    fn image(&self, cache: &Cache) -> anyhow::Result<Option<Found>> {
        let mut start = [0; 8];
        let count = File::open(&self.source)?.read(&mut start)?;
        if !start[..count].starts_with(b"#!") && !start[..count].starts_with(b"hsqs") {
            return Ok(None);
        }
        let image = Image::open(&self.source, &OpenOptions::default())?;
        let mut found = Found::default();
        if let Some(target) = image.xar_header().and_then(|header| header.xarexec_target.clone()) {
            // As XAR's own tools do, which name the file to its program.
            let file = self.source.file_name().unwrap_or_default().display().to_string();
            found.defaults.process.entrypoint = vec![format!("./{target}"), file];
        }
        let mut hash = blake3::Hasher::new();
        hash.update_reader(File::open(&self.source)?)?;
        let digest = Digest::from_bytes(*hash.finalize().as_bytes());
        let bytes = Blob { digest, size: self.source.metadata()?.len() };
        cache.insert(&bytes, &self.source)?;
        found.layers.push(Packed { image: bytes, chunks: None });
        Ok(Some(found))
    }

    fn unpack(&self, tar: impl Read, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(dir)?;
        let keep = if keeps_owners() { Keep::Everything } else { Keep::Modes };
        let notices = untar(decompressed(tar)?, dir, keep)?;
        if !self.quiet {
            notices.iter().for_each(note);
        }
        Ok(())
    }

    fn pack(&self, cache: &Cache, dir: &Path, scratch: &Path) -> anyhow::Result<Packed> {
        let owner = if keeps_owners() { None } else { Some((0, 0)) };
        let options =
            PackOptions { level: self.level, owner, mtime: u32::MAX, ..PackOptions::default() };
        let file = scratch.join("layer.xar");
        let packed = pack_dir(dir, &file, &options)?;
        if !self.quiet {
            packed.notices.iter().for_each(note);
            note(format_args!("packed  {:>10}", output::bytes(packed.size)));
        }
        let image = Blob { digest: packed.digest, size: packed.size };
        cache.insert(&image, &file)?;
        let table = packed.chunks.encode();
        let chunks = Blob { digest: Digest::of(&table), size: table.len() as u64 };
        let chunks = (packed.size >= mica_fetcher::SMALLEST_DELTA).then_some(chunks);
        if let Some(chunks) = &chunks {
            cache.insert(chunks, &chunks_path(&file))?;
        }
        Ok(Packed { image, chunks })
    }

    fn manifest(&self, found: Found) -> anyhow::Result<Manifest> {
        if found.layers.is_empty() {
            bail!("it has no layers");
        }
        let (name, tag) = self.names(found.name.as_deref())?;
        let content: Vec<u8> =
            found.layers.iter().flat_map(|layer| *layer.image.digest.as_bytes()).collect();
        let version = match (&self.version, tag) {
            (Some(version), _) => version.clone(),
            (None, Some(tag)) => tag,
            // As long as a commit's name, which it stands in for.
            (None, None) => Digest::of(&content).hex()[..40].parse()?,
        };
        let module = |index: usize| -> anyhow::Result<Label> {
            format!("//{name}:layer{index}").parse().context("cannot name its layers; use --name")
        };
        let layer = |(index, packed): (usize, &Packed)| -> anyhow::Result<Layer> {
            Ok(Layer {
                module: module(index)?,
                version: version.clone(),
                digest: packed.image.digest,
                size: packed.image.size,
                inputs: packed.image.digest,
                chunks: packed.chunks.clone(),
                root: found.root && !self.no_root,
            })
        };
        let layers = found.layers.iter().enumerate().rev().map(layer);
        let ImageDefaults { process, service, labels } = found.defaults;
        let mut manifest = Manifest {
            schema: Manifest::SCHEMA,
            layers: layers.collect::<anyhow::Result<_>>()?,
            target: module(found.layers.len() - 1)?,
            name,
            version,
            process,
            labels,
            limits: mica_graph::Limits::default(),
            service,
        };
        self.defaults.apply(&mut manifest)?;
        label(&mut manifest, None);
        Ok(manifest)
    }

    /// The package's name, and a version if a tag says one.
    fn names(&self, there: Option<&str>) -> anyhow::Result<(PackageName, Option<Version>)> {
        let last = there.map(|name| name.rsplit('/').next().unwrap_or(name));
        let (name, tag) = match last.map(|last| last.split_once(':').unwrap_or((last, ""))) {
            Some((name, tag)) => (Some(name).filter(|name| !name.is_empty()), Some(tag)),
            None => (None, None),
        };
        let tag = tag.filter(|tag| *tag != "latest").and_then(|tag| tag.parse().ok());
        let stem = self.source.file_name().map(|name| name.to_string_lossy().into_owned());
        let stem =
            stem.as_deref().and_then(|name| name.split('.').next()).filter(|stem| *stem != "-");
        let name = match (&self.name, name.or(stem)) {
            (Some(name), _) => name.clone(),
            (None, Some(word)) => word.parse().context("give the package a name with --name")?,
            (None, None) => bail!("give the package a name with --name"),
        };
        Ok((name, tag))
    }
}

fn keeps_owners() -> bool {
    rustix::process::geteuid().is_root()
}
