//! What can go wrong when opening and reading.

use std::io;

use crate::codec::CodecError;
use crate::format::FormatError;
use crate::xar::XarError;

/// An image cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open image {name}")]
pub struct OpenError {
    /// The file, or `image` for a source without a name.
    pub name: String,
    /// Why.
    #[source]
    pub fault: OpenFault,
}

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenFault {
    /// The file cannot be opened or read.
    #[error("cannot read the file")]
    Io(#[source] io::Error),
    /// The XAR header is damaged.
    #[error("bad XAR header")]
    Xar(#[source] XarError),
    /// There is no valid superblock at the offset.
    #[error("no squashfs file system at byte {offset}")]
    Superblock {
        /// Where it was looked for.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// The superblock names a compressor that is not known.
    #[error("there is no compressor {id}")]
    Compressor {
        /// The compressor's id.
        id: u16,
    },
    /// The file ends before the file system does.
    #[error("the file has {have} bytes, the image needs {need}")]
    Truncated {
        /// Size of the file.
        have: u64,
        /// Size it should have at least.
        need: u64,
    },
    /// A table that is needed from the start cannot be read.
    #[error("cannot read a table")]
    Table(#[source] ReadError),
}

/// A part of an image cannot be read. Positions are counted from the start of the file system.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source failed.
    #[error("cannot read {len} bytes at {position}")]
    Io {
        /// Where.
        position: u64,
        /// How many.
        len: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A structure is not what the format allows.
    #[error("bad metadata in the block at {position}")]
    Format {
        /// The metadata block.
        position: u64,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// A block does not decode.
    #[error("cannot decode the block at {position}")]
    Block {
        /// The block.
        position: u64,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// A field points outside of what it may point at, or contradicts another.
    #[error("{what} is out of range ({value})")]
    Range {
        /// The field.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A block decodes to another size than the file needs.
    #[error("the block at {position} holds {have} bytes instead of {want}")]
    BlockLength {
        /// The block.
        position: u64,
        /// Bytes it holds.
        have: usize,
        /// Bytes it should hold.
        want: usize,
    },
    /// A directory holds a name that no file can have.
    #[error("a directory holds the name {name:?}, which no file can have")]
    Name {
        /// The name, bytes that are not UTF-8 replaced.
        name: String,
    },
    /// A large directory is not sorted: no name can be found in it.
    #[error("a directory holds the name {name:?} out of order")]
    Order {
        /// The name, bytes that are not UTF-8 replaced.
        name: String,
    },
    /// An extended attribute has a name that none can have.
    #[error("an xattr has the name {name:?}, which none can have")]
    XattrName {
        /// The name, bytes that are not UTF-8 replaced.
        name: String,
    },
    /// The operation is for another kind of file.
    #[error("inode {number} is not a {wanted}")]
    Kind {
        /// The inode's number.
        number: u32,
        /// The kind needed.
        wanted: &'static str,
    },
    /// A directory is at a second place in the tree.
    #[error(transparent)]
    Repeated(#[from] super::Repeated),
    /// Whoever asked doesn't wait for the answer any more: see [`super::OpenOptions::interrupted`].
    #[error("interrupted")]
    Interrupted,
}

impl ReadError {
    /// Whether the source failed, rather than the image being damaged.
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}
