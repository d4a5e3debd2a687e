//! A lazy reader with random access.
//!
//! [`Image::open`] reads the superblock and the head of the xattr table, nothing else; it costs the same for ten files
//! and for a million. Everything after that is found by the references the format gives: an inode by its
//! [`InodeRef`], a name by the directory's index, a block by its position.
//!
//! An [`Image`] is shared by reference between threads. There is no lock around I/O or decoding: the source takes
//! positions, each thread has its own decoder, and decoded metadata blocks are kept in a bounded cache in shards. Data
//! blocks are not cached by [`Image::read_block`], since its caller (a file server) has a cache with a purpose;
//! [`Image::read_at`] is for everybody else and keeps a few.
//!
//! Images are not trusted. Every position, count and size is checked where it is used, and all runs of metadata go
//! forward, so any operation ends within time and memory linear in the size of the image; what an image *claims*
//! never sizes an allocation. Names that would leave a directory are refused. What cannot be seen from one directory,
//! a directory inside itself, is for whoever walks to refuse: [`walk`], [`Visited`].

mod blocks;
mod cache;
mod core;
mod cursor;
mod dir;
mod error;
mod inode;
mod tables;
mod visited;
mod walk;
mod xattr;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use blocks::{Block, BlockRef, FileBlocks};
pub use dir::{DirEntry, ReadDir};
pub use error::{OpenError, OpenFault, ReadError};
pub use inode::{Content, FileKind, Inode, InodeKind, InodeRef, Listing, Target};
pub use visited::{Repeated, Visited};
pub use walk::{DEPTH_MAX, Walk, WalkEntry, WalkError, WalkFault, walk, walk_from};
pub use xattr::{Xattr, XattrKey};

use self::cache::Cache;
use self::core::Core;
use crate::codec::{Compression, CompressorOptions};
use crate::format::table::ID_SIZE;
use crate::format::xattr::{XattrId, XattrTable};
use crate::format::{FragmentEntry, MetaHeader, NO_TABLE, Superblock};
use crate::source::Source;
use crate::xar::{HEADER_SIZE, XarHeader};

/// How to open an image.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Where the file system starts; `None`: behind a XAR header if there is one, else at 0.
    pub offset: Option<u64>,
    /// Bytes of decoded metadata kept.
    pub metadata_cache_bytes: usize,
    /// Bytes of decoded data kept by [`Image::read_at`].
    pub data_cache_bytes: usize,
    /// Asked now and then by whatever takes long, on its own thread; `true` ends it with [`ReadError::Interrupted`].
    pub interrupted: Option<fn() -> bool>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            offset: None,
            metadata_cache_bytes: 8 << 20,
            data_cache_bytes: 8 << 20,
            interrupted: None,
        }
    }
}

/// An open image.
pub struct Image {
    core: Arc<Core>,
    xar: Option<XarHeader>,
    /// Block lists of the files that [`Image::read_at`] read last.
    lists: Cache<FileBlocks>,
}

