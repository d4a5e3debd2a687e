//! `mica pack`: build a target, pack its modules into layers and publish the package.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mica_fetcher::registry::{self, OpenOptions, Published, WriteRegistry};
use mica_fetcher::{PushOptions, SMALLEST_DELTA, SecretKey};
use mica_graph::{Blob, Digest, Layer, Manifest, PackageName, PackageRef, Version};
use mica_packer::{PackOptions, chunks_path, pack_scan};

use super::pack_defaults::{Defaults, label, same_but_for_revision};
use super::plan::{Built, PlannedLayer, Scanned, Source, Target};
use super::push::PatchFlags;
use crate::confined::ActionFlags;
use crate::context::Context;
use crate::git::{self, Commit};
use crate::kept::Kept;
use crate::output::{self, note};
use crate::places::Places;
use crate::registries::RegistryFlags;
use crate::trust::{self, SignFlags};

/// Build a target, pack its modules into layers and publish the package
///
/// A layer whose inputs were packed before is not packed again. The last line on standard output is the
/// package's reference.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The package's version [default: the git commit]
    #[arg(long, value_name = "V")]
    version: Option<Version>,
    /// The package's name [default: the target's name]
    #[arg(long, value_name = "NAME")]
    name: Option<PackageName>,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    /// Tags to move to this version, besides `latest`
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Version>,
    #[command(flatten)]
    actions: ActionFlags,
    #[command(flatten)]
    patches: PatchFlags,
    #[command(flatten)]
    sign: SignFlags,
    /// Compression level
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    #[command(flatten)]
    defaults: Defaults,
    /// Say what would be packed; run nothing of the workspace, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Say nothing but the reference
    #[arg(short, long)]
    quiet: bool,
}

/// What packing did, for whoever prints it.
pub(crate) struct PackedPackage {
    pub(crate) manifest: Manifest,
    pub(crate) layers: Vec<PackedLayer>,
    /// Time for building the outputs.
    pub(crate) build: Duration,
    /// Time for all that came after.
    pub(crate) elapsed: Duration,
}

impl PackedPackage {
    /// Number of layers that were packed, not reused.
    pub(crate) fn packed(&self) -> usize {
        self.layers.iter().filter(|layer| layer.packed).count()
    }

    /// Bytes of their images.
    pub(crate) fn packed_bytes(&self) -> u64 {
        self.layers.iter().filter(|layer| layer.packed).map(|layer| layer.layer.size).sum()
    }
}

/// One layer of it.
pub(crate) struct PackedLayer {
    pub(crate) layer: Layer,
    /// Packed now, or reused.
    pub(crate) packed: bool,
    pub(crate) elapsed: Duration,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let options = PackOptions {
        level: args.level,
        jobs: args.target.source.jobs.map(usize::from),
        mtime: super::image::source_date_epoch()?,
        ..PackOptions::default()
    };
    let Target { target, source } = &args.target;
    if args.dry_run {
        return dry_run(context, &source.plan(target)?, &options);
    }
    let built = source.build(target, &args.actions, &context.places)?;
    let keys = args.sign.unlock()?;
    let registry = registry::open_writable(&context.places.registry, &context.registries())?;
    let request =
        Request { args, built: &built, options: &options, registry: &*registry, keys: &keys };
    let (package, blobs) = request.pack()?;
    let file = |digest: &Digest| blobs.files.get(digest).cloned();
    args.patches.add(&*registry, &context.cache()?, &package.manifest, &file, args.quiet)?;
    if !args.quiet {
        built.of_this_machine()?.iter().for_each(note);
        package.layers.iter().for_each(|layer| note(layer.line()));
    }
    output::lines([format!("{}@{}", package.manifest.name, package.manifest.version).as_str()])?;
    Ok(ExitCode::SUCCESS)
}

