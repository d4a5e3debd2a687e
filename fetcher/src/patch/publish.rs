//! Patches into a registry.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use mica_graph::{Digest, Label, Layer, Manifest, PackageRef, Version};
use mica_squashfs::chunks::ChunkTable;

use super::{MakeError, PatchNote, make};
use crate::cache::{Cache, CacheError, LookupError};
use crate::delta;
use crate::file::{FileError, Named};
use crate::progress::{Event, Progress};
use crate::pull::{PullError, fetch_image};
use crate::registry::{Content, RegistryError, Resolved, WriteRegistry};

/// Against what patches are made.
#[derive(Clone, Debug, Default)]
pub struct PatchBases {
    /// These packages, of the cache or else of the registry.
    pub packages: Vec<PackageRef>,
    /// And the newest so many other versions in the registry.
    pub newest: usize,
}

/// A patch that was made.
#[derive(Clone, Debug)]
pub struct PushedPatch {
    /// Of which module's layer.
    pub module: Label,
    /// The version at which the old image was packed.
    pub old: Version,
    /// Bytes of the patch.
    pub size: u64,
    /// What a node would fetch without it.
    pub chunks: u64,
    /// Whether the registry has it now: one that saves less than a tenth is not sent.
    pub sent: bool,
}

/// Patches that were not made, or not published. The package itself is.
#[derive(Debug, thiserror::Error)]
pub enum PatchPushError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A package to make a patch from.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// An image that is not here could not be fetched.
    #[error("cannot fetch layer {layer}")]
    Fetch {
        /// Which.
        layer: String,
        /// The reason.
        #[source]
        source: Box<PullError>,
    },
    /// One layer's patch.
    #[error("cannot make a patch for layer {layer}")]
    Make {
        /// Which.
        layer: String,
        /// The reason.
        #[source]
        source: MakeError,
    },
    /// A file of the cache.
    #[error(transparent)]
    File(#[from] FileError),
}

impl PatchPushError {
    /// What a person could do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::Cache(error) => error.hint().map(str::to_owned),
            Self::Fetch { source, .. } => source.hint(),
            Self::Lookup(_) | Self::Make { .. } | Self::File(_) => None,
        }
    }
}

/// Makes patches for the layers of a package that was published, and publishes them too. `file` says where the blob of a
/// digest lies, if it is here.
pub fn push_patches(
    registry: &dyn WriteRegistry,
    cache: &Cache,
    manifest: &Manifest,
    file: &dyn Fn(&Digest) -> Option<PathBuf>,
    bases: &PatchBases,
    progress: &dyn Progress,
) -> Result<Vec<PushedPatch>, PatchPushError> {
    let publisher = Publisher { registry, cache, file, progress };
    let mut pushed = Vec::new();
    let mut done: Vec<(Digest, Digest)> = Vec::new();
    for base in publisher.manifests(manifest, bases)? {
        for layer in manifest.layers.iter().filter(|layer| layer.size >= delta::SMALLEST) {
            let same = base.layers.iter().filter(|old| old.module == layer.module);
            for old in same.filter(|old| old.digest != layer.digest) {
                if !done.contains(&(old.digest, layer.digest)) {
                    done.push((old.digest, layer.digest));
                    pushed.extend(publisher.layer(old, layer)?);
                }
            }
        }
    }
    Ok(pushed)
}

struct Publisher<'a> {
    registry: &'a dyn WriteRegistry,
    cache: &'a Cache,
    file: &'a dyn Fn(&Digest) -> Option<PathBuf>,
    progress: &'a dyn Progress,
}

