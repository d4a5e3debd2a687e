//! From a scanned input to an image file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_graph::Digest;
use mica_squashfs::chunks::ChunkTable;
use mica_squashfs::write::{Summary, WriteError, WriteOptions};
use mica_squashfs::xar::{HEADER_SIZE, XarError, XarHeader};

use crate::hash::HashingWriter;
use crate::place::Unfinished;
use crate::previous;
use crate::scan::{Notice, Output, Scan, ScanError, scan_dir, scan_dir_unless, scan_outputs};
use crate::unchanged::{self, Made};
use crate::{Header, PackOptions, ScanCache};

/// The key of the XAR header that says how the image was packed.
pub(crate) const PACKING: &str = "MICA_PACKING";

/// An image that was packed.
#[derive(Clone, Debug)]
pub struct Packed {
    /// BLAKE3 of the file.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Regular files in it, hard links counted once.
    pub files: u64,
    /// Bytes of those files.
    pub bytes_in: u64,
    /// Files whose content was stored already.
    pub duplicates: u64,
    /// Blocks taken from the previous image.
    pub reused: u64,
    /// Nothing was done: the image was made earlier, and neither it nor its input has changed.
    pub unchanged: bool,
    /// The chunks of the file.
    pub chunks: ChunkTable,
    /// What the image says differently from the input.
    pub notices: Vec<Notice>,
    /// Time it took.
    pub elapsed: Duration,
}

