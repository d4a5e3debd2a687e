//! Directories: iteration and lookup.

use std::sync::Arc;

use super::core::Core;
use super::cursor::{Cursor, Place};
use super::error::ReadError;
use super::inode::{FileKind, Inode, InodeKind, InodeRef, Listing};
use crate::format::{DirEntryHeader, DirHeader, DirIndex, METADATA_SIZE, MetaRef};

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Name: any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// The inode.
    pub inode: InodeRef,
    /// The inode's number.
    pub number: u32,
    /// Kind of the file.
    pub kind: FileKind,
}

/// The entries of a directory, in the image's order: sorted by name, bytewise. `.` and `..` are not among them.
/// Nothing follows after an error.
pub struct ReadDir<'a> {
    entries: Entries<'a>,
}

impl ReadDir<'_> {
    /// Bytes of entries read since the last call, and the metadata block in which the last one ended.
    pub(crate) fn progress(&mut self) -> (u64, u64) {
        let read = self.entries.told - self.entries.left;
        self.entries.told = self.entries.left;
        (read, self.entries.cursor.as_ref().map_or(0, |cursor| cursor.place().block))
    }
}

impl Iterator for ReadDir<'_> {
    type Item = Result<DirEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut name = Vec::new();
        let entry = match self.entries.next(&mut name) {
            Ok(found) => found?,
            Err(error) => {
                self.entries.left = 0;
                return Some(Err(error));
            }
        };
        Some(Ok(DirEntry { name, inode: entry.inode, number: entry.number, kind: entry.kind }))
    }
}

/// What an entry holds besides its name.
struct RawEntry {
    inode: InodeRef,
    number: u32,
    kind: FileKind,
}

/// Walks a listing, or a part of it. Every step takes bytes off `left`, so it ends.
struct Entries<'a> {
    /// `None` in an empty directory, whose listing may point anywhere.
    cursor: Option<Cursor<'a>>,
    /// Bytes of the listing not read yet.
    left: u64,
    /// The same, when [`ReadDir::progress`] was last asked.
    told: u64,
    header: DirHeader,
    /// Entries under the current header not read yet.
    under_header: u32,
    /// Bytes that the last entry may have more than the directory says.
    slack: u64,
}

/// Writers that leave out what a directory's recorded size is to be more than its listing (squashfs-tools-ng before 1.1.3):
/// every other reader takes the last entry anyhow.
const SLACK: u64 = crate::format::dir::SIZE_EXTRA as u64;

/// Where to go on in a listing.
#[derive(Clone, Copy)]
struct Resume {
    place: Place,
    left: u64,
    header: DirHeader,
    under_header: u32,
}

/// Places in a large listing, about evenly spread, with the name that comes next at each.
pub(crate) struct Signposts {
    posts: Vec<(Box<[u8]>, Resume)>,
}

/// Listings up to this size are searched from end to end, and so are the parts to which an index leads.
const SHORT: u64 = 64 << 10;
/// How many places are kept of a large one.
const POSTS: u64 = 512;

impl<'a> Entries<'a> {
    fn resume(&self) -> Option<Resume> {
        let place = self.cursor.as_ref()?.place();
        let (left, header, under_header) = (self.left, self.header, self.under_header);
        Some(Resume { place, left, header, under_header })
    }

    fn go_on(core: &'a Core, from: Resume) -> Result<Self, ReadError> {
        let Resume { place, left, header, under_header } = from;
        let cursor = Some(Cursor::new(core, place, core.superblock.bytes_used)?);
        Ok(Self { cursor, left, told: left, header, under_header, slack: SLACK })
    }

    fn new(core: &'a Core, place: Place, size: u64) -> Result<Self, ReadError> {
        let cursor = match size {
            0 => None,
            _ => Some(Cursor::new(core, place, core.superblock.bytes_used)?),
        };
        let header = DirHeader { count: 0, start: 0, number: 0 };
        Ok(Self { cursor, left: size, told: size, header, under_header: 0, slack: SLACK })
    }

    /// The next entry; its name replaces `name`'s content.
    fn next(&mut self, name: &mut Vec<u8>) -> Result<Option<RawEntry>, ReadError> {
        let Some(cursor) = self.cursor.as_mut().filter(|_| self.left > 0) else {
            return Ok(None);
        };
        if self.under_header == 0 {
            take(&mut self.left, &mut 0, DirHeader::SIZE)?;
            let bytes = cursor.array::<{ DirHeader::SIZE }>()?;
            self.header = cursor.check(DirHeader::decode(&bytes))?;
            self.under_header = self.header.count;
        }
        take(&mut self.left, &mut self.slack, DirEntryHeader::SIZE)?;
        let bytes = cursor.array::<{ DirEntryHeader::SIZE }>()?;
        let entry = cursor.check(DirEntryHeader::decode(&bytes))?;
        take(&mut self.left, &mut self.slack, entry.name_len.into())?;
        name.clear();
        cursor.append(entry.name_len.into(), name)?;
        check_name(name)?;
        self.under_header -= 1;
        Ok(Some(RawEntry {
            inode: InodeRef(MetaRef::new(self.header.start.into(), entry.offset).0),
            number: self.header.number.wrapping_add_signed(entry.number_delta.into()),
            kind: FileKind::from_type(entry.kind),
        }))
    }
}

