//! Pure model of mica: labels, digests, versions, manifests, and the way from a build graph to a stack of layers.
//!
//! Nothing here does I/O: whoever calls hands in the text.
//!
//! ```
//! use mica_graph::BuildGraph;
//!
//! let graph = BuildGraph::from_json(
//!     r#"{"modules": [
//!         {"label": "//lib:D", "outputs": [{"path": "lib/libD.so", "source": "bin/libD.so"}]},
//!         {"label": "//app:A", "outputs": [{"path": "app/A", "source": "bin/A"}], "deps": ["//lib:B"]},
//!         {"label": "//lib:B", "outputs": [{"path": "lib/libB.so", "source": "bin/libB.so"}], "deps": ["//lib:D"]}
//!     ]}"#,
//!     "/home/me/out".as_ref(),
//! )?;
//! let plan = graph.plan(&"//app:A".parse()?)?;
//! let layers: Vec<_> = plan.layers().map(|module| module.label.name()).collect();
//! assert_eq!(layers, ["A", "B", "D"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod actions;
pub mod build;
pub mod buildfile;
mod digest;
#[doc(hidden)]
pub mod fuzz;
mod json;
mod label;
mod manifest;
mod reference;
mod service;

pub use build::{BuildGraph, Module, Output, Plan};
pub use digest::{Digest, ParseDigestError};
pub use json::{JsonBounds, TooMuchJson};
pub use label::{Label, ParseLabelError};
pub use manifest::{Blob, Layer, Limits, Manifest, ParseManifestError, Process};
pub use reference::{PackageName, PackageRef, ParseReferenceError, Version};
pub use service::{HealthCheck, ParsePortError, Port, Service};
