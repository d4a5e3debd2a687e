//! The squashfs 4.0 and XAR header formats, both directions.
//!
//! | module | what |
//! |---|---|
//! | [`format`](mod@format) | every structure on disk, decode and encode |
//! | [`codec`] | compression of blocks |
//! | [`xar`] | the text header before an image |
//! | [`read`] | lazy random access to an image |
//! | [`write`](mod@write) | making an image |
//! | [`rebuild`](mod@rebuild) | an image as its raw contents and a small recipe, and back, bit for bit |
//! | [`unpack`](mod@unpack), [`verify`](mod@verify), [`delta`](mod@delta) | an image into a directory, checked, compared |
//!
//! ```
//! use mica_squashfs::write::{Metadata, Node, NodeKind, Tree, WriteOptions, write};
//! use mica_squashfs::{Image, OpenOptions};
//!
//! // An image in memory…
//! let mut tree = Tree::new(Metadata::with_mode(0o755));
//! let bin = tree.make_directories(b"usr/bin")?;
//! let kind = NodeKind::File(Box::new(b"#!/bin/sh\necho hello\n".to_vec()));
//! tree.insert(bin, b"hello", Node { metadata: Metadata::with_mode(0o755), kind })?;
//! let mut bytes = std::io::Cursor::new(Vec::new());
//! write(&tree, &WriteOptions::default(), &mut bytes)?;
//!
//! // … read back. `Image::open` does the same with a file, XAR or plain.
//! let image = Image::from_source(Box::new(bytes.into_inner()), &OpenOptions::default())?;
//! let hello = image.resolve(b"usr/bin/hello")?.ok_or("not there")?;
//! let mut buf = [0; 9];
//! let n = image.read_at(&hello, 0, &mut buf)?;
//! assert_eq!(&buf[..n], b"#!/bin/sh");
//! for entry in mica_squashfs::read::walk(&image) {
//!     let entry = entry?;
//!     println!("{:o} {}", entry.inode.mode, entry.path.escape_ascii());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod chunks;
pub mod codec;
pub mod delta;
pub mod format;
mod jobs;
pub mod read;
pub mod rebuild;
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
