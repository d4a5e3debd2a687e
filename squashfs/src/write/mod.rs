//! Writing images.
//!
//! A [`Tree`] says what is to be written; file contents are opened only while they are packed.
//! The bytes depend on the tree and on compression, level, block size and time in [`WriteOptions`],
//! and on nothing else: not on the number of threads, the order in which nodes were added or the
//! machine.
//!
//! The way of a file (`data`): small ones are read in batches and share fragment blocks whose cuts
//! depend on names (`fragment`); larger ones are cut into blocks. Files with the same content are
//! stored once, known by BLAKE3. Worker threads (`pool`) read and compress a bounded number of
//! blocks ahead of the thread that writes them in order (`layout`) and cuts them into chunks
//! (`cutter`). Then come the tables (`tables`, `meta`) in the order of inodes that `plan` fixed.
//!
//! Not done, on purpose: the blocks of a squashfs file lie side by side, so a block that occurs in
//! two different files cannot be shared by them, only a whole content can. And libraries are
//! compressed like all else: kept as they are, tensorflow's alone would make its layer 1.3 GB
//! instead of 0.28, for a decompression that costs 0.2 ms a block, once.
//!
//! ```
//! use mica_squashfs::write::{Metadata, Node, NodeKind, Tree, WriteOptions, write};
//!
//! let mut tree = Tree::new(Metadata::with_mode(0o755));
//! let dir = tree.make_directories(b"usr/share")?;
//! let kind = NodeKind::File(Box::new(b"hello\n".to_vec()));
//! tree.insert(dir, b"greeting", Node { metadata: Metadata::with_mode(0o644), kind })?;
//! let mut image = std::io::Cursor::new(Vec::new());
//! let summary = write(&tree, &WriteOptions::default(), &mut image)?;
//! assert_eq!(summary.inodes, 4);
//! assert_eq!(image.get_ref().len() as u64, summary.bytes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block;
mod cutter;
mod data;
mod digest;
mod fragment;
mod layout;
mod meta;
mod plan;
mod pool;
mod reuse;
mod tables;
mod tree;
mod twins;

use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;

pub use digest::{ContentDigest, ContentDigestError, content_digest};
pub use reuse::{BlockIndex, BlockIndexError, IndexImageError, Previous};
pub use tree::{
    Attribute, Content, Metadata, Node, NodeId, NodeKind, OpenContent, Tree, TreeError,
};

use crate::chunks::ChunkTable;
use crate::codec::{CodecError, Compression, Compressor};
use crate::format::{
    BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, Flags, METADATA_SIZE, MetaHeader, NO_TABLE, Superblock,
};

/// How an image is written.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Compression of data and tables.
    pub compression: Compression,
    /// Its level; `None` is the compression's default.
    pub level: Option<u32>,
    /// Size of a data block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Threads that compress; `None` is one per processor.
    pub jobs: Option<usize>,
    /// The time of making that the superblock records, seconds since 1970.
    pub time: u32,
    /// An earlier image whose compressed blocks are taken over; the bytes do not depend on it.
    pub previous: Option<Arc<Previous>>,
    /// Make a [`BlockIndex`] for the next write, and tell contents [what they
    /// are](Content::remember_digest) (with blocks of 128 KiB).
    pub index: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            compression: Compression::Zstd,
            level: None,
            block_size: 128 << 10,
            jobs: None,
            time: 0,
            previous: None,
            index: false,
        }
    }
}

impl WriteOptions {
    /// Everything that shapes an image besides its tree, in words: the version of the layout, and
    /// compression, library, level and block size. Equal texts, trees and times give equal bytes.
    pub fn description(&self) -> String {
        let level = self.level.or(self.compression.levels().map(|(_, default, _)| default));
        format!(
            "layout={LAYOUT} compression={} library={} level={} block={}",
            self.compression,
            self.compression.library(),
            level.unwrap_or(0),
            self.block_size
        )
    }

    fn jobs(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.unwrap_or_else(processors).clamp(1, 256)
    }

    /// Whether contents are told what they are: keys of blocks are wanted, and are those of pieces.
    fn remembers(&self) -> bool {
        self.index && u64::from(self.block_size) == digest::PIECE
    }

    /// Blocks in flight: 8 MiB of them, so that a thread that has to wait for a processor does not
    /// keep the others waiting, and at least enough to keep all busy.
    fn window(&self) -> usize {
        ((8 << 20) / self.block_size as usize).clamp(self.jobs() * 2, self.jobs() * 64)
    }