/// Builds and packs `target` of a workspace into `registry` under the workspace's commit.
pub(crate) fn pack_workspace(
    workspace: &Path,
    target: &mica_graph::Label,
    registry: &str,
    places: &Places,
) -> anyhow::Result<PackedPackage> {
    let args = Args {
        target: Target {
            target: target.clone(),
            source: Source { workspace: Some(workspace.to_owned()), ..Source::default() },
        },
        version: None,
        name: None,
        registry: RegistryFlags::default(),
        tags: Vec::new(),
        actions: ActionFlags::default(),
        patches: PatchFlags::default(),
        sign: SignFlags::default(),
        level: None,
        defaults: Defaults::default(),
        dry_run: false,
        quiet: true,
    };
    let built = args.target.source.build(target, &args.actions, places)?;
    let registry = registry::open_writable(registry, &OpenOptions::default())?;
    let (options, registry) = (&PackOptions::default(), &*registry);
    Ok(Request { args: &args, built: &built, options, registry, keys: &[] }.pack()?.0)
}

struct Request<'a> {
    args: &'a Args,
    built: &'a Built,
    options: &'a PackOptions,
    registry: &'a dyn WriteRegistry,
    keys: &'a [SecretKey],
}

/// The images and chunk tables that were made for a package.
struct Blobs {
    files: HashMap<Digest, PathBuf>,
    /// Its lock, or its scratch folder, keeps them.
    _kept: Kept,
}

