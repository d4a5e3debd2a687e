//! Images most of whose bytes lie in others that are here: only what is new is stored, with a list of where the rest is.
//!
//! **What is verified when.** An own byte is compared with the chunk table when it comes. A borrowed one belongs to a chunk
//! that has the same BLAKE3 in the table of the image it lies in, and that table was compared with that image ([`Cache::is_checked`]).
//! The digest of the whole is *not* computed: so a borrowed image counts only for a layer whose manifest names the very same
//! table, and its file's name says which that is. A manifest that gives a false table for somebody else's image fools nobody
//! but those who use that manifest. Who asks for a file ([`Cache::image`]) gets the whole, assembled and hashed; a mount reads
//! through the list and compares each chunk as always.
//!
//! **What it lies in** are blobs and the own bytes of other borrowed images, never a borrowed image as such: a list leads to bytes in
//! one step. A base that is gone, or is another file than it was, makes the image count as missing, no more. Removal spares the
//! bases of what it spares; a list gets its name under the shared `gc` lock, after a look whether its bases are still there. Who
//! reads an image holds all its files open.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_graph::{Digest, Layer};
use mica_squashfs::Source;

use super::part::Stored;
use super::{Cache, CacheError};
use crate::file;
use crate::registry::layout::parse_hex;

pub(crate) mod format;
mod verify;
pub(crate) mod write;

use format::{Base, BaseFile, List, Listed};

/// An image that is here.
#[derive(Clone, Debug)]
pub enum Held {
    /// As a file.
    Whole(PathBuf),
    /// In pieces of several files.
    Borrowed(BorrowedImage),
}

/// An image that lies in pieces of several files, which are open: it stays readable whatever is removed.
#[derive(Clone, Debug)]
pub struct BorrowedImage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    listed: Listed,
    /// The image's own file, then its bases.
    files: Vec<Arc<File>>,
    /// Where each segment ends in the image.
    ends: Vec<u64>,
    /// Whether all files are of one's own cache.
    own: bool,
}

impl BorrowedImage {
    fn new(listed: Listed, files: Vec<Arc<File>>, own: bool) -> Self {
        let mut end = 0;
        let lengths = listed.list.segments.iter().map(|segment| segment.length);
        let ends = lengths.map(|length| {
            end += length;
            end
        });
        let ends = ends.collect();
        Self(Arc::new(Inner { listed, files, ends, own }))
    }

    /// Whether all of it is in one's own cache.
    pub(super) fn is_own(&self) -> bool {
        self.0.own
    }

    /// Length of the image.
    pub fn size(&self) -> u64 {
        self.0.ends.last().copied().unwrap_or(0)
    }

    /// Bytes that lie in other images' files.
    pub fn borrowed(&self) -> u64 {
        let segments = self.0.listed.list.segments.iter();
        segments.filter(|segment| segment.file > 0).map(|segment| segment.length).sum()
    }

    /// The files, each with what it is called by those that refer to it.
    pub(crate) fn files(&self) -> impl Iterator<Item = (BaseFile, &Arc<File>)> {
        let Listed { list, check, length } = &self.0.listed;
        let base = Base::Borrowed { image: list.image, table: list.table, list: *check };
        let own = BaseFile { base, length: *length };
        std::iter::once(own).chain(list.bases.iter().cloned()).zip(&self.0.files)
    }

    /// The file, by its number, and the offset in it where `length` bytes from `offset` on lie, if they are in one piece.
    pub(crate) fn place(&self, offset: u64, length: u64) -> Option<(usize, u64)> {
        let (index, start) = self.segment(offset);
        let segment = self.0.listed.list.segments.get(index)?;
        let inside = offset - start;
        (inside + length <= segment.length)
            .then_some((segment.file as usize, segment.offset + inside))
    }

    /// The segment that holds a byte, and where that starts.
    fn segment(&self, offset: u64) -> (usize, u64) {
        let index = self.0.ends.partition_point(|end| *end <= offset);
        (index, index.checked_sub(1).map_or(0, |before| self.0.ends[before]))
    }

    /// Calls `each` with the places of a range: the file, the offset in it, the length.
    fn pieces(
        &self,
        mut offset: u64,
        length: u64,
        mut each: impl FnMut(&File, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut index, mut start) = self.segment(offset);
        while offset < end {
            let segment = &self.0.listed.list.segments[index];
            let here = (start + segment.length).min(end) - offset;
            let file = &self.0.files[segment.file as usize];
            each(file, segment.offset + (offset - start), here)?;
            (offset, start, index) = (offset + here, start + segment.length, index + 1);
        }
        Ok(())
    }
}

