//! From a scanned input to an image file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mica_graph::Digest;
use mica_squashfs::write::WriteError;
use mica_squashfs::xar::{HEADER_SIZE, XarError, XarHeader};

use crate::place::Unfinished;
use crate::scan::{Notice, Output, Scan, ScanError, scan_dir, scan_outputs};
use crate::{Header, PackOptions};

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
    let scan = scan_dir(dir, &options.scan())?;
    let packed = pack_scan(scan, image, options)?;
    Ok(Packed { elapsed: started.elapsed(), ..packed })
}

/// Packs the outputs of a module.
pub fn pack_layer(
    outputs: &[Output],
    image: &Path,
    options: &PackOptions,
) -> Result<Packed, PackError> {
    let started = Instant::now();
    let scan = scan_outputs(outputs, &options.scan())?;
    let packed = pack_scan(scan, image, options)?;
    Ok(Packed { elapsed: started.elapsed(), ..packed })
}

/// Packs what was scanned.
pub fn pack_scan(scan: Scan, image: &Path, options: &PackOptions) -> Result<Packed, PackError> {
    let started = Instant::now();
    let failed = |source| PackError::Output { image: image.to_owned(), source };
    let mut unfinished = Unfinished::create(image).map_err(failed)?;
    let file = unfinished.file();
    let offset = if options.header.is_some() { HEADER_SIZE as u64 } else { 0 };
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let summary = mica_squashfs::write::write(&scan.tree, &options.write(), file)
        .map_err(|source| PackError::Write { image: image.to_owned(), source })?;
    if let Some(header) = &options.header {
        let payload = hash_from(file, offset).map_err(failed)?;
        let header = xar_header(header, &payload, options)
            .map_err(|source| PackError::Header { image: image.to_owned(), source })?;
        file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&header)).map_err(failed)?;
    }
    let digest = hash_from(file, 0).map_err(failed)?;
    unfinished.finish().map_err(failed)?;
    Ok(Packed {
        digest,
        size: offset + summary.bytes,
        inodes: summary.inodes.into(),
        files: scan.files,
        bytes_in: scan.bytes,
        duplicates: summary.duplicates,
        notices: scan.notices,
        elapsed: started.elapsed(),
    })
}

fn hash_from(file: &mut File, offset: u64) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    file.seek(SeekFrom::Start(offset))?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(&buffer[..length]),
        };
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
        others: vec![("MICA_PACKING".to_owned(), options.description())],
    }
    .encode()
}