impl Image {
    /// Opens an image file.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let named = |fault| OpenError { name: path.display().to_string(), fault };
        let file = File::open(path).map_err(|e| named(OpenFault::Io(e)))?;
        Self::new(Box::new(file), options).map_err(named)
    }

    /// Opens an image from anything that can be read at any position.
    pub fn from_source(source: Box<dyn Source>, options: &OpenOptions) -> Result<Self, OpenError> {
        Self::new(source, options)
            .map_err(|fault| OpenError { name: "from a source".to_owned(), fault })
    }

    fn new(source: Box<dyn Source>, options: &OpenOptions) -> Result<Self, OpenFault> {
        let len = source.len().map_err(OpenFault::Io)?;
        let (start, xar) = match options.offset {
            Some(offset) => (offset, None),
            None => find_start(source.as_ref(), len)?,
        };
        let mut bytes = [0; Superblock::SIZE];
        let need = start.saturating_add(Superblock::SIZE as u64);
        if len < need {
            return Err(OpenFault::Truncated { have: len, need });
        }
        source.read_exact_at(&mut bytes, start).map_err(OpenFault::Io)?;
        let superblock = Superblock::decode(&bytes)
            .map_err(|source| OpenFault::Superblock { offset: start, source })?;
        let need = start.saturating_add(superblock.bytes_used);
        if len < need {
            return Err(OpenFault::Truncated { have: len, need });
        }
        let id = superblock.compressor;
        let compression = Compression::from_id(id).ok_or(OpenFault::Compressor { id })?;
        let mut core = Core {
            source,
            start,
            superblock,
            compression,
            xattrs: None,
            metadata: Cache::new(options.metadata_cache_bytes),
            data: Cache::new(options.data_cache_bytes),
            ids: OnceLock::new(),
            interrupted: options.interrupted,
            signposts: Cache::new(1 << 20),
        };
        core.xattrs = check_tables(&core).map_err(OpenFault::Table)?;
        Ok(Self { core: Arc::new(core), xar, lists: Cache::new(4 << 20) })
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// The XAR header, if the image has one and was opened without an explicit offset.
    pub fn xar_header(&self) -> Option<&XarHeader> {
        self.xar.as_ref()
    }

    /// Where the file system starts in the file.
    pub fn start(&self) -> u64 {
        self.core.start
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.core.superblock
    }

    /// The compression that the superblock names.
    pub fn compression(&self) -> Compression {
        self.core.compression
    }

    /// The compressor options, if the image records them.
    pub fn compressor_options(&self) -> Result<Option<CompressorOptions>, ReadError> {
        let sb = self.superblock();
        if !sb.flags.has(crate::format::Flags::COMPRESSOR_OPTIONS) {
            return Ok(None);
        }
        let position = Superblock::SIZE as u64;
        let mut header = [0; MetaHeader::SIZE];
        self.core.read(position, &mut header)?;
        let wrap = |source| ReadError::Format { position, source };
        let stored = MetaHeader::decode(header).map_err(wrap)?.stored;
        let mut bytes = vec![0; stored.into()];
        self.core.read(position + MetaHeader::SIZE as u64, &mut bytes)?;
        CompressorOptions::decode(self.core.compression, &bytes).map(Some).map_err(wrap)
    }

    /// The root directory.
    pub fn root(&self) -> InodeRef {
        InodeRef(self.core.superblock.root.0)
    }

    /// Reads an inode.
    pub fn inode(&self, reference: InodeRef) -> Result<Inode, ReadError> {
        self.core.inode(reference)
    }

    /// The inode of a number; `None` if the image has no export table.
    pub fn inode_of_number(&self, number: u32) -> Result<Option<InodeRef>, ReadError> {
        self.core.export(number)
    }

    /// Finds a name in a directory, by its index where it has one.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<InodeRef>, ReadError> {
        self.core.lookup(directory, name)
    }

    /// The entries of a directory.
    pub fn read_dir(&self, directory: &Inode) -> Result<ReadDir<'_>, ReadError> {
        self.core.read_dir(directory)
    }

    /// The target of a symlink.
    pub fn read_link(&self, symlink: &Inode) -> Result<Vec<u8>, ReadError> {
        self.core.read_link(symlink)
    }

    /// Whether any inode can have extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.core.xattrs.is_some_and(|table| table.ids > 0)
    }

    /// The extended attributes of an inode, in the image's order.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ReadError> {
        self.core.xattrs(inode)
    }

    /// The names of an inode's attributes, without their values.
    pub fn xattr_keys(&self, inode: &Inode) -> Result<Vec<XattrKey>, ReadError> {
        self.core.xattr_keys(inode)
    }

    /// The value of an attribute of this image.
    pub fn xattr_value(&self, key: &XattrKey) -> Result<Vec<u8>, ReadError> {
        self.core.xattr_value(key)
    }

    /// Where a file's blocks are. Made once per open file, it gives any block without a further search.
    pub fn blocks(&self, file: &Inode) -> Result<FileBlocks, ReadError> {
        FileBlocks::new(Arc::clone(&self.core), file)
    }

    /// Reads and decodes a block into `out`, whose old content is lost; more than `max_len` bytes are an error, fewer
    /// are not. Nothing is cached.
    pub fn read_block(
        &self,
        block: &BlockRef,
        max_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let max = max_len.min(self.core.superblock.block_size as usize);
        self.core.data_block(block.offset, block.stored, block.compressed, max, out)
    }

    /// Reads a block as it is stored.
    pub fn read_stored(&self, block: &BlockRef, out: &mut Vec<u8>) -> Result<(), ReadError> {
        self.core.stored_block(block, out)
    }

    /// Reads bytes of the file system as they are stored.
    pub fn read_raw(&self, position: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.core.read(position, buf)
    }

    /// Finds a path from the root. Symlinks are not followed; empty components and `.` are skipped, `..` is a name that
    /// no directory has.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Inode>, ReadError> {
        let mut inode = self.inode(self.root())?;
        for name in path.split(|&b| b == b'/').filter(|n| !matches!(*n, b"" | b".")) {
            if !inode.is_dir() {
                return Ok(None);
            }
            match self.lookup(&inode, name)? {
                Some(found) => inode = self.inode(found)?,
                None => return Ok(None),
            }
        }
        Ok(Some(inode))
    }

    /// Reads from a file at `offset`: as many bytes as fit `buf` or the file has. Keeps a few decoded blocks.
    pub fn read_at(&self, file: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let blocks = match self.lists.get(file.reference.0) {
            Some(blocks) => blocks,
            None => {
                let blocks = Arc::new(self.blocks(file)?);
                self.lists.put(file.reference.0, Arc::clone(&blocks), blocks.weight());
                blocks
            }
        };
        blocks.read_at(offset, buf)
    }
}

/// Reads the XAR header, if there is one.
fn find_start(source: &dyn Source, len: u64) -> Result<(u64, Option<XarHeader>), OpenFault> {
    // A header of more than a page exists only if its offset is more than a page; none is known.
    let mut head = vec![0; len.min(HEADER_SIZE as u64) as usize];
    source.read_exact_at(&mut head, 0).map_err(OpenFault::Io)?;
    if !XarHeader::is_xar(&head) {
        return Ok((0, None));
    }
    let header = XarHeader::parse(&head).map_err(OpenFault::Xar)?;
    Ok((header.offset, Some(header)))
}

/// Checks that all tables' positions lie inside the image, and reads the head of the xattr table.
fn check_tables(core: &Core) -> Result<Option<XattrTable>, ReadError> {
    let sb = &core.superblock;
    core.check_positions(sb.id_table, sb.ids.into(), ID_SIZE, "number of ids")?;
    if sb.fragments > 0 {
        let (table, count) = (sb.fragment_table, sb.fragments.into());
        core.check_positions(table, count, FragmentEntry::SIZE, "number of fragments")?;
    }
    if sb.xattr_table == NO_TABLE {
        return Ok(None);
    }
    let mut bytes = [0; XattrTable::SIZE];
    core.read(sb.xattr_table, &mut bytes)?;
    let table = XattrTable::decode(&bytes)
        .map_err(|source| ReadError::Format { position: sb.xattr_table, source })?;
    if table.ids > 0 && table.values >= sb.xattr_table {
        return Err(ReadError::Range { what: "xattr values position", value: table.values });
    }
    let positions = sb.xattr_table + XattrTable::SIZE as u64;
    core.check_positions(positions, table.ids.into(), XattrId::SIZE, "number of xattr ids")?;
    Ok(Some(table))
}
