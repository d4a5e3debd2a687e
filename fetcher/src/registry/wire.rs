//! What `mica serve` and its client say to each other beyond the files of the layout.
//!
//! ```text
//! PUT  /blobs/blake3/<2 hex>/<64 hex>   the blob's bytes       201 stored, 200 was there
//! POST /packages/<name>                 a `Publication`        201 new, 200 unchanged
//! POST /packages/<name>/tags            a `Tagging`            200
//! POST /signatures/<64 hex>.minisig     more signatures        200
//! PUT  /layers/<64 hex>.json            a `Layer`              200
//! PUT  /patches/<64 hex>.json           patches to add         200
//! ```
//!
//! A refusal is a status of 400 and above with a JSON [`Refusal`].

use mica_graph::{Digest, Version};
use serde::{Deserialize, Serialize};

use super::{AddError, RegistryError};

/// Asks for a tag to be moved.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tagging {
    pub(crate) tag: Version,
    pub(crate) version: Version,
}

/// Why a request was refused.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// For people.
    pub(crate) error: String,
    /// For the client, where it can tell the case apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<Cause>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cause {
    Add(AddError),
    MissingBlob { digest: Digest },
    WrongSize { digest: Digest, expected: u64, found: u64 },
    WrongBytes { expected: Digest, found: Digest },
}

impl Cause {
    /// The part of an error that the other side can rebuild.
    pub(crate) fn of(error: &RegistryError) -> Option<Self> {
        Some(match error {
            RegistryError::Add { source, .. } => Self::Add(source.clone()),
            RegistryError::MissingBlob { digest, .. } => Self::MissingBlob { digest: *digest },
            RegistryError::WrongSize { digest, expected, found, .. } => {
                Self::WrongSize { digest: *digest, expected: *expected, found: *found }
            }
            RegistryError::WrongBytes { expected, found, .. } => {
                Self::WrongBytes { expected: *expected, found: *found }
            }
            _ => return None,
        })
    }

    /// The error again, as the client's.
    pub(crate) fn into_error(self, registry: String) -> RegistryError {
        match self {
            Self::Add(source) => RegistryError::Add { registry, source },
            Self::MissingBlob { digest } => RegistryError::MissingBlob { registry, digest },
            Self::WrongSize { digest, expected, found } => {
                RegistryError::WrongSize { registry, digest, expected, found }
            }
            Self::WrongBytes { expected, found } => {
                RegistryError::WrongBytes { registry, expected, found }
            }
        }
    }
}