impl Source for BorrowedImage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.size())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut rest = &mut *buffer;
        self.pieces(offset, rest.len() as u64, |file, at, length| {
            let (here, more) = std::mem::take(&mut rest).split_at_mut(length as usize);
            rest = more;
            Source::read_exact_at(file, here, at)
        })
    }

    fn will_need(&self, offset: u64, length: u64) -> io::Result<()> {
        let length = length.min(self.size().saturating_sub(offset));
        self.pieces(offset, length, |file, at, length| file.will_need(at, length))
    }
}

/// Reads an image from its start.
struct Reading<'a> {
    image: &'a BorrowedImage,
    at: u64,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.image.size() - self.at;
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.image.read_exact_at(&mut buffer[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A file of the folder `borrowed`.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) image: Digest,
    pub(super) table: Digest,
    /// What it says; `None` if it is damaged.
    pub(super) listed: Option<Listed>,
}

impl Entry {
    /// Whether it refers to bytes that `other` has.
    pub(super) fn borrows_from(&self, other: &Self) -> bool {
        let of = |base: &BaseFile| match base.base {
            Base::Borrowed { image, table, .. } => (image, table) == (other.image, other.table),
            Base::Blob(_) => false,
        };
        self.listed.as_ref().is_some_and(|listed| listed.list.bases.iter().any(of))
    }

    /// The files it refers to.
    pub(super) fn bases(&self) -> impl Iterator<Item = &Base> {
        self.listed.iter().flat_map(|listed| &listed.list.bases).map(|file| &file.base)
    }
}

fn pair_name(image: &Digest, table: &Digest) -> String {
    format!("{}.{}", image.hex(), table.hex())
}

fn base_path(root: &Path, base: &Base) -> PathBuf {
    match base {
        Base::Blob(blob) => root.join("blobs").join(blob.hex()),
        Base::Borrowed { image, table, .. } => root.join("borrowed").join(pair_name(image, table)),
    }
}

/// The digests of a pair's name.
pub(super) fn parse_pair(name: &str) -> Option<(Digest, Digest)> {
    let (image, table) = name.split_once('.')?;
    Some((parse_hex(image)?, parse_hex(table)?))
}

impl Cache {
    /// The image of a layer, in whatever form it is here. Take a [`lease`](Self::lease) first.
    pub fn source(&self, layer: &Layer) -> Result<Option<Held>, CacheError> {
        let blob = layer.image();
        if let Ok(Some(path)) = self.blob(&blob) {
            return Ok(Some(Held::Whole(path)));
        }
        if let Some(image) = self.borrowed(layer) {
            return Ok(Some(Held::Borrowed(image)));
        }
        // It may have been assembled meanwhile.
        Ok(self.blob(&blob)?.map(Held::Whole))
    }

    /// Whether the image of a layer is here, in whatever form.
    pub fn holds(&self, layer: &Layer) -> bool {
        matches!(self.source(layer), Ok(Some(_)))
    }

    /// The image of a layer as a file, if it is here; one that is borrowed is assembled, and one that another account
    /// could change is copied. Take a [`lease`](Self::lease) first.
    pub fn image(&self, layer: &Layer) -> Result<Option<PathBuf>, CacheError> {
        match self.source(layer)? {
            Some(held @ Held::Whole(_)) if self.is_foreign(&held) => self.take_over(layer, held),
            Some(Held::Whole(path)) => Ok(Some(path)),
            Some(Held::Borrowed(image)) => self.assemble(layer, &image),
            None => Ok(None),
        }
    }

    /// Copies an image out of a cache of another account, verified: whoever reads the file reads what the digest says.
    fn take_over(&self, layer: &Layer, held: Held) -> Result<Option<PathBuf>, CacheError> {
        let (Held::Whole(path), alone) = (held, Self { shared: None, ..self.clone() }) else {
            return Ok(None);
        };
        let blob = layer.image();
        match alone.store_from(&blob, &mut file::open(&path)?)? {
            Stored::Whole => alone.blob(&blob),
            Stored::Wrong | Stored::Unread(_) => {
                tracing::warn!(path = %path.display(), "what the shared cache has is not the image");
                Ok(None)
            }
        }
    }

    fn assemble(
        &self,
        layer: &Layer,
        image: &BorrowedImage,
    ) -> Result<Option<PathBuf>, CacheError> {
        let blob = layer.image();
        match self.store_from(&blob, &mut Reading { image, at: 0 })? {
            Stored::Whole => self.drop_borrowed(layer, false)?,
            Stored::Wrong => {
                tracing::warn!(image = %blob.digest, "a borrowed image is not what it should be");
                self.drop_borrowed(layer, true)?;
            }
            Stored::Unread(error) => {
                tracing::warn!(image = %blob.digest, %error, "a borrowed image cannot be read");
                self.drop_borrowed(layer, true)?;
            }
        }
        self.blob(&blob)
    }