    fn compressor(&self, block_size: u32) -> Result<Compressor, CodecError> {
        Compressor::new(self.compression, self.level, block_size)
    }
}

/// Version of everything in this module that decides where bytes go. A change to that, or to the
/// output of a compression library (see the test with the fixed digests), needs a new one.
pub const LAYOUT: u32 = 2;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Length of the file system, a multiple of 4096.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u32,
    /// Fragment blocks.
    pub fragments: u32,
    /// Files whose content an earlier file has.
    pub duplicates: u64,
    /// The superblock.
    pub superblock: Superblock,
    /// Chunks of the file system, from its superblock on.
    pub chunks: ChunkTable,
    /// Blocks taken from [`WriteOptions::previous`].
    pub reused: u64,
    /// The index, if [`WriteOptions::index`] asked for it.
    pub index: Option<BlockIndex>,
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file in the tree.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is not what it was when the tree was made.
    #[error("{path} changed while it was packed")]
    Changed {
        /// The file in the tree.
        path: String,
    },
    /// The image cannot be written to its place.
    #[error("cannot write the image")]
    Output(#[source] io::Error),
    /// The compressor failed, or does not know the level.
    #[error("cannot compress")]
    Codec(#[from] CodecError),
    /// Not a power of two from 4 KiB to 1 MiB.
    #[error("{0} is not a block size: it is a power of two from 4096 to 1048576")]
    BlockSize(u32),
    /// An extended attribute that squashfs has no place for.
    #[error("squashfs cannot hold the extended attribute {name} of {path}")]
    Attribute {
        /// The node.
        path: String,
        /// The attribute.
        name: String,
    },
    /// A symlink's target is empty or too long.
    #[error("squashfs cannot hold the target of the symlink {path}")]
    SymlinkTarget {
        /// The symlink.
        path: String,
    },
    /// More than 65535 different owners and groups.
    #[error("{path} has one more owner or group than squashfs can hold")]
    TooManyIds {
        /// The first node without a place for its owner.
        path: String,
    },
    /// A listing beyond 4 GiB.
    #[error("the directory {path} has more entries than squashfs can hold")]
    DirectoryTooLarge {
        /// The directory.
        path: String,
    },
    /// An inode table beyond 4 GiB.
    #[error("the tree has more inodes than squashfs can hold")]
    TooManyInodes,
    /// A worker thread ended before its work was done.
    #[error("a packing thread broke off")]
    Worker,
}

/// Writes `tree` as a squashfs 4.0 file system at the current position of `out`.
pub fn write<W: Write + Seek>(
    tree: &Tree,
    options: &WriteOptions,
    out: &mut W,
) -> Result<Summary, WriteError> {
    let size = options.block_size;
    if !size.is_power_of_two() || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&size) {
        return Err(WriteError::BlockSize(size));
    }
    let start = out.stream_position().map_err(WriteError::Output)?;
    let plan = plan::Plan::new(tree);
    let mut layout = layout::Layout::new(out);
    let mut compressor = options.compressor(METADATA_SIZE as u32)?;
    let head = head(&compressor);
    layout.put(&head).map_err(WriteError::Output)?;
    layout.cut(cutter::DATA);
    let data =
        with_workers(options, |pool| data::write_data(tree, &plan, options, pool, &mut layout))?;
    let tables = tables::encode(tree, &plan, &data.records, options)?;
    let mut superblock = Superblock {
        inodes: plan.order.len() as u32,
        mkfs_time: options.time,
        block_size: size,
        fragments: data.fragments.len() as u32,
        compressor: options.compression.id(),
        flags: flags(head.len() > Superblock::SIZE, &data, &tables),
        ids: tables.ids.len(),
        root: tables.root,
        bytes_used: 0,
        id_table: 0,
        xattr_table: NO_TABLE,
        inode_table: 0,
        directory_table: 0,
        fragment_table: NO_TABLE,
        export_table: NO_TABLE,
    };
    tail(&mut layout, &mut superblock, &data, &tables, &mut compressor)?;
    let bytes = layout.position();
    let superblock_bytes = superblock.encode();
    let chunks = layout.finish(&[&superblock_bytes, &head[Superblock::SIZE..]].concat());
    out.seek(SeekFrom::Start(start)).map_err(WriteError::Output)?;
    out.write_all(&superblock_bytes).map_err(WriteError::Output)?;
    out.seek(SeekFrom::Start(start + bytes)).map_err(WriteError::Output)?;
    out.flush().map_err(WriteError::Output)?;
    Ok(Summary {
        bytes,
        inodes: superblock.inodes,
        fragments: superblock.fragments,
        duplicates: data.duplicates,
        superblock,
        chunks,
        reused: data.reused,
        index: data.index,
    })
}

