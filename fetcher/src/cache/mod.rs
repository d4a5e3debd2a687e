//! The node's own store of images and manifests, by digest.
//!
//! ```text
//! version                 "mica-cache 1\n"
//! blobs/<64 hex>          images and chunk tables: complete and verified, mode 0444, mtime = last use
//! manifests/<64 hex>      manifests, likewise; mtime = last use of the package
//! signatures/<64 hex>     the signatures of a manifest, after a line with their BLAKE3
//! packages/<name>         an `Index` of the versions and tags known here, after a line with its BLAKE3
//! touched/<64 hex>        which parts of an image a run touched first, after a line with their BLAKE3
//! borrowed/<64 hex>.<64>  an image most of which lies in others, and the chunk table it was checked against
//! checked/<64 hex>.<64>   empty: the chunk table fits the image
//! incoming/<64 hex>.part  a blob on its way; whoever writes it holds a flock on it
//! incoming/<64 hex>.own.part  the new bytes of an image that borrows the rest; likewise, its writer holding the `.part` too
//! incoming/tmp-*          small files on their way, likewise locked
//! leases/tmp-*            digests in use, after a line with their BLAKE3; the user holds a flock on it
//! locks/gc                shared: whoever takes a lease; exclusive: whoever removes blobs
//! locks/package-<name>    exclusive: whoever changes packages/<name>
//! ```
//!
//! **Whole or not there.** A file gets its final name by rename, after its digest was checked and it was synced; then
//! the folder is synced. Reading needs no lock. Whatever a dead process left is unlocked, hence known as garbage:
//! temporary files go when the cache is next opened, a `.part` is kept and resumed (its bytes are hashed again first).
//!
//! **Locks are flocks** and end with their holder, also by kill -9. The lock of a digest is the one on its `.part`: two
//! processes that want the same blob fetch it once. A lease is a lock as well; because the file lock belongs to the open
//! file, a lease handed to a child with its descriptor outlives the parent.
//!
//! **Removal** happens only under the exclusive `gc` lock, when the live leases are known. A lease is written under the
//! shared lock, so it is seen by every removal that comes later; whoever leases checks *afterwards* that the blobs are there.
//!
//! **Borrowed images** take the place of blobs where little of them is new (`borrowed/mod.rs` says how, and why that is sound).
//! What a lease or a package protects, it protects with the files it lies in.
//!
//! **Damage.** A blob's length is checked whenever it is asked for; its content on [`Cache::verify`]. Blobs never change,
//! so the digest was true when the file got its name: what differs later was altered from outside, or by the disk.
//!
//! **Whose it is.** One cache belongs to one account, which alone can write it: modes are set, whatever the umask is, and a
//! folder of another account, or one that others can write, is refused. Others may read it, but for `incoming`, `leases` and
//! `locks`: whoever can open a file can lock it. Every wait for a lock has a deadline.
//!
//! A second cache, of another account, may lie below ([`Cache::with_shared`]): what it has is used in place, never copied,
//! never removed. Its owner may change it at any moment: of it nothing counts but by its digest, taken of the very
//! bytes that are used.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mica_graph::{Blob, Digest, Layer, Manifest, PackageName, Version};

use crate::file::{self, FileError, Lock, Staging};
use crate::registry::MAX_TABLE;

pub(crate) mod borrowed;
mod compare;
mod folders;
mod lease;
mod names;
mod part;
mod prune;
mod signatures;
mod trace;
pub(crate) use trace::parse as fuzz_trace;
mod verify;

pub use borrowed::{BorrowedImage, Held};
pub use lease::Lease;
pub(crate) use lease::blobs;
pub use names::{CachedPackage, LookupError};
pub(crate) use part::{Part, Reserved, Stored};
pub use prune::{DiskUse, PruneOptions, Pruned};
pub use signatures::DistrustError;
pub use verify::{Damage, Verified};

/// The folder where a node keeps its images. Cheap to clone; any number of processes may use it at once.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    shared: Option<PathBuf>,
    /// Whether nobody but us and root can change what is in the shared one.
    shared_is_safe: bool,
    quota: Option<u64>,
    staging: Staging,
    leases: Staging,
    patience: Duration,
    /// Whether other content may take the place of a version.
    replaces: bool,
}