impl Request<'_> {
    fn pack(&self) -> anyhow::Result<(PackedPackage, Blobs)> {
        let started = Instant::now();
        self.registry.check_writable()?;
        let kept = Kept::open(&self.built.workspace)?;
        let planned = self.built.scan_layers(self.options, Some(&kept))?;
        let commit = git::commit_of(&self.built.workspace)?;
        let version = self.version(commit.as_ref(), &planned)?;
        // Images and chunk tables of the layers packed here; the registry has the others.
        let mut images = HashMap::new();
        let mut layers = Vec::with_capacity(planned.len());
        for layer in planned {
            let (packed, image) = self.layer(&layer, &version, &kept)?;
            if let Some(image) = image {
                let table = packed.layer.chunks.as_ref().map(|blob| blob.digest);
                images.extend(table.map(|digest| (digest, chunks_path(&image))));
                images.insert(packed.layer.digest, image);
            }
            layers.push(packed);
        }
        let layers_of_it = layers.iter().map(|packed| packed.layer.clone()).collect();
        let manifest = self.manifest(version, layers_of_it, commit.as_ref())?;
        self.push(&manifest, &images)?;
        let (build, elapsed) = (self.built.elapsed, started.elapsed());
        let package = PackedPackage { manifest, layers, build, elapsed };
        Ok((package, Blobs { files: images, _kept: kept }))
    }

    fn version(
        &self,
        commit: Option<&Commit>,
        layers: &[PlannedLayer<'_>],
    ) -> anyhow::Result<Version> {
        if let Some(version) = &self.args.version {
            return Ok(version.clone());
        }
        let mut inputs = Vec::new();
        for layer in layers {
            inputs.extend_from_slice(layer.scanned()?.inputs.as_bytes());
        }
        git::version_of(commit, &Digest::of(&inputs))
    }

    /// The layer the registry has for these inputs, or a new one and its image.
    fn layer(
        &self,
        planned: &PlannedLayer<'_>,
        version: &Version,
        kept: &Kept,
    ) -> anyhow::Result<(PackedLayer, Option<PathBuf>)> {
        let started = Instant::now();
        let (module, Scanned { scan, inputs }) = (planned.module, planned.scanned()?);
        if let Some(known) = self.registry.layer_by_inputs(inputs)? {
            // Another module may have had the same outputs: bytes and version are shared, the name is ours.
            let layer = Layer { module: module.label.clone(), root: module.root, ..known };
            return Ok((PackedLayer { layer, packed: false, elapsed: started.elapsed() }, None));
        }
        let (image, options) = kept.image(&module.label, self.options)?;
        let packed = pack_scan(scan, &image, &options)
            .with_context(|| format!("cannot pack the layer of {}", module.label))?;
        if !self.args.quiet {
            packed
                .notices
                .iter()
                .for_each(|notice| note(format_args!("{}: {notice}", module.label)));
        }
        let layer = Layer {
            module: module.label.clone(),
            version: version.clone(),
            digest: packed.digest,
            size: packed.size,
            inputs: *inputs,
            // Of a smaller image nobody fetches a part.
            chunks: (packed.size >= SMALLEST_DELTA).then(|| blob(&packed.chunks.encode())),
            root: module.root,
        };
        Ok((PackedLayer { layer, packed: true, elapsed: started.elapsed() }, Some(image)))
    }

    fn manifest(
        &self,
        version: Version,
        layers: Vec<Layer>,
        commit: Option<&Commit>,
    ) -> anyhow::Result<Manifest> {
        let target = &self.built.target;
        let module = self.built.graph.plan(target)?.target;
        let name = match &self.args.name {
            Some(name) => name.clone(),
            None => self
                .args
                .target
                .target
                .name()
                .parse()
                .context("give the package a name with --name")?,
        };
        let mut manifest = Manifest {
            schema: Manifest::SCHEMA,
            name,
            version,
            target: target.clone(),
            layers,
            process: module.process.clone(),
            labels: module.labels.clone(),
            limits: module.limits.clone(),
            service: module.service.clone(),
        };
        self.args.defaults.apply(&mut manifest)?;
        label(&mut manifest, commit);
        Ok(self.published(&manifest).unwrap_or(manifest))
    }

    /// A version that people gave may be packed again at another commit: what was published stays as it is.
    fn published(&self, manifest: &Manifest) -> Option<Manifest> {
        let selector = Some(self.args.version.clone()?);
        let package = PackageRef { name: manifest.name.clone(), selector };
        let resolved = self.registry.resolve(&package).ok()?;
        let published = self.registry.manifest(&resolved).ok()?;
        same_but_for_revision(&published, manifest).then_some(published)
    }

    fn push(&self, manifest: &Manifest, images: &HashMap<Digest, PathBuf>) -> anyhow::Result<()> {
        let (tags, signatures) = (self.args.tags.clone(), trust::sign(self.keys, manifest)?);
        let options = PushOptions { tags, signatures, ..PushOptions::default() };
        let file = |digest: &Digest| images.get(digest).cloned();
        let pushed = mica_fetcher::push(self.registry, manifest, &file, &options, &())?;
        if pushed.published == Published::Unchanged && !self.args.quiet {
            note("nothing changed: this version was published before");
        }
        Ok(())
    }
}

fn blob(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size: bytes.len() as u64 }
}

impl PackedLayer {
    pub(crate) fn line(&self) -> String {
        let done = if self.packed { "packed" } else { "reused" };
        let size = output::bytes(self.layer.size);
        let module = self.layer.module.to_string();
        format!("{done}  {size:>10}  {:>8}  {module}", output::duration(self.elapsed))
    }
}

/// Asks the registry, where there is one, and changes nothing in it.
fn dry_run(context: &Context, built: &Built, options: &PackOptions) -> anyhow::Result<ExitCode> {
    let layers = built.scan_layers(options, None)?;
    let registry = registry::open(&context.places.registry, &context.registries()).ok();
    for layer in &layers {
        let label = &layer.module.label;
        let Some(Scanned { scan, inputs }) = &layer.scanned else {
            note(format_args!("would build  {:>10}  {label}", "-"));
            continue;
        };
        let known = match &registry {
            Some(registry) => registry.layer_by_inputs(inputs)?,
            None => None,
        };
        let does = if known.is_some() { "would reuse" } else { "would pack " };
        note(format_args!("{does}  {:>10}  {label}", output::bytes(scan.bytes)));
    }
    Ok(ExitCode::SUCCESS)
}
