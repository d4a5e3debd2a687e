//! From files into a registry: only what it lacks; the version becomes visible last, when all of it is there.

use std::collections::HashSet;
use std::path::PathBuf;

use mica_graph::{Blob, Digest, Layer, Manifest, Version};

use crate::parallel;
use crate::progress::{Event, Progress};
use crate::registry::{AddError, Content, Publication, Published, RegistryError, WriteRegistry};
use crate::trust::Signatures;

/// How to push.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Tags to move to the new version, besides `latest`.
    pub tags: Vec<Version>,
    /// Signatures of the manifest, put beside it.
    pub signatures: Signatures,
    /// Images sent at a time.
    pub parallel: usize,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { tags: Vec::new(), signatures: Signatures::default(), parallel: 4 }
    }
}

/// What a push did.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The manifest's digest.
    pub digest: Digest,
    /// Whether the version is new.
    pub published: Published,
    /// For each layer, in the manifest's order: whether its image was sent. Layers that share one count once.
    pub sent: Vec<bool>,
    /// Bytes of images that were sent.
    pub bytes: u64,
}

/// A push that failed. The version is not visible; what was sent need not be sent again.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// One image.
    #[error("cannot push {what}")]
    Blob {
        /// The layer, by name and digest.
        what: String,
        /// The reason.
        #[source]
        source: Box<RegistryError>,
    },
    /// Neither the registry nor the caller has an image.
    #[error("{what} is neither in {registry} nor here")]
    NoFile {
        /// The layer, by name and digest.
        what: String,
        /// Where it was to go.
        registry: String,
    },
}

impl PushError {
    /// What a person could do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::Blob { source, .. } => source.hint(),
            Self::NoFile { .. } => Some("pack the target again".to_owned()),
        }
    }
}

/// Publishes a package. `file` says where the blob of a digest lies; it is only asked for what the registry lacks.
pub fn push(
    registry: &dyn WriteRegistry,
    manifest: &Manifest,
    file: &(dyn Fn(&Digest) -> Option<PathBuf> + Sync),
    options: &PushOptions,
    progress: &dyn Progress,
) -> Result<Pushed, PushError> {
    let json = manifest.to_json();
    let blob = Blob { digest: Digest::of(&json), size: json.len() as u64 };
    check_version(registry, manifest, &blob)?;
    registry.check_writable()?;
    registry.begin(manifest)?;
    let mut seen = HashSet::new();
    let layers: Vec<usize> =
        (0..manifest.layers.len()).filter(|i| seen.insert(manifest.layers[*i].digest)).collect();
    let bytes = layers.iter().map(|i| manifest.layers[*i].size).sum();
    progress.event(Event::Started { manifest, layers: &layers, bytes });
    let send = |i: &usize| send_layer(registry, *i, &manifest.layers[*i], file, progress);
    let mut pushed = Pushed {
        digest: blob.digest,
        published: Published::Unchanged,
        sent: vec![false; manifest.layers.len()],
        bytes: 0,
    };
    for (i, sent) in layers.iter().zip(parallel::map(options.parallel, &layers, send)) {
        pushed.sent[*i] = sent?;
        pushed.bytes += if pushed.sent[*i] { manifest.layers[*i].size } else { 0 };
    }
    registry.put_blob(&blob, Content::Bytes(&json))?;
    // First: nobody then sees the version without them.
    if !options.signatures.is_empty() {
        registry.add_signatures(&blob.digest, &options.signatures)?;
    }
    pushed.published = registry.publish(&Publication {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        manifest: blob,
        tags: options.tags.clone(),
    })?;
    // Only those that are new: the others were noted when they were. One that a push killed half-way sent is caught by
    // its version.
    for (layer, sent) in manifest.layers.iter().zip(&pushed.sent) {
        if *sent || layer.version == manifest.version {
            registry.remember(layer)?;
        }
    }
    Ok(pushed)
}

/// Says early, before anything is sent, that the version is taken. The registry says it again when it counts.
fn check_version(
    registry: &dyn WriteRegistry,
    manifest: &Manifest,
    blob: &Blob,
) -> Result<(), RegistryError> {
    match registry.entry(&manifest.name, &manifest.version)? {
        Some(entry) if entry.manifest.digest != blob.digest => Err(RegistryError::Add {
            registry: registry.address().to_owned(),
            source: AddError::Taken {
                package: manifest.name.clone(),
                version: manifest.version.clone(),
                held: entry.manifest.digest,
            },
        }),
        _ => Ok(()),
    }
}

fn send_layer(
    registry: &dyn WriteRegistry,
    number: usize,
    layer: &Layer,
    file: &(dyn Fn(&Digest) -> Option<PathBuf> + Sync),
    progress: &dyn Progress,
) -> Result<bool, PushError> {
    let what = || format!("layer {} ({})", layer.module, layer.digest.short());
    let image = layer.image();
    let mut sent = false;
    for blob in [Some(&image), layer.chunks.as_ref()].into_iter().flatten() {
        let failed = |source| PushError::Blob { what: what(), source: Box::new(source) };
        if registry.has_blob(blob).map_err(failed)? {
            continue;
        }
        let registry_name = || registry.address().to_owned();
        let path = file(&blob.digest)
            .ok_or_else(|| PushError::NoFile { what: what(), registry: registry_name() })?;
        progress.event(Event::LayerStarted { layer: number, of: layer, resumed: 0 });
        registry.put_blob(blob, Content::File(&path)).map_err(failed)?;
        progress.event(Event::Bytes { layer: number, bytes: blob.size });
        sent |= blob.digest == layer.digest;
    }
    progress.event(Event::LayerDone { layer: number });
    Ok(sent)
}
