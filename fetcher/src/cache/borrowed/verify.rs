//! Reading borrowed images again, all of their bytes wherever they lie.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use mica_graph::{Digest, Layer, PackageName};

use super::super::verify::{Damage, Verified};
use super::{BorrowedImage, Entry, Reading, parse_pair};
use crate::cache::{Cache, CacheError};
use crate::file;

type Known = HashMap<(Digest, Digest), (PackageName, Layer)>;

impl Cache {
    /// Hashes every borrowed image. With `repair`, what is wrong goes, and what borrows from that.
    pub(in crate::cache) fn verify_borrowed(
        &self,
        repair: bool,
        verified: &mut Verified,
    ) -> Result<(), CacheError> {
        let folder = self.folder("borrowed");
        for name in file::names(&folder)? {
            if parse_pair(&name).is_none() {
                verified.damage.push(Damage::Foreign { path: folder.join(name) });
            }
        }
        let known = self.known_layers()?;
        let entries = self.entries()?;
        let mut wrong: HashSet<PathBuf> = HashSet::new();
        for entry in &entries {
            verified.files += 1;
            if !self.is_right(entry, &known, verified)? {
                wrong.insert(entry.path.clone());
            }
        }
        if repair {
            while let Some(more) = entries.iter().find(|entry| {
                let from = |other: &&Entry| wrong.contains(&other.path);
                !wrong.contains(&entry.path)
                    && entries.iter().filter(from).any(|other| entry.borrows_from(other))
            }) {
                wrong.insert(more.path.clone());
            }
        }
        for entry in entries.iter().filter(|entry| wrong.contains(&entry.path)) {
            if repair {
                file::remove(&entry.path)?;
            }
            let of = known.get(&(entry.image, entry.table)).cloned().map(Box::new);
            verified.damage.push(Damage::Borrowed { path: entry.path.clone(), of });
        }
        Ok(())
    }

    fn is_right(
        &self,
        entry: &Entry,
        known: &Known,
        verified: &mut Verified,
    ) -> Result<bool, CacheError> {
        // Removed since it was listed, it is not damaged.
        if file::stat(&entry.path)?.is_none() {
            return Ok(true);
        }
        let image = entry.listed.clone().and_then(|listed| self.open_listed(&entry.path, listed));
        let Some(image) = image else { return Ok(false) };
        verified.bytes += image.size() - image.borrowed();
        let length = known.get(&(entry.image, entry.table)).map(|(_, layer)| layer.size);
        let fits = length.is_none_or(|length| image.size() == length);
        Ok(fits && hash(&image) == Some(entry.image))
    }

    /// The layers of the packages known here, by image and chunk table.
    fn known_layers(&self) -> Result<Known, CacheError> {
        let mut known = HashMap::new();
        for name in self.names()? {
            // A damaged index is found and named later.
            let Ok(Some(index)) = self.index(&name) else { continue };
            for entry in index.versions {
                let Ok(Some(manifest)) = self.manifest(&entry.manifest.digest) else { continue };
                for layer in manifest.layers {
                    if let Some(table) = &layer.chunks {
                        known.insert((layer.digest, table.digest), (name.clone(), layer));
                    }
                }
            }
        }
        Ok(known)
    }
}

/// The digest of the whole; `None` if it can't be read.
fn hash(image: &BorrowedImage) -> Option<Digest> {
    let mut hasher = blake3::Hasher::new();
    let read = hasher.update_reader(Reading { image, at: 0 });
    read.inspect_err(|error| tracing::warn!(%error, "cannot read a borrowed image")).ok()?;
    Some(hasher.finalize().into())
}
