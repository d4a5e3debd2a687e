//! Fetching again what was damaged.

use mica_graph::PackageRef;

use crate::cache::{Cache, Damage, Verified};
use crate::pull::{PullError, PullOptions, fetch_blob, fetch_layer, pull};
use crate::registry::Registry;

/// Fetches again what a [`Cache::verify`] with `repair` took out. Blobs that no manifest knows stay out.
pub fn heal(
    registry: &dyn Registry,
    cache: &Cache,
    verified: &Verified,
    options: &PullOptions,
) -> Result<(), PullError> {
    for damage in &verified.damage {
        let blob = match damage {
            Damage::Manifest { of: Some((name, entry)), .. }
            | Damage::NoManifest { of: (name, entry), .. } => {
                let exact =
                    PackageRef { name: name.clone(), selector: Some(entry.version.clone()) };
                pull(registry, &exact, cache, options, &())?;
                continue;
            }
            Damage::Borrowed { of: Some(of), .. } => {
                fetch_layer(registry, cache, &of.0, &of.1, options)?;
                continue;
            }
            Damage::Blob { blob: Some(blob), .. } => blob,
            Damage::Signatures { of: Some((name, entry)), .. } => {
                let exact =
                    PackageRef { name: name.clone(), selector: Some(entry.version.clone()) };
                let manifest = registry.manifest(&registry.resolve(&exact)?)?;
                let found = registry.signatures(&manifest.digest())?;
                cache.add_signatures(&manifest, &found, &options.trust)?;
                continue;
            }
            _ => continue,
        };
        fetch_blob(registry, cache, blob, options)?;
    }
    Ok(())
}