/// Runs `submit` with worker threads behind its pool.
fn with_workers<'t, T>(
    options: &WriteOptions,
    submit: impl FnOnce(&pool::Pool<'t>) -> Result<T, WriteError>,
) -> Result<T, WriteError> {
    let pool = pool::Pool::new();
    let previous = options.previous.as_ref().filter(|one| one.fits(&options.description()));
    std::thread::scope(|scope| {
        let _close = pool::CloseOnDrop(&pool);
        for number in 0..options.jobs() {
            let compressor = options.compressor(options.block_size)?;
            let (index, previous) = (options.index, previous.cloned());
            let (raw, compressed) = (Vec::new(), Vec::new());
            let worker = pool::Worker { compressor, raw, compressed, index, previous };
            let started =
                std::thread::Builder::new().spawn_scoped(scope, || pool.work(worker)).is_ok();
            // Fewer threads than wanted are enough.
            match (started, number) {
                (true, _) => {}
                (false, 0) => return Err(WriteError::Worker),
                (false, _) => break,
            }
        }
        submit(&pool)
    })
}

/// Room for the superblock, and the compressor's options if there are any.
fn head(compressor: &Compressor) -> Vec<u8> {
    let mut head = vec![0; Superblock::SIZE];
    if let Some(options) = compressor.options() {
        let bytes = options.encode();
        let header = MetaHeader { stored: bytes.len() as u16, compressed: false };
        head.extend_from_slice(&header.encode());
        head.extend_from_slice(&bytes);
    }
    head
}

fn flags(has_options: bool, data: &data::Data, tables: &tables::Tables) -> Flags {
    let mut flags = Flags::DUPLICATES | Flags::EXPORT;
    if has_options {
        flags |= Flags::COMPRESSOR_OPTIONS;
    }
    if data.fragments.is_empty() {
        flags |= Flags::NO_FRAGMENTS;
    }
    if tables.xattrs.is_none() {
        flags |= Flags::NO_XATTRS;
    }
    Flags(flags)
}

/// The tables in the order that the kernel expects, and padding to a multiple of 4096.
fn tail<W: Write>(
    layout: &mut layout::Layout<'_, W>,
    superblock: &mut Superblock,
    data: &data::Data,
    tables: &tables::Tables,
    compressor: &mut Compressor,
) -> Result<(), WriteError> {
    let mut put = |bytes: &[u8]| -> Result<u64, WriteError> {
        // Small tables share a chunk.
        if bytes.len() > 8 << 10 {
            layout.cut(cutter::TABLES);
        }
        for piece in meta::pieces(bytes) {
            layout.put(piece).map_err(WriteError::Output)?;
        }
        Ok(layout.position())
    };
    superblock.inode_table = put(&[])?;
    superblock.directory_table = put(&tables.inodes)?;
    let mut at = put(&tables.directories)?;
    let mut two_levels = |entries: &[u8], at: &mut u64| -> Result<u64, WriteError> {
        let (bytes, positions) = meta::two_levels(entries, *at, compressor)?;
        *at = put(&bytes)?;
        Ok(positions)
    };
    if !data.fragments.is_empty() {
        let mut entries = Vec::new();
        data.fragments.iter().for_each(|fragment| fragment.encode(&mut entries));
        superblock.fragment_table = two_levels(&entries, &mut at)?;
    }
    superblock.export_table = two_levels(&tables.export, &mut at)?;
    superblock.id_table = two_levels(&tables.ids.bytes, &mut at)?;
    if let Some(xattrs) = &tables.xattrs {
        let (bytes, position) = xattrs.place(at, compressor)?;
        superblock.xattr_table = position;
        at = put(&bytes)?;
    }
    superblock.bytes_used = at;
    let padding = at.next_multiple_of(4096) - at;
    layout.put(&[0; 4096][..padding as usize]).map_err(WriteError::Output)
}
