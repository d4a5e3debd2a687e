//! An image's content as a tar, as OCI layers are: always the same bytes for the same image.
//!
//! Entries are in the image's order. What ustar cannot say (long names, large numbers, xattrs) is in PAX records. Overlayfs's
//! whiteouts and opaque directories become those of OCI (`.wh.NAME`, `.wh..wh..opq`). Sockets have no form in a tar and stay out,
//! as with every other tar.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use mica_squashfs::read::{WalkError, walk};
use mica_squashfs::{FileKind, Image, Inode, OpenOptions, ReadError};

use crate::registry::RegistryError;
use crate::registry::oci::form;

/// An image that cannot be written as a tar.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The tree cannot be walked.
    #[error("the image is damaged")]
    Walk(#[from] WalkError),
    /// A file's content or attributes cannot be read.
    #[error("cannot read /{}", String::from_utf8_lossy(path))]
    Read {
        /// Path in the image.
        path: Vec<u8>,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The other side takes no more.
    #[error("cannot write the tar")]
    Write(#[from] io::Error),
}

const BLOCK: usize = 512;
/// The largest number in a ustar field of 11 octal digits, and of 7.
const SIZE_MAX: u64 = 0o77_777_777_777;
const ID_MAX: u64 = 0o7_777_777;

/// Writes the content of an image as a tar.
pub fn write_tar(image: &Image, out: &mut dyn Write) -> Result<(), TarError> {
    let mut writer = TarWriter::new(out);
    for entry in walk(image) {
        let entry = entry?;
        writer.entry(0, image, &entry.path, &entry.inode)?;
    }
    writer.finish()
}

/// A tar of entries of several images.
pub struct TarWriter<'o> {
    out: &'o mut dyn Write,
    /// First paths of files with several names, by layer and inode.
    links: HashMap<(usize, u32), Vec<u8>>,
    buffer: Vec<u8>,
}

impl<'o> TarWriter<'o> {
    /// An empty one.
    pub fn new(out: &'o mut dyn Write) -> Self {
        Self { out, links: HashMap::new(), buffer: vec![0; 1 << 17] }
    }

    /// Adds an inode of the image of a layer under a name.
    pub fn entry(
        &mut self,
        layer: usize,
        image: &Image,
        path: &[u8],
        inode: &Inode,
    ) -> Result<(), TarError> {
        Tar { image, layer, to: self }.entry(path, inode)
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<(), TarError> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out.flush()?)
    }
}

struct Tar<'a, 'o> {
    image: &'a Image,
    layer: usize,
    to: &'a mut TarWriter<'o>,
}

/// What a header says besides what is in the inode.
struct Header<'a> {
    path: &'a [u8],
    kind: u8,
    link: &'a [u8],
    size: u64,
}

impl Tar<'_, '_> {
    fn entry(&mut self, path: &[u8], inode: &Inode) -> Result<(), TarError> {
        let mut header = Header { path, kind: b'0', link: b"", size: 0 };
        let first = if inode.is_dir() {
            None
        } else {
            self.to.links.get(&(self.layer, inode.number)).cloned()
        };
        if let Some(first) = &first {
            (header.kind, header.link) = (b'1', first);
            return self.header(inode, &header);
        }
        if inode.nlink > 1 && !inode.is_dir() {
            self.to.links.insert((self.layer, inode.number), path.to_vec());
        }
        let target;
        match inode.file_kind() {
            FileKind::Directory => return self.directory(path, inode),
            FileKind::File => {
                header.size = inode.size();
                self.header(inode, &header)?;
                return self.content(path, inode);
            }
            FileKind::Symlink => {
                target = self.image.read_link(inode).map_err(|e| unreadable(path, e))?;
                (header.kind, header.link) = (b'2', &target);
            }
            FileKind::CharDevice if inode.device() == Some((0, 0)) => {
                let (dir, name) = split(path);
                let path = [dir, b".wh.", name].concat();
                return self.empty(inode, &path);
            }
            FileKind::CharDevice => header.kind = b'3',
            FileKind::BlockDevice => header.kind = b'4',
            FileKind::Fifo => header.kind = b'6',
            FileKind::Socket => return Ok(()),
        }
        self.header(inode, &header)
    }

    fn directory(&mut self, path: &[u8], inode: &Inode) -> Result<(), TarError> {
        let slashed = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        self.header(inode, &Header { path: &slashed, kind: b'5', link: b"", size: 0 })?;
        let opaque = |name: &[u8]| name.ends_with(b".overlay.opaque");
        let xattrs = self.image.xattrs(inode).map_err(|e| unreadable(path, e))?;
        if xattrs.iter().any(|xattr| opaque(&xattr.name) && xattr.value == b"y") {
            let inside: &[u8] = if path.is_empty() { b"" } else { &slashed };
            return self.empty(inode, &[inside, b".wh..wh..opq"].concat());
        }
        Ok(())
    }

