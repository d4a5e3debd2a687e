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
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//! use mica_mounter::{MountOptions, Stack, StackLayer, Upper, mount};
//! use mica_squashfs::{Image, OpenOptions};
//!
//! let image = Arc::new(Image::open("app.xar", &OpenOptions::default())?);
//! let stack = Stack { layers: vec![StackLayer { name: "//app:A".into(), image }] };
//! let options = MountOptions { upper: Some(Upper::new("/tmp/upper")), ..MountOptions::default() };
//! let mount = mount(stack, Path::new("/mnt"), &options)?;
//! mount.unmount()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blocks;
mod decode;
mod error;
mod idle;
mod ids;
mod kind;
mod lower;
mod mount;
mod options;
mod overlay;
mod server;
mod stack;
mod stats;
mod tree;
mod upper;

pub use error::{MountError, UnmountError};
pub use mica_squashfs::OpenError;
pub use mount::{Mount, Unmounted, Watch, detach_dead, mount, unmount_at};
pub use options::{Marks, MountOptions, Upper};
pub use stack::{Stack, StackLayer};
pub use stats::Stats;
pub use upper::UpperError;