impl Publisher<'_> {
    fn manifests(
        &self,
        of: &Manifest,
        bases: &PatchBases,
    ) -> Result<Vec<Manifest>, PatchPushError> {
        let mut manifests = Vec::new();
        for package in &bases.packages {
            manifests.push(match self.cache.lookup(package) {
                Ok(manifest) => manifest,
                Err(LookupError::Cache(error)) => return Err(error.into()),
                Err(_) => self.registry.manifest(&self.registry.resolve(package)?)?,
            });
        }
        if bases.newest > 0
            && let Some(index) = self.registry.index(&of.name)?
        {
            let others = index.versions.into_iter().filter(|entry| entry.version != of.version);
            for entry in others.take(bases.newest) {
                manifests.push(self.registry.manifest(&Resolved {
                    name: of.name.clone(),
                    version: entry.version,
                    manifest: entry.manifest,
                    tag: None,
                })?);
            }
        }
        Ok(manifests)
    }

    /// The patch from one image to another, unless there is one.
    fn layer(&self, old: &Layer, new: &Layer) -> Result<Option<PushedPatch>, PatchPushError> {
        if self.registry.patches(&new.digest)?.iter().any(|note| note.old == old.digest) {
            return Ok(None);
        }
        let _lease = self.cache.lease(&[old.digest, new.digest])?;
        let (old_path, new_path) = (self.image(old)?, self.image(new)?);
        for (path, layer) in [(&old_path, old), (&new_path, new)] {
            let file = std::fs::File::open(path).named("open", path)?;
            let (found, _) = crate::file::hash(&file, path)?;
            if found != layer.digest {
                let (path, expected) = (path.clone(), layer.digest);
                return Err(CacheError::NotThisBlob { path, expected, found }.into());
            }
        }
        self.progress.event(Event::PatchStarted { of: new });
        let mut out = self.cache.scratch()?;
        let failed = |source| PatchPushError::Make { layer: name(new), source };
        let made = self.make(&old_path, old.digest, &new_path, &mut out.file).map_err(failed)?;
        let chunks = self.by_chunks(old, new);
        // Applying takes time: that has to be worth it.
        let sent = made.patch.size < chunks - chunks / 10;
        if sent {
            out.file.flush().named("write", &out.path)?;
            self.registry.put_blob(&made.patch, Content::File(&out.path))?;
            let (patch, index, library) = (made.patch.clone(), made.index, made.library);
            let note = PatchNote { old: old.digest, patch, index, library };
            self.registry.add_patches(&new.digest, &[note])?;
        }
        let (module, old) = (new.module.clone(), old.version.clone());
        Ok(Some(PushedPatch { module, old, size: made.patch.size, chunks, sent }))
    }

    fn make(
        &self,
        old: &Path,
        old_digest: Digest,
        new: &Path,
        out: &mut std::fs::File,
    ) -> Result<super::Made, MakeError> {
        let mut scratch =
            self.cache.nameless().map_err(|e| MakeError::Write(std::io::Error::other(e)))?;
        let (old, new) = (make::open(old, KEPT)?, make::open(new, KEPT)?);
        let made = |done, total| self.progress.event(Event::PatchMade { done, total });
        make::make(&old, old_digest, &new, &mut scratch, out, &made)
    }

    /// The file of an image, fetched if it is not here.
    fn image(&self, layer: &Layer) -> Result<PathBuf, PatchPushError> {
        if let Some(path) = (self.file)(&layer.digest) {
            return Ok(path);
        }
        if let Some(path) = self.cache.image(layer)? {
            return Ok(path);
        }
        let blob = layer.image();
        fetch_image(self.registry, self.cache, &blob)
            .map_err(|e| PatchPushError::Fetch { layer: name(layer), source: Box::new(e) })?;
        let missing = || CacheError::Missing { what: format!("layer {}", name(layer)) };
        Ok(self.cache.image(layer)?.ok_or_else(missing)?)
    }

    /// What a node with the old image would fetch by chunks.
    fn by_chunks(&self, old: &Layer, new: &Layer) -> u64 {
        let table = |layer: &Layer| {
            let blob = layer.chunks.as_ref()?;
            match (self.file)(&blob.digest) {
                Some(path) => {
                    let bytes = crate::file::read_given(&path, blob.size).ok()??;
                    ChunkTable::parse(&bytes).ok()
                }
                None => delta::table(self.registry, self.cache, blob, layer.size),
            }
        };
        match (table(old), table(new)) {
            (Some(old), Some(new)) => delta::missing(&old, &new),
            _ => new.size,
        }
    }
}

/// What is kept of the contents of each image: pieces next to each other refer to the same.
const KEPT: usize = 12 << 20;

fn name(layer: &Layer) -> String {
    format!("{} ({})", layer.module, layer.digest.short())
}
