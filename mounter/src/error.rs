//! Why a stack can't be mounted or unmounted.

use std::io;
use std::path::PathBuf;

use crate::lower::LowerError;
use crate::upper::UpperError;

/// Why a stack can't be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// There is nothing to show.
    #[error("the stack has no layers and there is no upper")]
    Empty,
    /// The mount point doesn't exist, is no directory, or can't be reached.
    #[error("cannot mount on {}", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's FUSE device is missing or can't be opened.
    #[error("cannot open /dev/fuse")]
    Device(#[source] io::Error),
    /// Mounting needs root, an own user namespace, or the helper.
    #[error(
        "mounting on {} needs root, an own user and mount namespace, or fusermount3, which is not installed",
        path.display()
    )]
    NotPermitted {
        /// The mount point.
        path: PathBuf,
    },
    /// The helper refused.
    #[error("fusermount3 cannot mount on {}", path.display())]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("cannot mount FUSE on {}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel and the server didn't agree on the protocol, or no thread could be started.
    #[error("cannot start serving {}", path.display())]
    Session {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The upper can't be used.
    #[error("cannot use the upper")]
    Upper(#[source] UpperError),
    /// The root of a layer can't be read.
    #[error("cannot read layer {layer}")]
    Layer {
        /// The layer.
        layer: String,
        /// Why.
        source: mica_squashfs::ReadError,
    },
}

impl From<LowerError> for MountError {
    fn from(error: LowerError) -> MountError {
        MountError::Layer { layer: error.layer, source: error.source }
    }
}

/// Why a mount can't be taken down.
#[derive(Debug, thiserror::Error)]
#[error("cannot unmount {}", path.display())]
pub struct UnmountError {
    /// The mount point.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}
