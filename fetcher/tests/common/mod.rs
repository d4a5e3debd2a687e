//! Packages to publish, and a registry server that can be told to misbehave.
#![allow(clippy::unwrap_used, reason = "only tests use it")]
#![allow(dead_code, unreachable_pub, reason = "each test file is a crate that uses a part of it")]

use std::collections::HashMap;
use std::path::PathBuf;

use mica_fetcher::registry::{OpenOptions, Registry, WriteRegistry, open, open_writable};
use mica_fetcher::{Cache, PushOptions, Pushed, Retry};
use mica_graph::{Digest, Layer, Manifest};

pub mod oci;
pub mod patched;
pub mod proxy;
pub mod s3;

/// Some bytes that do not compress or repeat; the same for the same seed.
pub fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A scratch folder with images to publish in it.
pub struct Bench {
    pub folder: tempfile::TempDir,
    images: HashMap<Digest, PathBuf>,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        Self { folder, images: HashMap::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn layer(&mut self, name: &str, version: &str, content: &[u8]) -> Layer {
        let digest = Digest::of(content);
        let path = self.path("images").join(digest.hex());
        std::fs::write(&path, content).unwrap();
        self.images.insert(digest, path);
        Layer {
            module: format!("//lib:{name}").parse().unwrap(),
            version: version.parse().unwrap(),
            digest,
            size: content.len() as u64,
            inputs: Digest::of(&[b"inputs of ", content].concat()),
            chunks: None,
            root: false,
        }
    }

    /// A layer with a chunk table; each piece of its content is a chunk.
    pub fn chunked(&mut self, name: &str, version: &str, pieces: &[Vec<u8>]) -> Layer {
        let mut table = mica_squashfs::chunks::ChunkTable::default();
        for piece in pieces {
            table.push(piece.len() as u32, *Digest::of(piece).as_bytes());
        }
        let table = table.encode();
        let chunks = self.layer("table", version, &table);
        let chunks = Some(mica_graph::Blob { digest: chunks.digest, size: chunks.size });
        Layer { chunks, ..self.layer(name, version, &pieces.concat()) }
    }

    /// A package whose layers have these names and contents.
    pub fn package(&mut self, name: &str, version: &str, layers: &[(&str, Vec<u8>)]) -> Manifest {
        let layers = layers.iter().map(|(n, content)| self.layer(n, version, content)).collect();
        Manifest {
            schema: Manifest::SCHEMA,
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
            target: format!("//app:{name}").parse().unwrap(),
            layers,
            process: mica_graph::Process::default(),
            labels: Default::default(),
            limits: mica_graph::Limits::default(),
            service: Default::default(),
        }
    }

    pub fn image(&self, digest: &Digest) -> Option<PathBuf> {
        self.images.get(digest).cloned()
    }

    pub fn push(&self, registry: &dyn WriteRegistry, manifest: &Manifest) -> Pushed {
        let options = PushOptions::default();
        mica_fetcher::push(registry, manifest, &|d| self.image(d), &options, &()).unwrap()
    }

    /// The registry in the folder `registry`.
    pub fn registry(&self) -> Box<dyn WriteRegistry> {
        open_writable(self.path("registry").to_str().unwrap(), &OpenOptions::default()).unwrap()
    }

    pub fn cache(&self) -> Cache {
        Cache::open(self.path("cache")).unwrap()
    }

    /// Whether every image of the package is in the cache, byte for byte.
    pub fn assert_cached(&self, cache: &Cache, manifest: &Manifest) {
        for (layer, path) in manifest.layers.iter().zip(cache.stack(manifest).unwrap()) {
            assert_eq!(Digest::of(&std::fs::read(&path).unwrap()), layer.digest);
        }
    }
}

/// Short time limits, so that tests of faults are quick.
pub fn hasty() -> OpenOptions {
    let mut options = OpenOptions::default();
    options.http.idle_timeout = std::time::Duration::from_millis(300);
    options.http.retry = hasty_retry();
    options
}

pub fn hasty_retry() -> Retry {
    let ms = std::time::Duration::from_millis;
    Retry { attempts: 4, first: ms(5), longest: ms(50) }
}

pub fn http(url: &str) -> Box<dyn Registry> {
    open(url, &hasty()).unwrap()
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