/// What a cache cannot do.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder holds something else.
    #[error("{} is not a mica cache", path.display())]
    NotACache {
        /// The folder.
        path: PathBuf,
    },
    /// Written by a later mica.
    #[error("the cache {} has layout `{found}`; this mica knows layout 1", path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// What its version file says.
        found: String,
    },
    /// Its version file says nothing that any mica wrote.
    #[error("{} is damaged", path.display())]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// A file was altered after it was verified.
    #[error("the cached blob {digest} is damaged: {} has {found} bytes, not {expected}", path.display())]
    Damaged {
        /// Which blob.
        digest: Digest,
        /// Its file.
        path: PathBuf,
        /// Its length.
        expected: u64,
        /// The file's length.
        found: u64,
    },
    /// A version never changes its content.
    #[error("{package}@{version} is here with the manifest {held}, this one has {found}")]
    Taken {
        /// The package.
        package: PackageName,
        /// The version.
        version: Version,
        /// The manifest that is here.
        held: Digest,
        /// The other one.
        found: Digest,
    },
    /// A blob that is needed is not there.
    #[error("{what} is not in the cache")]
    Missing {
        /// The layer or blob.
        what: String,
    },
    /// An index or manifest was altered after it was written.
    #[error("{} is damaged", path.display())]
    Document {
        /// The file.
        path: PathBuf,
    },
    /// A file given to the cache is not what it was said to be.
    #[error("{} has digest {found}, not {expected}", path.display())]
    NotThisBlob {
        /// The file.
        path: PathBuf,
        /// What it was said to be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
}

impl CacheError {
    /// Whether the file system, or the user's share of it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::File(error) if error.is_full())
    }

    /// What a person could do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Damaged { .. } | Self::Document { .. } | Self::Version { .. } => {
                "`mica cache verify --repair` finds what is damaged and fetches it again"
            }
            Self::Missing { .. } => "`mica pull` fetches it",
            Self::Taken { .. } => {
                "whoever made it changed what a version is; --replace takes this one in place of the other, for whatever names it"
            }
            Self::File(error) if error.is_full() => "`mica prune` frees what no job uses",
            Self::NotACache { .. } => "name an empty folder, or one that mica made",
            Self::File(error) if error.source.kind() == std::io::ErrorKind::TimedOut => {
                "end the process that holds it, or wait for it"
            }
            Self::File(error) if error.verb == "use" => {
                "a cache is of one account alone; others may read it as their shared cache"
            }
            _ => return None,
        })
    }
}

fn missing(layer: &Layer) -> CacheError {
    CacheError::Missing { what: format!("layer {} ({})", layer.module, layer.digest.short()) }
}

