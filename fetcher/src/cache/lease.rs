//! Leases: what a job, a mount or a pull in progress uses is never removed.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mica_graph::{Digest, Manifest};

use super::names::{check_line, checked};
use super::{Cache, CacheError};
use crate::file::{self, Named, Temporary};

/// Protects some digests for as long as its descriptor is open anywhere: in this process, or in a child that inherited it.
#[derive(Debug)]
pub struct Lease {
    file: File,
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Lease> for OwnedFd {
    fn from(lease: Lease) -> Self {
        lease.file.into()
    }
}

impl From<OwnedFd> for Lease {
    /// Takes up a lease that a parent process handed over.
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl Cache {
    /// Protects blobs, whether they are there already or still to come. Check for them afterwards.
    pub fn lease(&self, digests: &[Digest]) -> Result<Lease, CacheError> {
        let text: String = digests.iter().map(|digest| format!("{digest}\n")).collect();
        let text = check_line(text.as_bytes()) + &text;
        let _gc = self.shared("gc")?;
        let Temporary { file, path, .. } = &mut self.leases.create()?.persist();
        file.write_all(text.as_bytes()).named("write", path)?;
        for digest in digests {
            let path = self.blob_path(digest);
            if path.exists() {
                self.touch(&path);
            }
        }
        // Whatever else they lie in is as new as they are (see `prune`).
        self.touch_borrowed(digests)?;
        Ok(Lease { file: file.try_clone().named("clone", path)? })
    }

    /// Protects a package: all its images and chunk tables. Counts as a use of it.
    pub fn lease_package(&self, manifest: &Manifest) -> Result<Lease, CacheError> {
        let lease = self.lease(&blobs(manifest))?;
        let path = self.manifest_path(&manifest.digest());
        if path.exists() {
            self.touch(&path);
        }
        Ok(lease)
    }

    /// What live leases protect; `None` if one of them cannot be read, and so everything is to be spared.
    /// Leases of the dead are removed. The caller holds the `gc` lock.
    pub(super) fn leased(&self) -> Result<Option<HashSet<Digest>>, CacheError> {
        self.leases.sweep()?;
        let mut digests = HashSet::new();
        for name in file::names(&self.folder("leases"))? {
            let path = self.folder("leases").join(name);
            let Some(file) = file::open_regular(&path)? else { continue };
            let mut bytes = Vec::new();
            let read = (&file).read_to_end(&mut bytes);
            let text = checked(&bytes).and_then(|body| std::str::from_utf8(body).ok());
            let parse = |text: &str| text.lines().map(|line| line.parse().ok()).collect();
            let parsed: Option<Vec<Digest>> = text.and_then(parse);
            match (read, parsed) {
                (Ok(_), Some(parsed)) => digests.extend(parsed),
                _ => {
                    tracing::warn!(path = %path.display(), "a live lease is damaged; sparing everything");
                    return Ok(None);
                }
            }
        }
        Ok(Some(digests))
    }
}

/// The digests of a package's images and chunk tables.
pub(crate) fn blobs(manifest: &Manifest) -> Vec<Digest> {
    let tables = manifest.layers.iter().filter_map(|layer| Some(layer.chunks.as_ref()?.digest));
    manifest.layers.iter().map(|layer| layer.digest).chain(tables).collect()
}