/// Why an image was not packed. Nothing is left under its name.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The input cannot be packed.
    #[error("cannot scan the input")]
    Scan(#[from] ScanError),
    /// The image cannot be written.
    #[error("cannot pack {}", image.display())]
    Write {
        /// The image.
        image: PathBuf,
        /// Why not.
        #[source]
        source: WriteError,
    },
    /// The header cannot hold what was asked for.
    #[error("cannot make the header of {}", image.display())]
    Header {
        /// The image.
        image: PathBuf,
        /// Why not.
        #[source]
        source: XarError,
    },
    /// The file cannot be made, read back or renamed.
    #[error("cannot write {}", image.display())]
    Output {
        /// The image.
        image: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Packs the directory `dir` as the root of an image.
pub fn pack_dir(dir: &Path, image: &Path, options: &PackOptions) -> Result<Packed, PackError> {
    let started = Instant::now();
    let Some(cache) = &options.scan_cache else {
        let scan = scan_dir(dir, &options.scan())?;
        let packed = pack_scan(&scan, image, options)?;
        discard(scan);
        return Ok(Packed { elapsed: started.elapsed(), ..packed });
    };
    let made = Made::find(image, cache, options);
    let is_known = |found: &[u8; 32]| made.as_ref().is_some_and(|made| made.is_of(found, options));
    let scan = scan_dir_unless(dir, &options.scan(), is_known, || ScanCache::load(cache))?;
    let Some(scan) = scan else {
        let packed = made.expect("only what was made is known").into_packed();
        return Ok(Packed { elapsed: started.elapsed(), ..packed });
    };
    let (unfinished, packed) = write_image(&scan, image, options)?;
    let (named, known) = std::thread::scope(|scope| {
        // The disk is busy with the image meanwhile. Without a thread for it nothing is known the next time.
        let known = std::thread::Builder::new().spawn_scoped(scope, || ScanCache::of(&scan));
        (name(unfinished, options), known.map_or(Ok(ScanCache::default()), |known| known.join()))
    });
    named.map_err(|source| PackError::Output { image: image.to_owned(), source })?;
    let known = known.unwrap_or_default();
    let last = unchanged::encode(&scan, image, &packed, options);
    discard(scan);
    let saved = known.save_with(cache, &last);
    saved.map_err(|source| PackError::Output { image: cache.clone(), source })?;
    Ok(Packed { elapsed: started.elapsed(), ..packed })
}

/// Frees what was scanned, which is in many small pieces, while others go on; at the end of a process nobody need wait
/// for it.
fn discard(scan: Scan) {
    // Without a thread it is freed right away, with the closure.
    drop(std::thread::Builder::new().spawn(move || drop(scan)));
}

/// Packs the outputs of a module.
pub fn pack_layer(
    outputs: &[Output],
    image: &Path,
    options: &PackOptions,
) -> Result<Packed, PackError> {
    let started = Instant::now();
    let scan = scan_outputs(outputs, &options.scan())?;
    let packed = pack_scan(&scan, image, options)?;
    discard(scan);
    Ok(Packed { elapsed: started.elapsed(), ..packed })
}

/// Where the chunk table of an image is kept ([`ChunkTable`]): `IMAGE.chunks`.
pub fn chunks_path(image: &Path) -> PathBuf {
    beside(image, ".chunks")
}

/// Where the block index of an image is kept ([`mica_squashfs::write::BlockIndex`]):
/// `IMAGE.index`.
pub fn index_path(image: &Path) -> PathBuf {
    beside(image, ".index")
}

fn beside(image: &Path, suffix: &str) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Packs what was scanned.
pub fn pack_scan(scan: &Scan, image: &Path, options: &PackOptions) -> Result<Packed, PackError> {
    let started = Instant::now();
    let (unfinished, packed) = write_image(scan, image, options)?;
    name(unfinished, options)
        .map_err(|source| PackError::Output { image: image.to_owned(), source })?;
    Ok(Packed { elapsed: started.elapsed(), ..packed })
}

fn name(unfinished: Unfinished, options: &PackOptions) -> io::Result<()> {
    if options.durable { unfinished.finish() } else { unfinished.name() }
}

/// An image that lacks nothing but its name; what lies beside it is there.
fn write_image(
    scan: &Scan,
    image: &Path,
    options: &PackOptions,
) -> Result<(Unfinished, Packed), PackError> {
    let failed = |source| PackError::Output { image: image.to_owned(), source };
    let previous = options.previous.as_deref().and_then(|path| previous::open(path, options));
    let write_options = WriteOptions { previous: previous.map(Arc::new), ..options.write() };
    let mut unfinished = Unfinished::create(image).map_err(failed)?;
    let offset = if options.header.is_some() { HEADER_SIZE as u64 } else { 0 };
    let mut steady = unfinished.writer();
    let mut out = HashingWriter::new(&mut steady, offset).map_err(failed)?;
    let summary = mica_squashfs::write::write(&scan.tree, &write_options, &mut out)
        .map_err(|source| PackError::Write { image: image.to_owned(), source })?;
    let mut header_bytes = Vec::new();
    let digest = out
        .finish(|payload| {
            let header = options.header.as_ref().expect("only a file with a header has an offset");
            header_bytes = xar_header(header, payload, options)?;
            Ok(header_bytes.clone())
        })
        .map_err(|source: HeaderFault| source.of(image))?;
    let chunks = whole_chunks(&header_bytes, &summary);
    // Before the image gets its name: whoever finds the image finds these as well.
    if options.chunks {
        place(&chunks_path(image), &chunks.encode(), options.durable)?;
    }
    if let Some(index) = summary.index.as_ref().filter(|_| options.index) {
        // It only saves time, and is of no use where its image is not the one it was made for.
        place(&index_path(image), &index.encode(), false)?;
    }
    let packed = Packed {
        digest,
        size: offset + summary.bytes,
        inodes: summary.inodes.into(),
        files: scan.files,
        bytes_in: scan.bytes,
        duplicates: summary.duplicates,
        reused: summary.reused,
        unchanged: false,
        chunks,
        notices: scan.notices.clone(),
        elapsed: Duration::ZERO,
    };
    Ok((unfinished, packed))
}

/// The chunks of the whole file: the header is one of its own.
fn whole_chunks(header: &[u8], summary: &Summary) -> ChunkTable {
    if header.is_empty() {
        return summary.chunks.clone();
    }
    let mut table = ChunkTable::default();
    table.push(header.len() as u32, *blake3::hash(header).as_bytes());
    summary.chunks.chunks().iter().for_each(|chunk| table.push(chunk.length, chunk.digest));
    table
}

fn place(path: &Path, bytes: &[u8], durable: bool) -> Result<(), PackError> {
    let write = || {
        let mut unfinished = Unfinished::create(path)?;
        unfinished.file().write_all(bytes)?;
        if durable { unfinished.finish() } else { unfinished.name() }
    };
    write().map_err(|source| PackError::Output { image: path.to_owned(), source })
}

enum HeaderFault {
    Io(io::Error),
    Header(XarError),
}

impl HeaderFault {
    fn of(self, image: &Path) -> PackError {
        let image = image.to_owned();
        match self {
            Self::Io(source) => PackError::Output { image, source },
            Self::Header(source) => PackError::Header { image, source },
        }
    }
}

impl From<io::Error> for HeaderFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<XarError> for HeaderFault {
    fn from(error: XarError) -> Self {
        Self::Header(error)
    }
}

/// XAR's own keys and how the image was packed. The commit is not among them: the same content
/// gives the same bytes, whatever version it belongs to.
fn xar_header(
    header: &Header,
    payload: &Digest,
    options: &PackOptions,
) -> Result<Vec<u8>, XarError> {
    XarHeader {
        offset: HEADER_SIZE as u64,
        uuid: Some(payload.hex()[..8].to_owned()),
        version: Some(options.mtime.to_string()),
        dependencies: Some(String::new()),
        xarexec_target: header.target.clone(),
        others: vec![(PACKING.to_owned(), options.description())],
    }
    .encode()
}
