//! Pure model of mica: labels, digests, versions, manifests, and the way from a build graph to a stack of layers.
//!
//! Nothing here does I/O: whoever calls hands in the text.

pub mod actions;
pub mod build;
pub mod buildfile;
mod digest;
mod label;
mod manifest;
mod reference;

pub use build::{BuildGraph, Module, Output, Plan};
pub use digest::{Digest, ParseDigestError};
pub use label::{Label, ParseLabelError};
pub use manifest::{Blob, Layer, Limits, Manifest, ParseManifestError, Process};
pub use reference::{PackageName, PackageRef, ParseReferenceError, Version};
