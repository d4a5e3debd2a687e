//! The manifest: the document that lists a package's stack.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, JsonBounds, Label, PackageName, Service, TooMuchJson, Version};

/// A package at a version: its layers in overlay order and how to start it.
///
/// Its canonical form is [`Manifest::to_json`]; the BLAKE3 of those bytes is its digest.
/// A reader refuses a `schema` it does not know and keeps nothing of unknown fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this document's format.
    pub schema: u32,
    /// The package.
    pub name: PackageName,
    /// Its version.
    pub version: Version,
    /// The root module.
    pub target: Label,
    /// Topmost (the root module's) first: dependents above their dependencies.
    pub layers: Vec<Layer>,
    /// What `mica run` starts when it is not told otherwise.
    #[serde(default, skip_serializing_if = "Process::is_empty")]
    pub process: Process,
    /// Free-form notes, named as in `org.opencontainers.image.*`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Limits the job gets when `mica run` is not told otherwise.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// What a job of it has when `mica run` is not told otherwise.
    #[serde(default, skip_serializing_if = "Service::is_empty")]
    pub service: Service,
}

/// One layer of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The module whose outputs it holds (the topmost one, if it holds several).
    pub module: Label,
    /// The version at which these bytes were first packed.
    pub version: Version,
    /// BLAKE3 of the image file.
    pub digest: Digest,
    /// Length of the image file, in bytes.
    pub size: u64,
    /// Digest of what was packed (paths, modes, content) and of the packing's parameters: equal inputs need no packing.
    pub inputs: Digest,
    /// The chunk table that lies beside the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<Blob>,
    /// True for a base distribution: the stack then becomes `/`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
}

impl Layer {
    /// Its image.
    pub fn image(&self) -> Blob {
        Blob { digest: self.digest, size: self.size }
    }
}

/// Some bytes in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// How a package is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Program and first arguments; a relative program is looked up in the stack.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments, replaced by those given to `mica run`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory, relative to the stack unless it starts with `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `uid[:gid]`, or names from the image's own passwd and group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Resource limits; what is `None` is not limited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Processors, in fractions of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
}

impl Process {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Limits {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A document that is not a manifest this program can use.
#[derive(Debug, thiserror::Error)]
pub enum ParseManifestError {
    /// Not JSON, or not of a manifest's shape.
    #[error("not a manifest")]
    Json(#[from] serde_json::Error),
    /// More than any package has.
    #[error("the manifest is far too large")]
    TooMuch(#[from] TooMuchJson),
    /// Written by a later mica.
    #[error("the manifest has schema {0}; this mica reads schema {current}", current = Manifest::SCHEMA)]
    Schema(u32),
    /// A stack of nothing.
    #[error("the manifest lists no layers")]
    NoLayers,
}

impl Manifest {
    /// The schema this program writes.
    pub const SCHEMA: u32 = 1;

    /// The canonical bytes: compact JSON in the order of the fields, maps sorted.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self)
            .expect("a manifest holds only strings, numbers and maps of strings")
    }

    /// What a manifest may hold: some 8,000 layers.
    pub const BOUNDS: JsonBounds = JsonBounds::new(4 << 20, 100_000);

    /// Reads a manifest, of no more than [`Manifest::BOUNDS`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, ParseManifestError> {
        #[derive(Deserialize)]
        struct Probe {
            schema: u32,
        }
        Self::BOUNDS.check(bytes)?;
        let Probe { schema } = serde_json::from_slice(bytes)?;
        if schema != Self::SCHEMA {
            return Err(ParseManifestError::Schema(schema));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.layers.is_empty() {
            return Err(ParseManifestError::NoLayers);
        }
        Ok(manifest)
    }

    /// The manifest's own digest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_json())
    }

    /// Whether the stack becomes the job's `/`.
    pub fn has_root(&self) -> bool {
        self.layers.iter().any(|layer| layer.root)
    }

    /// Bytes of all images.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add)
    }
}
