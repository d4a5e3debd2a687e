//! The file of a borrowed image: its own bytes, and behind them a list of where all bytes are.
//!
//! ```text
//! own bytes
//! list    8      "micaborr"
//!         4      format version, 1
//!         4      number of base files, b
//!         4      number of segments, s
//!         8      length of the image
//!         32     the image's BLAKE3
//!         32     BLAKE3 of the chunk table that its bytes were checked against
//!         112 b  per base file: kind (u64: 0 a blob, 1 a borrowed image), image or blob (32), chunk table (32), list (32),
//!                length (u64)
//!         20 s   per segment: length (u64), file (u32: 0 this one, n the n-th base), offset in that file (u64)
//! end     8      length of the list
//!         32     BLAKE3 of the list
//! ```
//!
//! Numbers are little endian. The list is at the end because only then all of it is known. A base that is a borrowed image itself
//! is named by the BLAKE3 of its list as well: which of its bytes are its own depends on that. Segments follow each other from the
//! image's first byte to its last. A reader refuses other versions and whatever doesn't add up.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mica_graph::Digest;

const MAGIC: &[u8; 8] = b"micaborr";
const VERSION: u32 = 1;
const HEAD: usize = 8 + 4 + 4 + 4 + 8 + 32 + 32;
const BASE: usize = 8 + 32 + 32 + 32 + 8;
const SEGMENT: usize = 8 + 4 + 8;
const END: u64 = 8 + 32;

/// More base files than this are not referred to. Each is open while the image is mounted, and a process may have 1024 for all of
/// its layers.
pub(crate) const MAX_BASES: usize = 8;
/// An image in more pieces than this is stored whole.
pub(crate) const MAX_SEGMENTS: usize = 1 << 14;
const MAX_LIST: u64 = (HEAD + BASE * MAX_BASES + SEGMENT * MAX_SEGMENTS) as u64;

/// A file that holds bytes of other images.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Base {
    /// A whole image.
    Blob(Digest),
    /// What a borrowed image has of its own.
    Borrowed {
        image: Digest,
        table: Digest,
        /// BLAKE3 of its list.
        list: Digest,
    },
}

/// A base, and how long its file is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BaseFile {
    pub(crate) base: Base,
    pub(crate) length: u64,
}

/// A run of the image's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) length: u64,
    /// 0: the borrowed image's own file; else a base, counted from 1.
    pub(crate) file: u32,
    /// Where in that file.
    pub(crate) offset: u64,
}

/// Where the bytes of an image are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) image: Digest,
    pub(crate) table: Digest,
    pub(crate) bases: Vec<BaseFile>,
    pub(crate) segments: Vec<Segment>,
}

impl List {
    /// Length of the image.
    pub(crate) fn image_len(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// What comes behind the own bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [VERSION, self.bases.len() as u32, self.segments.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.image_len().to_le_bytes());
        bytes.extend(self.image.as_bytes());
        bytes.extend(self.table.as_bytes());
        for BaseFile { base, length } in &self.bases {
            let (kind, digests) = match base {
                Base::Blob(blob) => (0_u64, [blob.as_bytes(), &[0; 32], &[0; 32]]),
                Base::Borrowed { image, table, list } => {
                    (1, [image.as_bytes(), table.as_bytes(), list.as_bytes()])
                }
            };
            bytes.extend(kind.to_le_bytes());
            bytes.extend(digests.into_iter().flatten());
            bytes.extend(length.to_le_bytes());
        }
        for segment in &self.segments {
            bytes.extend(segment.length.to_le_bytes());
            bytes.extend(segment.file.to_le_bytes());
            bytes.extend(segment.offset.to_le_bytes());
        }
        let check = Digest::of(&bytes);
        bytes.extend((bytes.len() as u64).to_le_bytes());
        bytes.extend(check.as_bytes());
        bytes
    }

    /// The list of a file with so many own bytes; `None` if it doesn't add up.
    fn parse(bytes: &[u8], own: u64) -> Option<Self> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let version = u32::from_le_bytes(take(&mut rest)?);
        let bases = u32::from_le_bytes(take(&mut rest)?) as usize;
        let segments = u32::from_le_bytes(take(&mut rest)?) as usize;
        if version != VERSION || bases > MAX_BASES || segments > MAX_SEGMENTS {
            return None;
        }
        let length = u64::from_le_bytes(take(&mut rest)?);
        let (image, table) = (digest(&mut rest)?, digest(&mut rest)?);
        let bases = (0..bases).map(|_| base(&mut rest)).collect::<Option<Vec<_>>>()?;
        let mut total: u64 = 0;
        let mut read = || {
            let segment = segment(&mut rest)?;
            let file = match segment.file.checked_sub(1) {
                None => own,
                Some(base) => bases.get(base as usize)?.length,
            };
            total = total.checked_add(segment.length)?;
            let inside = segment.offset.checked_add(segment.length)? <= file;
            (inside && segment.length > 0).then_some(segment)
        };
        let segments = (0..segments).map(|_| read()).collect::<Option<Vec<_>>>()?;
        let list = Self { image, table, bases, segments };
        (rest.is_empty() && total == length).then_some(list)
    }
}

