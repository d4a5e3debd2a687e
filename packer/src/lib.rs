//! Build outputs into reproducible squashfs images.
//!
//! [`scan_dir`] or [`scan_outputs`] reads names and metadata into a tree; [`inputs_digest`] says
//! whether that input was packed before; [`pack_scan`] writes the image; [`check_conflicts`]
//! compares the layers of one stack.
//!
//! ```
//! use mica_packer::{PackOptions, pack_dir};
//!
//! let scratch = tempfile::tempdir()?;
//! let input = scratch.path().join("input");
//! std::fs::create_dir(&input)?;
//! std::fs::write(input.join("hello.txt"), "hello")?;
//! let image = scratch.path().join("hello.xar");
//! let first = pack_dir(&input, &image, &PackOptions::default())?;
//! assert_eq!((first.files, first.bytes_in), (1, 5));
//! // The same content gives the same bytes.
//! let again = pack_dir(&input, &image, &PackOptions::default())?;
//! assert_eq!(first.digest, again.digest);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod conflict;
#[doc(hidden)]
pub mod fuzz;
mod hash;
mod inputs;
mod options;
mod pack;
mod place;
mod previous;
mod scan;
mod scan_cache;
mod tar_guard;
mod unchanged;
mod untar;
mod verify;

pub use conflict::{ConflictError, check_conflicts};
pub use inputs::{InputsError, inputs_digest};
pub use options::{Header, PackOptions};
pub use pack::{PackError, Packed, chunks_path, index_path, pack_dir, pack_layer, pack_scan};
pub use scan::{
    Change, Modes, Notice, Output, Scan, ScanError, ScanOptions, scan_dir, scan_outputs,
};
pub use scan_cache::ScanCache;
pub use untar::{Keep, UntarError, untar};
pub use verify::{SecondOpinion, Verified, VerifyError, verify};

pub mod build;