/// Whether a version file says something, if not what we know.
fn names_a_layout(text: &[u8]) -> bool {
    let number = text.strip_prefix(b"mica-cache ").and_then(|rest| rest.strip_suffix(b"\n"));
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

const VERSION: &[u8] = b"mica-cache 1\n";
impl Cache {
    /// Opens the cache in `root`, making it if need be, and removes what dead processes left.
    ///
    /// # Errors
    /// The folder holds something else, or belongs to another account, or others can write it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let root = root.into();
        let folder = folders::open(&root)?;
        let version = root.join("version");
        let held = file::read_small(&version, 4096)?;
        match &held {
            Some(found) if found == VERSION => {}
            Some(found) if names_a_layout(found) => {
                let found = String::from_utf8_lossy(found).trim().to_owned();
                return Err(CacheError::Layout { path: root, found });
            }
            Some(_) => return Err(CacheError::Version { path: version }),
            None => {
                // Another process may have made it since we looked.
                if folders::holds_others(&folder)? && !version.exists() {
                    return Err(CacheError::NotACache { path: root });
                }
            }
        }
        folders::claim(&folder)?;
        folders::make(&folder)?;
        let staging = folders::staging(&folder, "incoming")?;
        let leases = folders::staging(&folder, "leases")?;
        if held.is_none() {
            staging.write(&version, VERSION)?;
        }
        staging.sweep()?;
        Ok(Self {
            root,
            shared: None,
            shared_is_safe: false,
            quota: None,
            staging,
            leases,
            patience: file::PATIENCE,
            replaces: false,
        })
    }

    /// Opens the cache in `root` also if its version file is damaged, which is then written anew; whether it was.
    pub fn open_damaged(root: impl Into<PathBuf>) -> Result<(Self, bool), CacheError> {
        let root = root.into();
        match Self::open(&root) {
            Err(CacheError::Version { path }) => {
                let folder = folders::open(&root)?;
                folders::claim(&folder)?;
                folders::staging(&folder, "incoming")?.write(&path, VERSION)?;
                Ok((Self::open(root)?, true))
            }
            other => Ok((other?, false)),
        }
    }

    /// Lets the cache use, but never change, what another one has: a node's, or one on a cluster's file server. What an account
    /// other than ours and root can change there is [foreign](Self::is_foreign).
    #[must_use]
    pub fn with_shared(self, root: impl Into<PathBuf>) -> Self {
        let (root, us) = (root.into(), rustix::process::geteuid().as_raw());
        let shared_is_safe = mica_durable::trusted::check(&root, us).is_ok();
        Self { shared: Some(root), shared_is_safe, ..self }
    }

    /// Keeps the blobs below `bytes` by removing those longest unused, as far as no lease protects them.
    #[must_use]
    pub fn with_quota(self, bytes: Option<u64>) -> Self {
        Self { quota: bytes, ..self }
    }

    /// Lets a version that is known here get other content. Otherwise a version never changes, wherever the other one comes from.
    #[must_use]
    pub fn replacing(self, replaces: bool) -> Self {
        Self { replaces, ..self }
    }

    /// How long to wait for a lock that another process of ours holds.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob lies, or would lie.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// The file of a blob, if it is there with the right length. Of the shared cache it says no more than that.
    pub fn blob(&self, blob: &Blob) -> Result<Option<PathBuf>, CacheError> {
        self.blob_in(self.shared.as_deref(), blob)
    }

    /// The bytes of a small blob that is here, if they are it. Whatever is in the file later makes no difference.
    pub fn document(&self, blob: &Blob) -> Result<Option<Vec<u8>>, CacheError> {
        let small = blob.size <= MAX_TABLE;
        let Some(path) = self.blob(blob)?.filter(|_| small) else { return Ok(None) };
        let Some(bytes) = file::read_small(&path, blob.size)? else { return Ok(None) };
        let found = Digest::of(&bytes);
        if found != blob.digest {
            return Err(CacheError::NotThisBlob { path, expected: blob.digest, found });
        }
        Ok(Some(bytes))
    }

    /// The same as [`blob`](Self::blob) with another shared cache.
    fn blob_in(&self, shared: Option<&Path>, blob: &Blob) -> Result<Option<PathBuf>, CacheError> {
        let shared = shared.map(|root| root.join("blobs").join(blob.digest.hex()));
        for (path, ours) in [(Some(self.blob_path(&blob.digest)), true), (shared, false)] {
            let Some(path) = path else { continue };
            match file::stat(&path) {
                Ok(Some(meta)) if meta.is_file() && meta.len() == blob.size => {
                    return Ok(Some(path));
                }
                Ok(Some(meta)) if ours => {
                    let (digest, expected, found) = (blob.digest, blob.size, meta.len());
                    return Err(CacheError::Damaged { digest, path, expected, found });
                }
                // A shared cache that is damaged or away is as good as none.
                Ok(_) | Err(_) if !ours => {}
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// The images of a stack as files, topmost first; those that are borrowed are assembled. An error names the first one that is
    /// not there.
    pub fn stack(&self, manifest: &Manifest) -> Result<Vec<PathBuf>, CacheError> {
        let image = |layer| self.image(layer)?.ok_or_else(|| missing(layer));
        manifest.layers.iter().map(image).collect()
    }

    /// The images of a stack, topmost first, in whatever form they are here; an error names the first one that is not.
    pub fn sources(&self, manifest: &Manifest) -> Result<Vec<Held>, CacheError> {
        let image = |layer| self.source(layer)?.ok_or_else(|| missing(layer));
        manifest.layers.iter().map(image).collect()
    }

    /// Notes that a blob or manifest was used now.
    pub(crate) fn touch(&self, path: &Path) {
        let now = std::fs::FileTimes::new().set_modified(SystemTime::now());
        let touched = file::open(path).map_err(|error| error.source);
        if let Err(error) = touched.and_then(|file| file.set_times(now)) {
            // It only makes the blob look older than it is.
            tracing::debug!(path = %path.display(), %error, "cannot note a use");
        }
    }

    /// Whether an image that is here lies, or a part of it, where another account can change it at any moment: then it has to be
    /// compared with its chunk table, or its digest, whenever it is read.
    pub fn is_foreign(&self, held: &Held) -> bool {
        let own = match held {
            Held::Whole(path) => self.is_own(path),
            Held::Borrowed(image) => image.is_own(),
        };
        !own && !self.shared_is_safe
    }

    /// Whether a file is of this cache, not of the shared one.
    pub(crate) fn is_own(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn exclusive(&self, lock: &str) -> Result<Lock, FileError> {
        Lock::exclusive(&self.folder("locks").join(lock), self.patience)
    }

    fn shared(&self, lock: &str) -> Result<Lock, FileError> {
        Lock::shared(&self.folder("locks").join(lock), self.patience)
    }
}
