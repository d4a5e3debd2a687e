//! Images by digest, verified, from anywhere into the cache.
//!
//! A package is published to a [registry] — a folder, or a server over one — and [pulled](pull) from it into the node's
//! [`Cache`], where jobs and mounts find its images as plain files. Only what is missing moves, and nothing counts as
//! there before the BLAKE3 of all its bytes is right.
//!
//! All of this blocks; the asynchronous parts (the HTTP client, the server) keep their runtimes to themselves.
//! Call it from threads, not from async code.
//!
//! ```
//! use mica_fetcher::{Cache, PullOptions, PushOptions, registry};
//! use mica_graph::{Digest, Layer, Manifest};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let (registry_folder, cache_folder) = (folder.path().join("registry"), folder.path().join("cache"));
//! # let image = folder.path().join("A.xar");
//! // An image that was packed, and the manifest of a package made of it.
//! std::fs::write(&image, b"a squashfs")?;
//! let digest = Digest::of(b"a squashfs");
//! let layer = Layer {
//!     module: "//app:A".parse()?,
//!     version: "953bc".parse()?,
//!     digest,
//!     size: 10,
//!     inputs: Digest::of(b"what was packed"),
//!     chunks: None,
//!     root: false,
//! };
//! let manifest = Manifest {
//!     schema: Manifest::SCHEMA,
//!     name: "A".parse()?,
//!     version: "953bc".parse()?,
//!     target: "//app:A".parse()?,
//!     layers: vec![layer.clone()],
//!     process: Default::default(),
//!     labels: Default::default(),
//!     limits: Default::default(),
//!     service: Default::default(),
//! };
//!
//! // Publish it; then equal inputs need no packing.
//! let address = registry_folder.to_str().unwrap();
//! let registry = registry::open_writable(address, &Default::default())?;
//! mica_fetcher::push(&*registry, &manifest, &|_| Some(image.clone()), &PushOptions::default(), &())?;
//! assert_eq!(registry.layer_by_inputs(&layer.inputs)?, Some(layer.clone()));
//!
//! // Pull it by the beginning of its version. The lease keeps it while it is used.
//! let registry = registry::open(address, &Default::default())?;
//! let cache = Cache::open(cache_folder)?;
//! let pulled = mica_fetcher::pull(&*registry, &"A@95".parse()?, &cache, &PullOptions::default(), &())?;
//! assert_eq!(pulled.fetched_bytes(), 10);
//! let images = cache.stack(&pulled.manifest)?;
//! assert_eq!(std::fs::read(&images[0])?, b"a squashfs");
//! # Ok(())
//! # }
//! ```

mod admit;
mod archive;
mod cache;
mod delta;
mod explain;
mod file;
mod foreign;
#[doc(hidden)]
pub mod fuzz;
mod heal;
mod history;
mod lazy;
mod made_table;
mod members;
mod parallel;
mod patch;
mod progress;
mod pull;
mod push;
pub mod registry;
mod retry;
mod runtime;
mod server;
mod tar;
mod trust;

pub use archive::{LoadError, SaveError, Saved, load, save};
pub use cache::{
    BorrowedImage, Cache, CacheError, CachedPackage, Damage, DiskUse, DistrustError, Held, Lease,
    LookupError, PruneOptions, Pruned, Verified,
};
pub use delta::SMALLEST as SMALLEST_DELTA;
pub use explain::{Costs, Explained, Way, explain};
pub use file::FileError;
pub use foreign::{ImageDefaults, export_archive};
pub use heal::heal;
pub use history::{HistoryEntry, history};
pub use lazy::{Lazy, LazyError, LazyImage, LazyOptions, open_lazy};
pub use made_table::{MadeTableError, made_table};
pub use patch::{
    MakeError, PatchBases, PatchError, PatchIndex, PatchNote, PatchPushError, Piece, PushedPatch,
    push_patches,
};
pub use progress::{Event, Progress};
pub use pull::{Outcome, PullError, PullOptions, Pulled, pull};
pub use push::{PushError, PushOptions, Pushed, push};
pub use retry::Retry;
pub use runtime::made_a_runtime;
pub use server::{
    ServeError, ServeOptions, Server, TlsError, TlsIdentity, Writers, listen, serve,
    serve_until_signal,
};
pub use tar::{TarError, TarWriter, write_tar};
pub use trust::{
    BadSignatures, KeyError, PublicKey, SecretKey, Signature, Signatures, Trust, TrustError,
    TrustRule,
};
