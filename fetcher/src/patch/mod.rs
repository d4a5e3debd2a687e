//! Patches: a new image from an older one that is here, when both have little in common as they are stored.
//!
//! Of a release whose binaries were all rebuilt, compressed blocks are all different, and chunks save nothing. The *raw
//! contents* of both images (see [`mica_squashfs::rebuild`]) have most in common. A patch encodes the new contents against
//! the old ones; the node that has the old image decodes, compresses again, and compares the digest of the image. Blocks that
//! the old image has as they are it copies: of those neither contents nor frames are needed.
//!
//! ```text
//! patch    | index | frame | frame | …                one blob; a node takes it in order, by one request
//!
//! index    8   "micapat1"
//!          32  BLAKE3 of the old image
//!          8   length of its contents
//!          4   length of the recipe, and the recipe (its own format, see `mica_squashfs::rebuild::Recipe`)
//!          …   pieces to the end, in the order of the new contents:
//!              4   length of the piece, 32 KiB to 8 MiB, the last one also less
//!              4   length of its frame
//!              32  BLAKE3 of its frame
//!              4   number of references
//!              8+4 each: position and length of a run of the old contents; 32 MiB at most for a piece
//!          All runs of the old contents together, each counted as 64 KiB at least, are no more than four times the new contents and
//!          32 MiB; those no more than 64 times the image and 32 MiB.
//! frame    zstd, with the references joined as its prefix (`ZSTD_CCtx_refPrefix`)
//! ```
//!
//! Numbers are little-endian. The contents are those of `Contents::of` for the old image, and of the recipe for the new one.
//! Any writer may cut pieces and choose references as it likes; a reader needs no more than what one piece takes. Anything else
//! than this is another magic, which older readers refuse, and then take chunks.
//!
//! - *made* piece by piece ([`push_patches`]), 4 MiB each, against at most 8 MiB of old contents that are most like it: by path, and
//!   by content (`reference`);
//! - *found* by the digest of the new image ([`PatchNote`]), in a document beside the manifests, which never change;
//! - *fetched* into a part file of the cache (`fetch`), each piece verified before it is decoded, so a pull that was cut off goes on
//!   with the next piece; applied as it comes, in bounded memory;
//! - *given up* for chunks whenever anything differs: the library that compresses, the old image, the patch. A patch is taken only
//!   if it is the smallest way.

mod apply;
mod fetch;
mod format;
mod make;
mod note;
mod piece;
mod publish;
mod reference;
#[cfg(test)]
mod tests;

use apply::apply;
pub(crate) use fetch::{Offer, offer};
pub(crate) use format::MAGIC;
pub use format::{PatchError, PatchIndex, Piece};
use make::Made;
pub use make::MakeError;
pub use note::PatchNote;
pub(crate) use note::PatchNotes;
pub use publish::{PatchBases, PatchPushError, PushedPatch, push_patches};
