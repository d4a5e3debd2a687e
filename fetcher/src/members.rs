//! The members of a tar in a file: where each is, found without taking in more than their names.
//!
//! Bounds: [`MAX_MEMBERS`] members, [`MAX_EXTENSION`] bytes of what a PAX or GNU header says of the member behind it. Contents
//! are skipped, so a hole of any size costs nothing, and what a member is has no influence on how much of it is kept.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tar::{EntryType, Header, PaxExtensions};

/// A tar with more members than this is none of ours.
pub(crate) const MAX_MEMBERS: u64 = 300_000;
/// Nor is one that says more than this of a member before it comes.
const MAX_EXTENSION: u64 = 64 << 10;

const BLOCK: u64 = 512;

/// A regular file in a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    /// Where its content begins.
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// Walks a tar from its beginning.
pub(crate) struct Members<'f> {
    file: &'f File,
    at: u64,
    seen: u64,
}

/// What headers of their own say of the next member.
#[derive(Default)]
struct Said {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<'f> Members<'f> {
    pub(crate) fn new(file: &'f File) -> Self {
        Self { file, at: 0, seen: 0 }
    }

    /// The next regular file; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut said = Said::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            self.seen += 1;
            if self.seen > MAX_MEMBERS {
                return Err(bad(format!("it has more than {MAX_MEMBERS} members")));
            }
            let kind = header.entry_type();
            let about_next = matches!(kind, EntryType::XHeader | EntryType::GNULongName);
            let size = match said.size {
                Some(size) if !about_next => size,
                _ => header.entry_size()?,
            };
            let offset = self.at + BLOCK;
            self.at = size
                .checked_next_multiple_of(BLOCK)
                .and_then(|size| size.checked_add(offset))
                .filter(|end| i64::try_from(*end).is_ok())
                .ok_or_else(|| bad("a member of it is impossibly large".to_owned()))?;
            match kind {
                EntryType::XHeader => self.pax(offset, size, &mut said)?,
                EntryType::GNULongName => said.name = Some(self.long_name(offset, size)?),
                EntryType::Regular | EntryType::Continuous => {
                    let name = said.name.unwrap_or_else(|| header.path_bytes().into_owned());
                    return Ok(Some(Member { name, offset, size }));
                }
                EntryType::GNUSparse => {
                    self.skip_map(&header, offset)?;
                    said = Said::default();
                }
                EntryType::GNULongLink | EntryType::XGlobalHeader => {}
                _ => said = Said::default(),
            }
        }
    }

    /// The header that comes next; `None` at the end.
    fn header(&self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK as usize];
        match self.file.read_exact_at(&mut block, self.at) {
            Ok(()) => {}
            // Some writers leave out the blocks of zeros at the end.
            Err(_) if self.at > 0 && self.at == self.file.metadata()?.len() => return Ok(None),
            Err(error) => return Err(error),
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        match header.cksum()? == sum {
            true => Ok(Some(header)),
            false => Err(bad("it is no tar, or damaged".to_owned())),
        }
    }

    fn extension(&self, offset: u64, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(bad(format!("a header of it has more than {MAX_EXTENSION} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn pax(&self, offset: u64, size: u64, said: &mut Said) -> io::Result<()> {
        for extension in PaxExtensions::new(&self.extension(offset, size)?) {
            let extension = extension?;
            match extension.key_bytes() {
                b"path" => said.name = Some(extension.value_bytes().to_vec()),
                b"size" => {
                    let size = extension.value().ok().and_then(|text| text.parse().ok());
                    said.size = Some(size.ok_or_else(|| bad("a size in it is none".to_owned()))?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn long_name(&self, offset: u64, size: u64) -> io::Result<Vec<u8>> {
        let mut name = self.extension(offset, size)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// GNU's sparse files have a map in blocks between header and content; they are nothing that we want.
    fn skip_map(&mut self, header: &Header, offset: u64) -> io::Result<()> {
        let mut more = header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
        let mut at = offset;
        while more {
            let mut block = [0; BLOCK as usize];
            self.file.read_exact_at(&mut block, at)?;
            more = block[504] == 1;
            at += BLOCK;
            self.at += BLOCK;
        }
        Ok(())
    }
}

fn bad(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
