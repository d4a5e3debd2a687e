//! An image as its raw contents and a small [`Recipe`], from which it is made again bit for bit.
//!
//! Compressed images of two releases have little in common, their raw contents much: a patch is made of what was
//! compressed, and the node that applies it compresses again. Here is what such a patch is about; how contents are
//! compared and shipped is not this crate's business.
//!
//! ```text
//! image     | header | superblock | block | block | … | inode table … | padding |     in the order of the file
//!                |          |         |       |               |             |
//! raw       | header | superblock | bytes   | bytes   |  inodes …       | padding |  Contents: the same order, decoded
//!                                     |         |             |
//! recipe                            "a data block of 131072 bytes" …               compression, level, library, digest
//! ```
//!
//! - [`Contents`] are the raw contents of an image: every compressed block decoded, everything else as it is. Where
//!   each block lies follows from the image alone, so that a node with an old image needs nothing else to read what a
//!   patch refers to. [`Contents::files`] says where the files are, to match those of two images by path.
//! - [`describe`] tries which blocks compress to the same bytes again, keeps the others compressed in the contents,
//!   and gives the recipe: some bytes per file, not per block, less than 0.1 % of usual images. Blocks that an old image has
//!   as they are ([`Stored`]) are left out of the contents: they are copied, which is far less work than compressing.
//! - [`rebuild`] makes the image from recipe and contents in one pass over both, on all processors, in some tens
//!   of MiB of memory, and compares its digest.
//!
//! Every image that opens can be described, whoever made it. It is worth it if its blocks compress to the same bytes
//! again, as those of this crate's writer do; [`Recipe::verbatim`] says how much of an image did not.
//!
//! A library of another version may compress to other bytes, so recipes name library and version and [`rebuild`]
//! refuses others at once. What counts in the end is the digest of the image.
//!
//! ```
//! use std::io::Read as _;
//! use mica_squashfs::rebuild::{Contents, Recipe, describe, rebuild};
//! use mica_squashfs::write::{Metadata, Node, NodeKind, Tree, WriteOptions, write};
//! use mica_squashfs::{Image, OpenOptions, Source};
//!
//! # fn image(text: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
//! #     let mut tree = Tree::new(Metadata::with_mode(0o755));
//! #     let kind = NodeKind::File(Box::new(text.repeat(1000)));
//! #     tree.insert(tree.root(), b"file", Node { metadata: Metadata::with_mode(0o644), kind })?;
//! #     let mut bytes = std::io::Cursor::new(Vec::new());
//! #     write(&tree, &WriteOptions::default(), &mut bytes)?;
//! #     Ok(bytes.into_inner())
//! # }
//! let (old_bytes, new_bytes) = (image(b"an old text")?, image(b"a new text")?);
//! let open = |bytes: &Vec<u8>| Image::from_source(Box::new(bytes.clone()), &OpenOptions::default());
//!
//! // The publisher has both images. It ships the recipe, and the new contents as a patch of the old ones.
//! let (old, new) = (open(&old_bytes)?, open(&new_bytes)?);
//! let described = describe(&new, None, None)?;
//! let recipe = described.recipe.encode();
//! let file = described.contents.files().next().ok_or("no file")??;
//! assert_eq!((file.path.as_slice(), file.ranges[0].end - file.ranges[0].start), (&b"file"[..], 10_000));
//! let mut patch = Vec::new(); // Here: all of the new contents.
//! described.contents.copy_to(&mut patch, None)?;
//!
//! // The node reads the old contents at random, whatever it applies patches with, and has the new ones in order.
//! let contents = Contents::of(&old)?;
//! let mut word = [0; 3];
//! let at = contents.files().next().ok_or("no file")??.ranges[0].start;
//! contents.read_exact_at(&mut word, at + 3)?;
//! assert_eq!(&word, b"old");
//! let mut again = Vec::new();
//! rebuild(&Recipe::parse(&recipe)?, None, &mut patch.as_slice(), &mut again, None)?;
//! assert_eq!(again, new_bytes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod apply;
mod contents;
mod describe;
mod files;
mod pieces;
mod recipe;
mod stored;

pub use apply::{RebuildError, rebuild};
pub use contents::{Contents, ContentsError};
pub use describe::{DescribeError, Described, describe};
pub use files::{FileContents, Files};
pub use recipe::{Recipe, RecipeError};
pub use stored::Stored;

use crate::codec::{CodecError, Compressor};
use crate::format::{METADATA_SIZE, MetaHeader};

/// How the bytes of a piece in the image follow from its raw contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// They are the raw contents.
    Verbatim,
    /// A data or fragment block.
    Data,
    /// A metadata block with its header.
    Meta,
    /// The same, filled up with a frame that zstd skips to so many bytes, header included.
    Filled(u16),
    /// They are bytes of the old image; the contents have nothing of them.
    Copied,
}

/// First bytes of a zstd frame that decoders skip; its length follows as a `u32`.
const SKIPPABLE: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();
const SKIPPABLE_HEADER: usize = SKIPPABLE.len() + 4;

/// Longest run of verbatim bytes that is handled at a time.
const STEP: u64 = 128 << 10;

/// Compresses pieces; one per thread.
struct Encoder {
    data: Compressor,
    meta: Compressor,
    body: Vec<u8>,
}

impl Encoder {
    /// Puts into `out` what the image has for `raw`; `false` if there is no such block.
    fn encode(&mut self, form: Form, raw: &[u8], out: &mut Vec<u8>) -> Result<bool, CodecError> {
        out.clear();
        match form {
            Form::Verbatim | Form::Copied => out.extend_from_slice(raw),
            Form::Data => return self.data.compress(raw, out),
            Form::Meta | Form::Filled(_) => {
                if !self.meta.compress(raw, &mut self.body)? {
                    return Ok(false);
                }
                if let Form::Filled(size) = form {
                    let filled = usize::from(size).saturating_sub(MetaHeader::SIZE);
                    let Some(rest) = filled.checked_sub(self.body.len() + SKIPPABLE_HEADER) else {
                        return Ok(false);
                    };
                    self.body.extend_from_slice(&SKIPPABLE);
                    self.body.extend_from_slice(&(rest as u32).to_le_bytes());
                    self.body.resize(filled, 0);
                }
                if self.body.len() > METADATA_SIZE {
                    return Ok(false);
                }
                let header = MetaHeader { stored: self.body.len() as u16, compressed: true };
                out.extend_from_slice(&header.encode());
                out.extend_from_slice(&self.body);
            }
        }
        Ok(true)
    }
}
