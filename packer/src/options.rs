//! How images are packed.

use std::path::PathBuf;

use mica_squashfs::codec::Compression;
use mica_squashfs::write::WriteOptions;

use crate::ScanOptions;

/// How an image is packed. What comes before `jobs`, owner, time and header shape its bytes.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Compression of data and tables.
    pub compression: Compression,
    /// Its level; `None` is the compression's default (3 for zstd).
    pub level: Option<u32>,
    /// Size of a data block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Threads; `None` is one per processor.
    pub jobs: Option<usize>,
    /// Owner and group of everything; `None` keeps those of the input.
    pub owner: Option<(u32, u32)>,
    /// `SOURCE_DATE_EPOCH`: later times become this one.
    pub mtime: u32,
    /// The XAR header before the file system; `None` for a plain squashfs image.
    pub header: Option<Header>,
    /// Put the chunk table beside the image ([`chunks_path`](crate::chunks_path)).
    pub chunks: bool,
    /// An earlier image, of the same layer for example: blocks with the same content are copied
    /// from it, compressed as they are. The bytes are those of a full pack, whatever is named here.
    /// Its [index](crate::index_path) makes that cheap; without one all of it is decoded first.
    pub previous: Option<PathBuf>,
    /// Put a block index beside the image, for the next pack's `previous`.
    pub index: bool,
    /// Where [`pack_dir`](crate::pack_dir) keeps what it found out, so that the next time it need
    /// not read what has not changed, and need not pack if nothing has.
    pub scan_cache: Option<PathBuf>,
    /// Wait until the image is on the disk before it gets its name. Without, it survives the end of
    /// the process, but perhaps not of the machine.
    pub durable: bool,
}

/// What the XAR header says besides what mica itself puts there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `XAREXEC_TARGET`: what `xarexec_fuse` runs, relative to the tree.
    pub target: Option<String>,
}

impl Default for PackOptions {
    /// zstd level 3, blocks of 128 KiB, owner 0:0, times 0, a XAR header.
    fn default() -> Self {
        Self {
            compression: Compression::Zstd,
            level: None,
            block_size: 128 << 10,
            jobs: None,
            owner: Some((0, 0)),
            mtime: 0,
            header: Some(Header::default()),
            chunks: true,
            previous: None,
            index: false,
            scan_cache: None,
            durable: true,
        }
    }
}

impl PackOptions {
    /// How inputs are scanned for such an image.
    pub fn scan(&self) -> ScanOptions {
        let (owner, mtime, jobs) = (self.owner, self.mtime, self.jobs);
        ScanOptions { owner, mtime, jobs, ..ScanOptions::default() }
    }

    pub(crate) fn write(&self) -> WriteOptions {
        WriteOptions {
            compression: self.compression,
            level: self.level,
            block_size: self.block_size,
            jobs: self.jobs,
            time: self.mtime,
            previous: None,
            index: self.index || self.scan_cache.is_some(),
        }
    }

    /// Everything that shapes an image's bytes besides its input, in words: equal texts and equal
    /// inputs give equal images.
    pub fn description(&self) -> String {
        self.write().description()
    }
}
