//! Blobs of a registry folder to which nothing refers: pushes that never came to their end.
//!
//! A blob counts as referred to if an index, a manifest, the note of a layer or a note of patches names it. Whatever of these cannot be read
//! keeps everything. A push may still be on its way: what it asked for or sent is new by its time, and stays for a while.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mica_graph::{Digest, Layer, Manifest};

use super::files::Files as _;
use super::layout::{self, Item};
use super::{DirRegistry, Registry as _, RegistryError};
use crate::file;
use crate::patch::PatchNotes;

/// A blob that was asked for within so many seconds is as good as new.
const NOTED: i64 = 600;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blobs removed.
    pub removed: usize,
    /// Bytes of those that stayed.
    pub used: u64,
}

impl DirRegistry {
    /// Removes blobs that nothing refers to, and that nobody sent or asked for since `keep`.
    ///
    /// # Errors
    /// A document cannot be read; then nothing was removed.
    pub fn sweep_uploads(&self, keep: Duration) -> Result<Swept, RegistryError> {
        let now = SystemTime::now();
        let mut swept = Swept::default();
        let mut old = Vec::new();
        let blobs = self.root().join("blobs/blake3");
        for start in file::names(&blobs)? {
            let folder = blobs.join(start);
            for name in file::names(&folder)? {
                let path = folder.join(&name);
                let (Some(digest), Some(meta)) = (layout::parse_hex(&name), file::stat(&path)?)
                else {
                    continue;
                };
                swept.used += on_disk(meta.len());
                let age = meta.modified().ok().and_then(|time| now.duration_since(time).ok());
                if meta.is_file() && age.is_some_and(|age| age > keep) {
                    old.push((digest, path, meta.len()));
                }
            }
        }
        swept.used += self.size_of_documents()?;
        if old.is_empty() {
            return Ok(swept);
        }
        let named = self.named()?;
        for (digest, path, size) in old {
            if !named.contains(&digest) && file::remove(&path)? {
                swept.removed += 1;
                swept.used -= on_disk(size);
            }
        }
        Ok(swept)
    }

    /// What a file of the registry takes, about.
    pub(crate) fn size_on_disk(&self, item: &Item) -> Result<u64, RegistryError> {
        Ok(file::stat(&self.root().join(item.path()))?.map_or(0, |meta| on_disk(meta.len())))
    }

    fn size_of_documents(&self) -> Result<u64, RegistryError> {
        let mut items = vec![Item::Packages];
        let packages = file::names(&self.root().join("packages"))?;
        items.extend(packages.iter().filter_map(|name| Some(Item::Index(name.parse().ok()?))));
        items.extend(self.documents_of("layers", ".json")?.into_iter().map(Item::Layer));
        items.extend(self.documents_of("patches", ".json")?.into_iter().map(Item::Patches));
        let signatures = self.documents_of("signatures", ".minisig")?;
        items.extend(signatures.into_iter().map(Item::Signatures));
        items.iter().map(|item| self.size_on_disk(item)).sum()
    }

    /// All blobs that some document names.
    fn named(&self) -> Result<HashSet<Digest>, RegistryError> {
        let mut named = HashSet::from([Digest::of(b"")]);
        for name in file::names(&self.root().join("packages"))? {
            let Ok(package) = name.parse() else { continue };
            for entry in self.index(&package)?.into_iter().flat_map(|index| index.versions) {
                let bytes = self.document(&entry.manifest, Manifest::BOUNDS.bytes)?;
                let digest = entry.manifest.digest;
                let manifest = Manifest::from_json(&bytes).map_err(|source| {
                    RegistryError::Manifest { registry: self.address().to_owned(), digest, source }
                })?;
                named.insert(digest);
                named.extend(manifest.layers.iter().flat_map(blobs_of));
            }
        }
        for digest in self.documents_of("layers", ".json")? {
            let Some(bytes) = self.file(&Item::Layer(digest), super::LAYER.bytes)? else {
                continue;
            };
            // A note that cannot be used names nothing.
            if let Ok(layer) = serde_json::from_slice::<Layer>(&bytes) {
                named.extend(blobs_of(&layer));
            }
        }
        for digest in self.documents_of("patches", ".json")? {
            let item = Item::Patches(digest);
            let Some(bytes) = self.file(&item, PatchNotes::BOUNDS.bytes)? else { continue };
            named.extend(PatchNotes::read(&bytes, &digest).iter().map(|note| note.patch.digest));
        }
        Ok(named)
    }

    fn documents_of(&self, folder: &str, end: &str) -> Result<Vec<Digest>, RegistryError> {
        let names = file::names(&self.root().join(folder))?;
        let digests = names.iter().filter_map(|name| layout::parse_hex(name.strip_suffix(end)?));
        Ok(digests.collect())
    }

    /// Notes that somebody asked for a blob that was last new at this time, in seconds: a push may rely on its being there.
    pub(crate) fn want(&self, digest: &Digest, modified: i64) {
        let age = UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs().cast_signed() - modified);
        if age < NOTED {
            return;
        }
        let now = std::fs::FileTimes::new().set_modified(SystemTime::now());
        let file = self.opened(&Item::Blob(*digest));
        if let Ok(Some(file)) = file
            && let Err(error) = file.set_times(now)
        {
            // It is another account's then, or goes a little earlier.
            tracing::debug!(%error, "cannot note that a blob is wanted");
        }
    }
}

/// What a file of so many bytes takes on a disk, about.
pub(crate) fn on_disk(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

const BLOCK: u64 = 4096;

fn blobs_of(layer: &Layer) -> impl Iterator<Item = Digest> + use<> {
    [Some(layer.digest), layer.chunks.as_ref().map(|table| table.digest)].into_iter().flatten()
}