/// A list, and what it is called by those that refer to its file.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) list: List,
    /// BLAKE3 of the list.
    pub(crate) check: Digest,
    /// Length of the file.
    pub(crate) length: u64,
}

/// Reads the list of a file; `None` if it has none that is right.
pub(crate) fn read(file: &File) -> io::Result<Option<Listed>> {
    let length = file.metadata()?.len();
    let Some((size, check)) = read_end(file, length)? else { return Ok(None) };
    let own = length - END - size;
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, own)?;
    if Digest::of(&bytes) != check {
        return Ok(None);
    }
    Ok(List::parse(&bytes, own).map(|list| Listed { list, check, length }))
}

/// The BLAKE3 that a file's end gives for its list.
pub(crate) fn read_check(file: &File) -> io::Result<Option<Digest>> {
    Ok(read_end(file, file.metadata()?.len())?.map(|(_, check)| check))
}

fn read_end(file: &File, length: u64) -> io::Result<Option<(u64, Digest)>> {
    let Some(at) = length.checked_sub(END) else { return Ok(None) };
    let mut end = [0; END as usize];
    file.read_exact_at(&mut end, at)?;
    let mut rest = &end[..];
    let size = take(&mut rest).map(u64::from_le_bytes);
    let size = size.filter(|size| *size <= at.min(MAX_LIST));
    Ok(size.zip(digest(&mut rest)))
}

fn base(rest: &mut &[u8]) -> Option<BaseFile> {
    let kind = u64::from_le_bytes(take(rest)?);
    let (image, table, list) = (digest(rest)?, digest(rest)?, digest(rest)?);
    let length = u64::from_le_bytes(take(rest)?);
    let base = match kind {
        0 => Base::Blob(image),
        1 => Base::Borrowed { image, table, list },
        _ => return None,
    };
    Some(BaseFile { base, length })
}

fn segment(rest: &mut &[u8]) -> Option<Segment> {
    let length = u64::from_le_bytes(take(rest)?);
    let file = u32::from_le_bytes(take(rest)?);
    Some(Segment { length, file, offset: u64::from_le_bytes(take(rest)?) })
}

fn digest(rest: &mut &[u8]) -> Option<Digest> {
    take::<32>(rest).map(|bytes| blake3::Hash::from(bytes).into())
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn list() -> List {
        let (image, table) = (Digest::of(b"image"), Digest::of(b"table"));
        let borrowed = Base::Borrowed { image: Digest::of(b"b"), table, list: Digest::of(b"l") };
        let bases = vec![
            BaseFile { base: Base::Blob(Digest::of(b"a")), length: 1000 },
            BaseFile { base: borrowed, length: 300 },
        ];
        let segments = [(500, 1, 500), (10, 0, 0), (7, 2, 20), (1, 0, 10)];
        let segments = segments.map(|(length, file, offset)| Segment { length, file, offset });
        List { image, table, bases, segments: segments.to_vec() }
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_list_reads_as_written_and_nothing_else_does() {
        let list = list();
        assert_eq!(list.image_len(), 518);
        let bytes = [&[7; 11][..], &list.encode()].concat();
        let read_back = read(&file(&bytes)).unwrap().unwrap();
        assert_eq!((&read_back.list, read_back.length), (&list, bytes.len() as u64));
        assert_eq!(read_check(&file(&bytes)).unwrap(), Some(read_back.check));
        for at in 11..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(read(&file(&other)).unwrap().is_none(), "{at}");
        }
        for length in 0..bytes.len() {
            assert!(read(&file(&bytes[..length])).unwrap().is_none(), "{length}");
        }
        // One own byte less than its segments need.
        assert!(read(&file(&bytes[1..])).unwrap().is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_strange(
            tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
            counts in proptest::array::uniform2(0..4_u32),
            own in 0..1000_u64,
        ) {
            let mut bytes = MAGIC.to_vec();
            for number in [VERSION, counts[0], counts[1]] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(&tail);
            if let Some(list) = List::parse(&bytes, own) {
                let size = list.encode().len() - END as usize;
                proptest::prop_assert_eq!(&list.encode()[..size], &bytes[..]);
            }
        }
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let changes: [fn(&mut List); 4] = [
            |list| list.segments[0].offset = 501,
            |list| list.segments[1].file = 3,
            |list| list.segments[2].length = 0,
            |list| list.segments[3].offset = u64::MAX,
        ];
        for change in changes {
            let mut list = list();
            change(&mut list);
            assert!(read(&file(&[&[7; 11][..], &list.encode()].concat())).unwrap().is_none());
        }
    }
}
