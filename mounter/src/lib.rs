//! A stack of images as one directory tree.
//!
//! One FUSE server shows all images of a stack merged, by overlayfs's rules, with an optional writable
//! directory on top. No mount per image, no second hop, no root needed.
//!
//! ```text
//!            kernel
//!              │ /dev/fuse
//!   mount ── server        requests and replies                            (fuser)
//!              │
//!            tree          nodes, lookup, copy-up, POSIX on the upper
//!           ╱  │  ╲
//!     overlay lower upper
//!     (rules)   │     ╲ directory descriptors, overlayfs's on-disk form    (rustix)
//!             blocks
//!               ╲ decoded blocks, bounded                                  (mica-squashfs)
//! ```
//!
//! `overlay` is pure; `tree` knows no FUSE; `server` knows no files. Layers never change, so the kernel is told to
//! remember everything for ever; what it remembers is never asked again.
//!
//! ```
//! use std::sync::Arc;
//! use mica_mounter::{MountOptions, Stack, StackLayer, Upper, mount};
//! use mica_squashfs::write::{Metadata, Node, NodeKind, Tree, WriteOptions, write};
//! use mica_squashfs::{Image, OpenOptions};
//!
//! // An image in memory; `Image::open(path, …)` takes one from a file.
//! let mut tree = Tree::new(Metadata::with_mode(0o755));
//! let kind = NodeKind::File(Box::new(b"hello\n".to_vec()));
//! tree.insert(tree.root(), b"greeting", Node { metadata: Metadata::with_mode(0o644), kind })?;
//! let mut bytes = std::io::Cursor::new(Vec::new());
//! write(&tree, &WriteOptions::default(), &mut bytes)?;
//! let image = Image::from_source(Box::new(bytes.into_inner()), &OpenOptions::default())?;
//!
//! let dir = tempfile::tempdir()?;
//! let at = dir.path().join("tree");
//! std::fs::create_dir(&at)?;
//! let layer = StackLayer { name: "//app:A".into(), image: Arc::new(image) };
//! let upper = Upper::new(dir.path().join("upper"));
//! let options = MountOptions { upper: Some(upper), ..MountOptions::default() };
//! let mounted = mount(Stack { layers: vec![layer] }, &at, &options)?; // as root, or in an own namespace
//! std::fs::rename(at.join("greeting"), at.join("farewell"))?;
//! assert_eq!(std::fs::read(at.join("farewell"))?, b"hello\n");
//! mounted.unmount()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod asker;
mod blocks;
mod bounded;
mod decode;
mod descriptors;
mod error;
mod gate;
mod idle;
mod ids;
mod kind;
mod lower;
mod mount;
mod numbers;
mod options;
mod overlay;
mod push;
mod readahead;
mod server;
mod stack;
mod stats;
mod sys;
mod threads;
mod trace;
mod tree;
mod upper;
mod verify;
mod view;

pub use descriptors::{DescriptorLimit, raise_descriptor_limit};
pub use error::{MountError, UnmountError};
pub use mica_squashfs::OpenError;
pub use mica_squashfs::chunks::{ChunkTable, ChunkTableError};
pub use mount::{Mount, Unmounted, Watch, complete_upper, detach_dead, mount, unmount_at};
pub use options::{Marks, MountOptions, Owners, Upper};
pub use stack::{Stack, StackLayer};
pub use stats::Stats;
pub use trace::Trace;
pub use upper::UpperError;
pub use verify::{ParseVerifyError, Verify};
pub use view::{Seen, View, ViewError};
