//! The squashfs 4.0 and XAR header formats, both directions.
//!
//! | module | what |
//! |---|---|
//! | [`format`](mod@format) | every structure on disk, decode and encode |
//! | [`codec`] | compression of blocks |
//! | [`xar`] | the text header before an image |
//! | [`read`] | lazy random access to an image |
//! | [`write`](mod@write) | making an image |
//! | [`unpack`](mod@unpack), [`verify`](mod@verify), [`delta`](mod@delta) | an image into a directory, checked, compared |

pub mod chunks;
pub mod codec;
pub mod delta;
pub mod format;
mod jobs;
pub mod read;
pub mod source;
pub mod unpack;
pub mod verify;
pub mod write;
pub mod xar;

pub use read::{
    Block, BlockRef, DirEntry, FileBlocks, FileKind, Image, Inode, InodeKind, InodeRef, OpenError,
    OpenOptions, ReadError, Xattr,
};
pub use source::Source;
pub use xar::XarHeader;
