//! Archives of containers, unpacked: which layers they hold, and what they say of jobs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use mica_fetcher::ImageDefaults;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

/// A container's image in a folder.
pub(super) struct Container {
    /// Tars in the folder, bottom first, as they are compressed: [`open`] opens them.
    pub(super) layers: Vec<PathBuf>,
    pub(super) defaults: ImageDefaults,
    /// What it is called there: `NAME`, `NAME:TAG` or `:TAG`.
    pub(super) name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: PathBuf,
    repo_tags: Option<Vec<String>>,
    layers: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Container {
    /// `None` if the folder is none, but a tree of files.
    pub(super) fn find(dir: &Path) -> anyhow::Result<Option<Self>> {
        if dir.join("oci-layout").is_file() {
            return oci(dir).context("cannot use the OCI layout").map(Some);
        }
        // Of a tree of files, anything may have this name.
        let Ok(text) = read(dir, Path::new("manifest.json")) else { return Ok(None) };
        match serde_json::from_slice::<Vec<Saved>>(&text) {
            Ok(saved) => docker(dir, saved).context("cannot use the archive of docker").map(Some),
            Err(_) => Ok(None),
        }
    }
}

fn docker(dir: &Path, saved: Vec<Saved>) -> anyhow::Result<Container> {
    let [image] = &saved[..] else {
        bail!("it holds {} images; save one at a time", saved.len());
    };
    let layers = image.layers.clone();
    let defaults = ImageDefaults::parse(&read(dir, &image.config)?)?;
    let name = image.repo_tags.as_deref().and_then(|tags| tags.first()).cloned();
    Ok(Container { layers, defaults, name })
}

fn oci(dir: &Path) -> anyhow::Result<Container> {
    let mut index: Index = serde_json::from_slice(&read(dir, Path::new("index.json"))?)?;
    // An index may lead to another one, of an image for several kinds of machine.
    for _ in 0..3 {
        let chosen = choose(&index.manifests)?;
        let bytes = read(dir, &blob(&chosen.digest)?)?;
        if chosen.media_type.contains("index") || chosen.media_type.contains("manifest.list") {
            index = serde_json::from_slice(&bytes)?;
            continue;
        }
        let image: ImageManifest = serde_json::from_slice(&bytes)?;
        if image.layers.iter().any(|layer| layer.media_type.contains("mica")) {
            bail!("it holds packages of mica's; `mica load` takes them");
        }
        let layer = |layer: &Descriptor| blob(&layer.digest);
        let layers = image.layers.iter().map(layer).collect::<anyhow::Result<_>>()?;
        let defaults = ImageDefaults::parse(&read(dir, &blob(&image.config.digest)?)?)?;
        let name = chosen.annotations.get("org.opencontainers.image.ref.name");
        // A word by itself is a tag.
        let name = name
            .map(|name| if name.contains([':', '/']) { name.clone() } else { format!(":{name}") });
        return Ok(Container { layers, defaults, name });
    }
    bail!("its index leads to no image")
}

/// The only image, or the one for this kind of machine.
fn choose(manifests: &[Descriptor]) -> anyhow::Result<&Descriptor> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let ours = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_some_and(|platform| platform.os == "linux" && platform.architecture == arch)
    };
    match manifests {
        [only] => Ok(only),
        many => many.iter().find(ours).with_context(|| {
            format!("it holds {} images, and none is for linux on {arch}", many.len())
        }),
    }
}

fn blob(digest: &str) -> anyhow::Result<PathBuf> {
    let (kind, hex) = digest.split_once(':').with_context(|| format!("{digest} is no digest"))?;
    Ok(Path::new("blobs").join(kind).join(hex))
}

/// A file of the folder; a link in it leads to the folder, not to the host.
pub(super) fn open(dir: &Path, path: &Path) -> anyhow::Result<File> {
    let root = File::open(dir)?;
    let opened =
        mica_launcher::open_in(root, path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
    let file = File::from(opened.with_context(|| format!("cannot open {}", path.display()))?);
    if !file.metadata()?.is_file() {
        bail!("{} is no file", path.display());
    }
    Ok(file)
}

/// The largest document, in bytes; in memory it may be some twenty times as large.
const LARGEST: u64 = 2 << 20;

fn read(dir: &Path, path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(dir, path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        bail!("{} has more than {LARGEST} bytes", path.display());
    }
    Ok(bytes)
}

/// How far back a compressed layer may reach, which is what decompressing it takes of memory: what every other tool takes, too.
const WINDOW: u32 = 27;

/// The tar in a file, whichever of the usual ways it is compressed.
pub(super) fn decompressed<'a>(from: impl Read + 'a) -> anyhow::Result<Box<dyn Read + 'a>> {
    let mut from = BufReader::with_capacity(1 << 18, from);
    let start = from.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(from)?;
            decoder.window_log_max(WINDOW)?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(from, true, 2 << (WINDOW - 10)))
        }
        [b'B', b'Z', b'h', ..] => bail!("it is compressed by bzip2, which is not supported"),
        _ => Box::new(from),
    })
}