fn take(left: &mut u64, slack: &mut u64, count: usize) -> Result<(), ReadError> {
    let over = (count as u64).saturating_sub(*left);
    *slack = slack
        .checked_sub(over)
        .ok_or(ReadError::Range { what: "size of a directory", value: *left })?;
    *left = left.saturating_sub(count as u64);
    Ok(())
}

/// A name that would leave its directory, or that no system call can pass, is refused here, for all callers.
fn check_name(name: &[u8]) -> Result<(), ReadError> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|&b| b == b'/' || b == 0) {
        return Err(ReadError::Name { name: String::from_utf8_lossy(name).into_owned() });
    }
    Ok(())
}

/// Goes along entries to the one with this name.
fn find(mut entries: Entries<'_>, name: &[u8]) -> Result<Option<InodeRef>, ReadError> {
    let mut found = Vec::new();
    while let Some(entry) = entries.next(&mut found)? {
        if found == name {
            return Ok(Some(entry.inode));
        }
    }
    Ok(None)
}

fn listing_of(inode: &Inode) -> Result<Listing, ReadError> {
    match inode.kind {
        InodeKind::Directory { listing, .. } => Ok(listing),
        _ => Err(inode.wrong_kind("directory")),
    }
}

impl Core {
    pub(crate) fn read_dir(&self, inode: &Inode) -> Result<ReadDir<'_>, ReadError> {
        let listing = listing_of(inode)?;
        let place = Place::in_table(self.superblock.directory_table, listing.start);
        Ok(ReadDir { entries: Entries::new(self, place, listing.size.into())? })
    }

    /// Finds a name: by the index the one metadata block it can be in, then along the entries there.
    pub(crate) fn lookup(&self, inode: &Inode, name: &[u8]) -> Result<Option<InodeRef>, ReadError> {
        let listing = listing_of(inode)?;
        let (place, size) = self.index_search(&listing, name)?;
        if size > SHORT {
            return self.signpost_search(&listing, name);
        }
        find(Entries::new(self, place, size)?, name)
    }

    /// Finds a name in a large listing to which no index, or a useless one, leads: the first search goes through all of
    /// it and puts up signposts for the others.
    fn signpost_search(
        &self,
        listing: &Listing,
        name: &[u8],
    ) -> Result<Option<InodeRef>, ReadError> {
        // Only a damaged image has two listings with one start.
        let key = listing.start.0.rotate_left(24) ^ u64::from(listing.size);
        let posts = match self.signposts.get(key) {
            Some(posts) => posts,
            None => {
                let posts = Arc::new(self.put_up_signposts(listing)?);
                let bytes =
                    posts.posts.iter().map(|(name, post)| name.len() + size_of_val(post)).sum();
                self.signposts.put(key, Arc::clone(&posts), bytes);
                posts
            }
        };
        let behind = posts.posts.partition_point(|(first, _)| first.as_ref() <= name);
        let Some((_, from)) = behind.checked_sub(1).and_then(|at| posts.posts.get(at)) else {
            return Ok(None);
        };
        let mut entries = Entries::go_on(self, *from)?;
        if let Some((_, to)) = posts.posts.get(behind) {
            entries.left = entries.left.saturating_sub(to.left);
        }
        find(entries, name)
    }

    fn put_up_signposts(&self, listing: &Listing) -> Result<Signposts, ReadError> {
        let place = Place::in_table(self.superblock.directory_table, listing.start);
        let size = u64::from(listing.size);
        let mut entries = Entries::new(self, place, size)?;
        let mut posts: Vec<(Box<[u8]>, Resume)> = Vec::new();
        let mut before = Vec::new();
        let (mut next, mut name) = (size, Vec::new());
        loop {
            let here = entries.resume();
            if entries.next(&mut name)?.is_none() {
                break;
            }
            if name < before {
                return Err(ReadError::Order { name: String::from_utf8_lossy(&name).into_owned() });
            }
            if let Some(here) = here.filter(|here| here.left <= next) {
                next = here.left.saturating_sub((size / POSTS).max(1));
                posts.push((name.as_slice().into(), here));
            }
            before.clone_from(&name);
        }
        Ok(Signposts { posts })
    }

    /// The part of a listing that can hold `name`: all of it where there is no index.
    fn index_search(&self, listing: &Listing, name: &[u8]) -> Result<(Place, u64), ReadError> {
        let table = self.superblock.directory_table;
        let mut place = Place::in_table(table, listing.start);
        let (mut start, mut end) = (0, listing.size);
        if listing.index_count == 0 {
            return Ok((place, end.into()));
        }
        let mut cursor = Cursor::new(self, listing.index, table)?;
        let mut first = Vec::new();
        for _ in 0..listing.index_count {
            let bytes = cursor.array::<{ DirIndex::SIZE }>()?;
            let index = cursor.check(DirIndex::decode(&bytes))?;
            first.clear();
            cursor.append(index.name_len as usize, &mut first)?;
            if index.position < start || index.position > listing.size {
                let value = index.position.into();
                return Err(ReadError::Range { what: "position in a directory index", value });
            }
            if first.as_slice() > name {
                end = index.position;
                break;
            }
            start = index.position;
            // Blocks of a listing are full, so position and first offset give the offset in any of them.
            let offset =
                (u64::from(listing.start.offset()) + u64::from(start)) % METADATA_SIZE as u64;
            place = Place { block: table + u64::from(index.start), offset: offset as u32 };
        }
        Ok((place, u64::from(end - start)))
    }
}
