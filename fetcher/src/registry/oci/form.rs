//! The documents by which a package looks like a container image: one manifest that serves everybody.
//!
//! ```text
//! image manifest   config      the image's configuration: how to start it, `rootfs.diff_ids` (the layers as tars), and
//!                              under `mica` the package's own manifest, byte for byte
//!                  layers      `application/vnd.mica.layer.v1.squashfs`, the base first; annotated with their BLAKE3
//!                  annotations package, version, digest and size of the package's manifest
//! companion        subject     the image manifest; found by the tag `sha256-<its digest>` (OCI 1.1, referrers tag schema)
//!                  layers      chunk tables, annotated with their BLAKE3
//! signatures       subject     the image manifest, likewise
//!                  annotations the signatures of the package's manifest, as in a registry of files
//! ```
//!
//! containerd runs such an image if it is told what turns squashfs into tar (`mica image to-tar`); skopeo copies it as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use mica_graph::{Blob, Digest, HealthCheck, JsonBounds, Layer, Manifest, PackageName, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::{Entry, ParseIndexError};
use crate::patch::{PatchNote, PatchNotes};

pub(crate) const LAYER_TYPE: &str = "application/vnd.mica.layer.v1.squashfs";
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
pub(crate) const COMPANION_TYPE: &str = "application/vnd.mica.companion.v1";
pub(crate) const SIGNATURES_TYPE: &str = "application/vnd.mica.signatures.v1";
const EXTRA_TYPE: &str = "application/octet-stream";
/// The content of an empty configuration, as the OCI specification has it.
pub(crate) const EMPTY: &[u8] = b"{}";

const PACKAGE: &str = "dev.mica.package";
const VERSION: &str = "dev.mica.version";
const DIGEST: &str = "dev.mica.digest";
const SIZE: &str = "dev.mica.size";
const TIME: &str = "dev.mica.time";
const LAYER: &str = "dev.mica.layer";
const PATCHES: &str = "dev.mica.patches";
pub(crate) const SIGNATURES: &str = "dev.mica.signatures";
const DIFF_ID: &str = "dev.mica.diff-id";

/// Content named by its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An image manifest, as far as we need it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OciManifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// An index of manifests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OciIndex {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

/// What a file is called among OCI registries, besides its BLAKE3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `sha256:…` of its bytes.
    pub(crate) sha256: String,
    pub(crate) size: u64,
    /// Of an image: `sha256:…` of its content as a tar.
    pub(crate) diff_id: Option<String>,
}

impl Facts {
    fn descriptor(&self, media_type: &str, digest: &Digest) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: self.sha256.clone(),
            size: self.size,
            artifact_type: None,
            annotations: BTreeMap::from([(DIGEST.to_owned(), digest.to_string())]),
        }
    }
}

impl Descriptor {
    /// Names some bytes.
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: sha256(bytes),
            size: bytes.len() as u64,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The BLAKE3 it is annotated with.
    pub(crate) fn blake3(&self) -> Option<Digest> {
        self.annotations.get(DIGEST)?.parse().ok()
    }
}

/// `sha256:` and the hash of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    named(sha2::Sha256::digest(bytes).as_slice())
}

pub(crate) fn named(hash: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in hash {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What a manifest or an index may hold.
const BOUNDS: JsonBounds = JsonBounds::new(4 << 20, 60_000);
/// What a configuration may hold, a package's manifest as text among it.
pub(crate) const CONFIG: JsonBounds = JsonBounds::new(10 << 20, 100_000);

/// Reads a manifest, an index, or a page of a list, unless it is far too large.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, ParseIndexError> {
    BOUNDS.check(bytes)?;
    Ok(serde_json::from_slice(bytes)?)
}

/// A package as an image: configuration and manifest, ready to be stored.
pub(crate) struct Form {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

/// `facts` are those of the layers, in the package's order (topmost first).
pub(crate) fn image(package: &Manifest, facts: &[Facts], time: Duration) -> Form {
    let json = package.to_json();
    let created = timestamp(time.as_secs());
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": created,
        "config": process(package),
        "rootfs": {
            "type": "layers",
            "diff_ids": facts.iter().rev().map(|f| f.diff_id.as_deref().unwrap_or_default()).collect::<Vec<_>>(),
        },
        "history": package.layers.iter().rev().map(|layer| json!({
            "created": created,
            "created_by": format!("mica {} at {}", layer.module, layer.version),
        })).collect::<Vec<_>>(),
        "mica": String::from_utf8_lossy(&json),
    });
    let config = serde_json::to_vec(&config).expect("JSON values");
    let layers = package.layers.iter().zip(facts).rev().map(|(layer, facts)| {
        let mut layer_descriptor = facts.descriptor(LAYER_TYPE, &layer.digest);
        let title = ("org.opencontainers.image.title".to_owned(), layer.module.to_string());
        layer_descriptor.annotations.extend([title]);
        layer_descriptor
    });
    let mut annotations = package.labels.clone();
    annotations.extend(
        [
            (PACKAGE, package.name.to_string()),
            (VERSION, package.version.to_string()),
            (DIGEST, Digest::of(&json).to_string()),
            (SIZE, json.len().to_string()),
            (TIME, time.as_nanos().to_string()),
            ("org.opencontainers.image.created", created),
            ("org.opencontainers.image.version", package.version.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    let manifest = OciManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: None,
        config: Descriptor::of(CONFIG_TYPE, &config),
        layers: layers.collect(),
        subject: None,
        annotations,
    };
    Form { config, manifest: serde_json::to_vec(&manifest).expect("strings and numbers") }
}

/// The configuration of a package whose layers are plain tars, bottom first.
pub(crate) fn plain_config<'a>(
    package: &Manifest,
    diff_ids: impl Iterator<Item = &'a str>,
) -> Vec<u8> {
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": process(package),
        "rootfs": { "type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>() },
    });
    config.to_string().into_bytes()
}

