//! What was published of a package, and what each version costs to ship.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mica_graph::{Digest, Manifest, PackageName, PackageRef, Version};

use crate::registry::{Registry, RegistryError, Resolved, SelectError};

/// One version in the history of a package.
#[derive(Clone, Debug)]
pub struct HistoryEntry {
    /// The version.
    pub version: Version,
    /// Its manifest's digest.
    pub digest: Digest,
    /// Tags that mean it.
    pub tags: Vec<Version>,
    /// When it was published.
    pub time: SystemTime,
    /// Its layers.
    pub layers: usize,
    /// Bytes of its images.
    pub size: u64,
    /// Layers whose image the version before it does not have; all of them for the first version.
    pub changed: usize,
    /// Bytes of those images: what a node that has the version before must fetch at most.
    pub ship: u64,
}

/// The newest `limit` versions of a package, newest first.
pub fn history(
    registry: &dyn Registry,
    name: &PackageName,
    limit: usize,
) -> Result<Vec<HistoryEntry>, RegistryError> {
    let Some(index) = registry.index(name)? else {
        // The same error, with its hint, as when it is pulled.
        let reference = PackageRef { name: name.clone(), selector: None };
        return match registry.resolve(&reference) {
            Err(error) => Err(error),
            Ok(_) => Err(RegistryError::Select {
                registry: registry.address().to_owned(),
                source: SelectError::Empty { package: name.clone() },
            }),
        };
    };
    let mut entries: Vec<HistoryEntry> = Vec::new();
    // One more than is shown: the last one shown is compared with it.
    let mut newer: Option<(HistoryEntry, Manifest)> = None;
    for entry in index.versions.iter().take(limit.saturating_add(1)) {
        let manifest = registry.manifest(&Resolved {
            name: name.clone(),
            version: entry.version.clone(),
            manifest: entry.manifest.clone(),
            tag: None,
        })?;
        let described = HistoryEntry {
            version: entry.version.clone(),
            digest: entry.manifest.digest,
            tags: index.tags_of(&entry.version),
            time: UNIX_EPOCH + Duration::from_secs(entry.time),
            layers: manifest.layers.len(),
            size: 0,
            changed: 0,
            ship: 0,
        };
        if let Some((done, newer)) = newer.replace((described, manifest.clone())) {
            entries.push(compared(done, &newer, Some(&manifest)));
        }
    }
    if let Some((first, manifest)) = newer.filter(|_| entries.len() < limit) {
        entries.push(compared(first, &manifest, None));
    }
    Ok(entries)
}

fn compared(entry: HistoryEntry, new: &Manifest, old: Option<&Manifest>) -> HistoryEntry {
    let old: HashSet<Digest> = old.into_iter().flat_map(|m| &m.layers).map(|l| l.digest).collect();
    let mut entry = entry;
    let mut seen = HashSet::new();
    for layer in &new.layers {
        let is_new = !old.contains(&layer.digest);
        entry.changed += usize::from(is_new);
        // Layers that share an image count its bytes once.
        if seen.insert(layer.digest) {
            entry.size += layer.size;
            entry.ship += if is_new { layer.size } else { 0 };
        }
    }
    entry
}
