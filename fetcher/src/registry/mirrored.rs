//! A registry with mirrors: bytes come from whichever works, names from the origin.
//!
//! Mirrors are asked in their order, then the origin. One that fails is left alone for a while, in the middle of a
//! transfer too: whoever resumes gets the next one. One that sent wrong bytes is not asked for them again. Names (versions,
//! tags, memos, signatures) come from the origin, because a mirror may lag behind; from a mirror only while the origin is away.

use std::collections::HashSet;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mica_graph::{Blob, Digest, Layer, PackageName};

use super::{BlobStream, Index, Registry, RegistryError};
use crate::patch::PatchNote;
use crate::trust::Signatures;

/// How long a source that failed is left alone.
const PAUSE: Duration = Duration::from_secs(30);

/// A registry whose bytes come from mirrors where they can, and from the origin where they must.
pub struct MirroredRegistry {
    /// Mirrors in order, the origin last.
    sources: Vec<Arc<Source>>,
}

struct Source {
    registry: Box<dyn Registry>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When it failed last.
    failed: Option<Instant>,
    /// Blobs of which it sent something.
    served: HashSet<Digest>,
    /// Blobs of which it is not asked again.
    wrong: HashSet<Digest>,
}

impl Source {
    fn state(&self) -> MutexGuard<'_, State> {
        // Sets and a time are whole at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, result: &Result<T, RegistryError>) {
        match result {
            Ok(_) => self.state().failed = None,
            Err(error) if error.is_transient() => self.failed(error),
            Err(_) => {}
        }
    }

    fn failed(&self, error: &dyn std::error::Error) {
        tracing::warn!(source = self.registry.address(), %error, "a registry failed");
        self.state().failed = Some(Instant::now());
    }
}

impl MirroredRegistry {
    /// `origin`, with mirrors to be asked before it.
    pub fn new(origin: Box<dyn Registry>, mirrors: Vec<Box<dyn Registry>>) -> Self {
        let all = mirrors.into_iter().chain([origin]);
        let source = |registry| Arc::new(Source { registry, state: Mutex::default() });
        Self { sources: all.map(source).collect() }
    }

    fn origin(&self) -> &Source {
        self.sources.last().expect("there is always an origin")
    }

    /// Sources for some bytes: those that work first; none twice.
    fn order(&self, digest: &Digest) -> Vec<&Arc<Source>> {
        let good = |source: &&Arc<Source>| !source.state().wrong.contains(digest);
        let mut order: Vec<&Arc<Source>> = self.sources.iter().filter(good).collect();
        // Stable: the order stands among those that work, and among those that don't.
        order.sort_by_key(|s| s.state().failed.is_some_and(|failed| failed.elapsed() < PAUSE));
        order
    }

    /// The first success; else what the last source said.
    fn first<T>(
        &self,
        order: &[&Arc<Source>],
        ask: impl Fn(&Arc<Source>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let (last, others) = match order {
            [others @ .., last] => (*last, others),
            // Everybody sent wrong bytes: let the origin say so again.
            [] => return ask(&self.sources[self.sources.len() - 1]),
        };
        for source in others {
            let result = ask(source);
            source.note(&result);
            match result {
                Ok(value) => return Ok(value),
                Err(error) => tracing::debug!(%error, "asking the next registry"),
            }
        }
        let result = ask(last);
        last.note(&result);
        result
    }

    /// The origin's answer; a mirror's only if the origin is away.
    fn names<T>(
        &self,
        ask: impl Fn(&dyn Registry) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let error = match ask(&*self.origin().registry) {
            Err(error) if error.is_transient() => error,
            other => return other,
        };
        self.origin().failed(&error);
        let mirrors = &self.sources[..self.sources.len() - 1];
        mirrors.iter().find_map(|mirror| ask(&*mirror.registry).ok()).ok_or(error)
    }
}

impl Registry for MirroredRegistry {
    fn address(&self) -> &str {
        self.origin().registry.address()
    }

    fn packages(&self) -> Result<Vec<PackageName>, RegistryError> {
        self.names(|registry| registry.packages())
    }

    fn index(&self, name: &PackageName) -> Result<Option<Index>, RegistryError> {
        self.names(|registry| registry.index(name))
    }

    fn layer_by_inputs(&self, inputs: &Digest) -> Result<Option<Layer>, RegistryError> {
        self.names(|registry| registry.layer_by_inputs(inputs))
    }

    fn patches(&self, image: &Digest) -> Result<Vec<PatchNote>, RegistryError> {
        self.names(|registry| registry.patches(image))
    }

    fn signatures(&self, manifest: &Digest) -> Result<Signatures, RegistryError> {
        self.names(|registry| registry.signatures(manifest))
    }

    fn blob(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        self.first(&self.order(&blob.digest), |source| {
            let BlobStream { start, reader } = source.registry.blob(blob, range.clone())?;
            source.state().served.insert(blob.digest);
            let reader = Watched { source: Arc::clone(source), reader };
            Ok(BlobStream { start, reader: Box::new(reader) })
        })
    }

    fn document(&self, blob: &Blob, limit: u64) -> Result<Vec<u8>, RegistryError> {
        self.first(&self.order(&blob.digest), |source| source.registry.document(blob, limit))
    }

    fn distrust(&self, blob: &Blob) {
        for source in &self.sources {
            let mut state = source.state();
            if state.served.remove(&blob.digest) {
                state.wrong.insert(blob.digest);
            }
        }
    }

    fn sources(&self) -> usize {
        self.sources.len()
    }
}

/// Notes when a source fails in the middle.
struct Watched {
    source: Arc<Source>,
    reader: Box<dyn Read + Send>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer);
        match &read {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => self.source.failed(error),
            _ => {}
        }
        read
    }
}