/// How stock runtimes start the package: in the tree of its layers.
fn process(package: &Manifest) -> Value {
    let process = &package.process;
    let mut entrypoint = process.entrypoint.clone();
    if let Some(program) = entrypoint.first_mut()
        && program.contains('/')
        && !program.starts_with('/')
    {
        program.insert(0, '/');
    }
    let mut env: Vec<String> = process.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if !process.env.contains_key("PATH") {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    let mut config = json!({ "Env": env });
    let fields = config.as_object_mut().expect("an object");
    let mut set = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    if !entrypoint.is_empty() {
        set("Entrypoint", json!(entrypoint));
    }
    if !process.cmd.is_empty() {
        set("Cmd", json!(process.cmd));
    }
    if let Some(dir) = &process.workdir {
        let slash = if dir.starts_with('/') { "" } else { "/" };
        set("WorkingDir", json!(format!("{slash}{dir}")));
    }
    if let Some(user) = &process.user {
        set("User", json!(user));
    }
    let service = &package.service;
    if !service.ports.is_empty() {
        let ports = service.ports.iter().map(|port| (port.to_string(), json!({})));
        set("ExposedPorts", Value::Object(ports.collect()));
    }
    if let Some(check) = &service.health {
        set("Healthcheck", healthcheck(check));
    }
    if let Some(signal) = &service.stop_signal {
        let upper = signal.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = bare.bytes().all(|byte| byte.is_ascii_digit());
        set("StopSignal", json!(format!("{}{bare}", if number { "" } else { "SIG" })));
    }
    if !package.labels.is_empty() {
        set("Labels", json!(package.labels));
    }
    config
}

/// As docker keeps it: times in nanoseconds, what is not set left out.
fn healthcheck(check: &HealthCheck) -> Value {
    let command = std::iter::once("CMD").chain(check.command.iter().map(String::as_str));
    let mut fields = json!({ "Test": command.collect::<Vec<_>>() });
    let times = [
        ("Interval", check.interval_ms),
        ("Timeout", check.timeout_ms),
        ("StartPeriod", check.start_period_ms),
    ];
    for (name, ms) in times {
        if let Some(ms) = ms {
            fields[name] = json!(ms.saturating_mul(1_000_000));
        }
    }
    if let Some(retries) = check.retries {
        fields["Retries"] = json!(retries);
    }
    fields
}

/// Go's word for this machine's processor, which OCI uses.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn timestamp(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.unwrap_or_default().to_string()
}

/// Tables that belong to an image manifest.
pub(crate) fn companion(subject: &Descriptor, extras: &[(Digest, Facts)]) -> Vec<u8> {
    let mut layers: Vec<Descriptor> =
        extras.iter().map(|(digest, facts)| facts.descriptor(EXTRA_TYPE, digest)).collect();
    if layers.is_empty() {
        layers.push(Descriptor::of(EMPTY_TYPE, EMPTY));
    }
    let manifest = OciManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: Some(COMPANION_TYPE.to_owned()),
        config: Descriptor::of(EMPTY_TYPE, EMPTY),
        layers,
        subject: Some(subject.clone()),
        annotations: BTreeMap::new(),
    };
    serde_json::to_vec(&manifest).expect("strings and numbers")
}

/// The signatures of an image's package.
pub(crate) fn signatures(subject: &Descriptor, text: String) -> Vec<u8> {
    let manifest = OciManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: Some(SIGNATURES_TYPE.to_owned()),
        config: Descriptor::of(EMPTY_TYPE, EMPTY),
        layers: vec![Descriptor::of(EMPTY_TYPE, EMPTY)],
        subject: Some(subject.clone()),
        annotations: BTreeMap::from([(SIGNATURES.to_owned(), text)]),
    };
    serde_json::to_vec(&manifest).expect("strings and numbers")
}