    /// Removes the list of an image that is whole now, or wrong; what others need of the former stays.
    fn drop_borrowed(&self, layer: &Layer, wrong: bool) -> Result<(), CacheError> {
        let Some(path) = self.borrowed_path(layer) else { return Ok(()) };
        let _gc = self.exclusive("gc")?;
        let entries = self.entries()?;
        let Some(ours) = entries.iter().find(|entry| entry.path == path) else { return Ok(()) };
        if wrong || !entries.iter().any(|entry| entry.borrows_from(ours)) {
            file::remove(&path)?;
        }
        Ok(())
    }

    /// Notes that these images are used now.
    pub(super) fn touch_borrowed(&self, images: &[Digest]) -> Result<(), CacheError> {
        let folder = self.folder("borrowed");
        for name in file::names(&folder)? {
            if parse_pair(&name).is_some_and(|(image, _)| images.contains(&image)) {
                self.touch(&folder.join(name));
            }
        }
        Ok(())
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.root).chain(&self.shared).map(PathBuf::as_path)
    }

    /// Where the list of a layer's image would be.
    pub(super) fn borrowed_path(&self, layer: &Layer) -> Option<PathBuf> {
        let table = layer.chunks.as_ref()?;
        Some(self.folder("borrowed").join(pair_name(&layer.digest, &table.digest)))
    }

    /// Opens an image by its list. Whatever is wrong with that, it is as good as none.
    fn borrowed(&self, layer: &Layer) -> Option<BorrowedImage> {
        let table = layer.chunks.as_ref()?;
        let name = pair_name(&layer.digest, &table.digest);
        self.roots().find_map(|root| {
            let path = root.join("borrowed").join(&name);
            let listed = format::read(&file::open(&path).ok()?).ok().flatten()?;
            let List { image, table: of, .. } = &listed.list;
            let fits = (image, of) == (&layer.digest, &table.digest);
            let fits = fits && listed.list.image_len() == layer.size;
            fits.then(|| self.open_listed(&path, listed)).flatten()
        })
    }

    /// Opens the files of an image: its own, if that still has the list, and all that it borrows from.
    fn open_listed(&self, path: &Path, listed: Listed) -> Option<BorrowedImage> {
        let own = file::open(path).ok()?;
        if format::read_check(&own).ok()? != Some(listed.check) {
            return None;
        }
        let bases = listed.list.bases.iter().map(|base| self.open_base(base));
        let all = std::iter::once(Some((own, self.is_own(path)))).chain(bases);
        let all: Vec<(File, bool)> = all.collect::<Option<_>>()?;
        let is_own = all.iter().all(|(_, own)| *own);
        let files = all.into_iter().map(|(file, _)| Arc::new(file)).collect();
        Some(BorrowedImage::new(listed, files, is_own))
    }

    /// The file of a base, if it is still the same, and whether it is in our own cache.
    fn open_base(&self, base: &BaseFile) -> Option<(File, bool)> {
        let open = |root: &Path| {
            let path = base_path(root, &base.base);
            let file = file::open(&path).ok()?;
            let meta = file.metadata().ok()?;
            let same = meta.len() == base.length
                && match &base.base {
                    Base::Blob(_) => true,
                    Base::Borrowed { list, .. } => format::read_check(&file).ok()? == Some(*list),
                };
            same.then(|| (file, self.is_own(root)))
        };
        self.roots().find_map(open)
    }

    /// Where a base is, of those that are ours.
    pub(super) fn base_path(&self, base: &Base) -> PathBuf {
        base_path(&self.root, base)
    }

    /// All that lies in the folder of borrowed images, but for strange names.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, CacheError> {
        let folder = self.folder("borrowed");
        let mut entries = Vec::new();
        for name in file::names(&folder)? {
            let Some((image, table)) = parse_pair(&name) else { continue };
            let path = folder.join(name);
            let listed = file::open(&path).ok().and_then(|file| format::read(&file).ok().flatten());
            entries.push(Entry { path, image, table, listed });
        }
        Ok(entries)
    }

    /// Whether a chunk table was compared with the image it is said to be of. That is true for ever: both are digests.
    pub(crate) fn is_checked(&self, layer: &Layer) -> bool {
        let Some(table) = &layer.chunks else { return false };
        let name = pair_name(&layer.digest, &table.digest);
        self.folder("checked").join(&name).exists()
    }

    /// Notes that each chunk of an image has the BLAKE3 that the table says.
    pub(crate) fn note_checked(&self, image: &Digest, table: &Digest) {
        let path = self.folder("checked").join(pair_name(image, table));
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o644);
        if let Err(error) = options.open(&path) {
            // Then it is compared once more.
            tracing::debug!(path = %path.display(), %error, "cannot note that a table is right");
        }
    }
}