    /// An empty file that only its name matters of.
    fn empty(&mut self, inode: &Inode, path: &[u8]) -> Result<(), TarError> {
        let fields = Fields { mode: 0o600, inode, device: (0, 0) };
        let header = Header { path, kind: b'0', link: b"", size: 0 };
        Ok(self.to.out.write_all(&block(&fields, &header, &cut(path, 100)))?)
    }

    /// The header, and before it the records of what it cannot say.
    fn header(&mut self, inode: &Inode, header: &Header<'_>) -> Result<(), TarError> {
        let mut records = Vec::new();
        if header.path.len() > 100 {
            record(&mut records, b"path", header.path);
        }
        if header.link.len() > 100 {
            record(&mut records, b"linkpath", header.link);
        }
        let numbers = [("uid", inode.uid.into(), ID_MAX), ("gid", inode.gid.into(), ID_MAX)];
        for (key, value, max) in numbers.into_iter().chain([("size", header.size, SIZE_MAX)]) {
            if value > max {
                record(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        if header.kind != b'1' {
            let xattrs = self.image.xattrs(inode).map_err(|e| unreadable(header.path, e))?;
            for xattr in xattrs.iter().filter(|xattr| !is_mark(&xattr.name)) {
                let key = [b"SCHILY.xattr.", &xattr.name[..]].concat();
                record(&mut records, &key, &xattr.value);
            }
        }
        let fields = Fields { mode: inode.mode, inode, device: inode.device().unwrap_or_default() };
        if !records.is_empty() {
            let path = [b"PaxHeaders/", split(header.path.trim_ascii_end()).1].concat();
            let extended =
                Header { path: &path, kind: b'x', link: b"", size: records.len() as u64 };
            self.to.out.write_all(&block(&fields, &extended, &cut(&path, 100)))?;
            self.to.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        Ok(self.to.out.write_all(&block(&fields, header, &cut(header.path, 100)))?)
    }

    fn content(&mut self, path: &[u8], inode: &Inode) -> Result<(), TarError> {
        let size = inode.size();
        let mut offset = 0;
        while offset < size {
            let n = self
                .image
                .read_at(inode, offset, &mut self.to.buffer)
                .map_err(|e| unreadable(path, e))?;
            if n == 0 {
                return Err(TarError::Write(io::ErrorKind::UnexpectedEof.into()));
            }
            self.to.out.write_all(&self.to.buffer[..n])?;
            offset += n as u64;
        }
        self.pad(size)
    }

    fn pad(&mut self, written: u64) -> Result<(), TarError> {
        let over = (written % BLOCK as u64) as usize;
        let zeros = [0; BLOCK];
        Ok(self.to.out.write_all(&zeros[..(BLOCK - over) % BLOCK])?)
    }
}

fn unreadable(path: &[u8], source: ReadError) -> TarError {
    TarError::Read { path: path.to_owned(), source }
}

/// Overlayfs's own attributes: they have other forms in a tar.
fn is_mark(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// The folder, with its slash, and the name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.split_at(path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1))
}

fn cut(path: &[u8], max: usize) -> Vec<u8> {
    path[..path.len().min(max)].to_vec()
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself (pax(1)).
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest > length {
        length += 1;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

struct Fields<'a> {
    mode: u16,
    inode: &'a Inode,
    device: (u32, u32),
}

/// A ustar header (POSIX.1-1988).
fn block(fields: &Fields<'_>, header: &Header<'_>, name: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let octal = |block: &mut [u8; BLOCK], at: usize, digits: usize, value: u64| {
        let text = format!("{value:0digits$o}");
        // What does not fit was said in a record.
        let text = if text.len() > digits { "0".repeat(digits) } else { text };
        block[at..at + digits].copy_from_slice(text.as_bytes());
    };
    block[..name.len()].copy_from_slice(name);
    octal(&mut block, 100, 7, fields.mode.into());
    octal(&mut block, 108, 7, fields.inode.uid.into());
    octal(&mut block, 116, 7, fields.inode.gid.into());
    octal(&mut block, 124, 11, header.size);
    octal(&mut block, 136, 11, fields.inode.mtime.into());
    block[156] = header.kind;
    let link = cut(header.link, 100);
    block[157..157 + link.len()].copy_from_slice(&link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block, 329, 7, fields.device.0.into());
    octal(&mut block, 337, 7, fields.device.1.into());
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    octal(&mut block, 148, 6, sum);
    block[154] = 0;
    block
}

/// `sha256:…` of an image file's content as a tar.
pub(crate) fn diff_id(path: &Path) -> Result<String, RegistryError> {
    use sha2::Digest as _;
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| RegistryError::NotAnImage {
        path: path.to_owned(),
        source,
    };
    let image = Image::open(path, &OpenOptions::default()).map_err(|e| failed(e.into()))?;
    let mut out = Hashed(sha2::Sha256::new());
    write_tar(&image, &mut out).map_err(|e| failed(e.into()))?;
    Ok(form::named(out.0.finalize().as_slice()))
}

struct Hashed(sha2::Sha256);

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sha2::Digest::update(&mut self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