/// The index that the referrers' tag names, with this one of ours in the place of an older one of its type.
pub(crate) fn referrers(old: Option<OciIndex>, kind: &str, new: &[u8]) -> Vec<u8> {
    let mut manifests = old.map(|index| index.manifests).unwrap_or_default();
    manifests.retain(|other| other.artifact_type.as_deref() != Some(kind));
    let mut ours = Descriptor::of(MANIFEST_TYPE, new);
    ours.artifact_type = Some(kind.to_owned());
    manifests.push(ours);
    index(manifests)
}

/// An index of these manifests.
pub(crate) fn index(manifests: Vec<Descriptor>) -> Vec<u8> {
    let index = OciIndex { schema_version: 2, media_type: INDEX_TYPE.to_owned(), manifests };
    serde_json::to_vec(&index).expect("strings and numbers")
}

/// Those of a type of ours among the referrers.
pub(crate) fn of_type<'a>(
    index: &'a OciIndex,
    kind: &'a str,
) -> impl Iterator<Item = &'a Descriptor> {
    index.manifests.iter().filter(move |m| m.artifact_type.as_deref() == Some(kind))
}

/// The note of which layer was packed from its inputs, with its image and chunk table.
pub(crate) fn note(layer: &Layer, image: &Facts, table: Option<&Facts>) -> Vec<u8> {
    let mut layers = vec![image.descriptor(LAYER_TYPE, &layer.digest)];
    if let Some(diff_id) = &image.diff_id {
        layers[0].annotations.insert(DIFF_ID.to_owned(), diff_id.clone());
    }
    let table = layer.chunks.as_ref().zip(table);
    layers.extend(table.map(|(blob, facts)| facts.descriptor(EXTRA_TYPE, &blob.digest)));
    let json = serde_json::to_string(layer).expect("a layer holds only strings and numbers");
    let manifest = OciManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: Some("application/vnd.mica.layer.v1".to_owned()),
        config: Descriptor::of(EMPTY_TYPE, EMPTY),
        layers,
        subject: None,
        annotations: BTreeMap::from([(LAYER.to_owned(), json)]),
    };
    serde_json::to_vec(&manifest).expect("strings and numbers")
}

/// The note of the patches of an image, with their blobs.
pub(crate) fn patches_note(notes: &PatchNotes, facts: &[Facts]) -> Vec<u8> {
    let blobs = notes.patches.iter().zip(facts);
    let json = String::from_utf8_lossy(&notes.to_json()).into_owned();
    let manifest = OciManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: Some("application/vnd.mica.patches.v1".to_owned()),
        config: Descriptor::of(EMPTY_TYPE, EMPTY),
        layers: blobs.map(|(note, f)| f.descriptor(EXTRA_TYPE, &note.patch.digest)).collect(),
        subject: None,
        annotations: BTreeMap::from([(PATCHES.to_owned(), json)]),
    };
    serde_json::to_vec(&manifest).expect("strings and numbers")
}

impl OciManifest {
    /// The package and the entry of an index that it stands for; `None` if it is somebody else's image.
    pub(crate) fn entry(&self) -> Option<(PackageName, Entry)> {
        let get = |key: &str| self.annotations.get(key);
        let digest = get(DIGEST)?.parse().ok()?;
        let manifest = Blob { digest, size: get(SIZE)?.parse().ok()? };
        let version: Version = get(VERSION)?.parse().ok()?;
        let time = self.time().as_secs();
        Some((get(PACKAGE)?.parse().ok()?, Entry { version, manifest, time }))
    }

    /// When it was made.
    pub(crate) fn time(&self) -> Duration {
        let nanoseconds = self.annotations.get(TIME).and_then(|time| time.parse().ok());
        Duration::from_nanos(nanoseconds.unwrap_or(0))
    }

    /// The layer that a note is about.
    pub(crate) fn noted_layer(&self) -> Option<Layer> {
        serde_json::from_str(self.annotations.get(LAYER)?).ok()
    }

    /// The patches that a note is about.
    pub(crate) fn noted_patches(&self, image: &Digest) -> Option<Vec<PatchNote>> {
        Some(PatchNotes::read(self.annotations.get(PATCHES)?.as_bytes(), image))
    }

    /// What it says of its layers, by BLAKE3.
    pub(crate) fn facts(&self) -> impl Iterator<Item = (Digest, Facts)> {
        self.layers.iter().filter_map(|layer| {
            let diff_id = layer.annotations.get(DIFF_ID).cloned();
            let facts = Facts { sha256: layer.digest.clone(), size: layer.size, diff_id };
            Some((layer.blake3()?, facts))
        })
    }
}

/// The part of an image's configuration that is ours, and what its layers are as tars.
pub(crate) fn read_config(bytes: &[u8]) -> Result<(Vec<u8>, Vec<String>), ParseIndexError> {
    #[derive(Deserialize)]
    struct Config {
        mica: String,
        rootfs: Rootfs,
    }
    #[derive(Deserialize)]
    struct Rootfs {
        diff_ids: Vec<String>,
    }
    CONFIG.check(bytes)?;
    let config: Config = serde_json::from_slice(bytes)?;
    Ok((config.mica.into_bytes(), config.rootfs.diff_ids))
}
