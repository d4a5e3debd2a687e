//! Bounds on a tar, held while it is read: whoever takes it apart sees nothing that exceeds them.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

/// The most entries of a tar. Of each folder a hundred bytes are held until the end.
pub(crate) const MAX_ENTRIES: u64 = 2_000_000;
/// The largest file, holes included.
pub(crate) const MAX_FILE: u64 = 1 << 40;
/// What headers of their own may say of the next entry: long names, attributes.
pub(crate) const MAX_EXTENSION: u64 = 1 << 20;

const BLOCK: usize = 512;

/// A tar on its way, looked at.
pub(crate) struct Guard<R> {
    from: R,
    /// The header that is coming in, and how much of it is there.
    header: [u8; BLOCK],
    have: usize,
    /// Bytes of content until the next header.
    skip: u64,
    /// A PAX header that is coming in, and the length of what it says.
    pax: Option<(Vec<u8>, usize)>,
    /// What it said of the next entry's size.
    size: Option<u64>,
    /// A map of a sparse file follows, then so much content.
    map: Option<u64>,
    entries: u64,
    /// Nothing more is looked at.
    ended: bool,
}

impl<R: Read> Guard<R> {
    pub(crate) fn new(from: R) -> Self {
        let (header, have, skip) = ([0; BLOCK], 0, 0);
        let (pax, size, map) = (None, None, None);
        Self { from, header, have, skip, pax, size, map, entries: 0, ended: false }
    }

    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.ended {
            if self.skip > 0 {
                let passing = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                if let Some((said, _)) = &mut self.pax {
                    said.extend_from_slice(&bytes[..passing]);
                }
                self.skip -= passing as u64;
                bytes = &bytes[passing..];
                if self.skip == 0 {
                    self.read_pax()?;
                }
                continue;
            }
            let part = bytes.len().min(BLOCK - self.have);
            self.header[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == BLOCK {
                self.have = 0;
                self.block()?;
            }
        }
        Ok(())
    }

    fn block(&mut self) -> io::Result<()> {
        if let Some(content) = self.map {
            if self.header[504] != 1 {
                (self.map, self.skip) = (None, content);
            }
            return Ok(());
        }
        if self.header.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(());
        }
        let header = Header::from_byte_slice(&self.header);
        let kind = header.entry_type();
        let about_next = matches!(
            kind,
            EntryType::XHeader
                | EntryType::XGlobalHeader
                | EntryType::GNULongName
                | EntryType::GNULongLink
        );
        // Readers differ in whose size it is, if another such header comes between.
        if about_next && self.size.is_some() {
            return Err(bad("sizes that stand for two entries"));
        }
        let size = self.size.take().map_or_else(|| header.entry_size(), Ok)?;
        let content = size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX);
        if about_next {
            if size > MAX_EXTENSION {
                return Err(bad("a header that is too long"));
            }
            if kind == EntryType::XHeader {
                self.pax = Some((Vec::new(), size as usize));
            }
        } else {
            self.entries += 1;
            let whole = header.as_gnu().filter(|_| kind == EntryType::GNUSparse);
            let whole = whole.map_or(Ok(size), tar::GnuHeader::real_size)?;
            if self.entries > MAX_ENTRIES {
                return Err(bad("too many entries"));
            }
            if size.max(whole) > MAX_FILE {
                return Err(bad("a file that is too large"));
            }
            let extended = header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
            if kind == EntryType::GNUSparse && extended {
                self.map = Some(content);
                return Ok(());
            }
        }
        self.skip = content;
        if content == 0 { self.read_pax() } else { Ok(()) }
    }

    fn read_pax(&mut self) -> io::Result<()> {
        let Some((said, length)) = self.pax.take() else { return Ok(()) };
        let said = said.get(..length).unwrap_or(&said);
        for extension in PaxExtensions::new(said) {
            // One that can't be read is the reader's to refuse.
            let Ok(extension) = extension else { continue };
            if extension.key_bytes() == b"size" {
                let size = extension.value().ok().and_then(|text| text.parse().ok());
                self.size = Some(size.ok_or_else(|| bad("a size that is none"))?);
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.look(&buffer[..count])?;
        Ok(count)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryType, size: u64) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn look(guard: &mut Guard<io::Empty>, parts: &[Vec<u8>]) -> Result<(), String> {
        // In pieces of any size.
        let all = parts.concat();
        all.chunks(700).try_for_each(|part| guard.look(part)).map_err(|error| error.to_string())
    }

    fn pax(text: &str) -> Vec<u8> {
        let mut content = format!("{} {text}\n", text.len() + 4).into_bytes();
        let length = content.len() as u64;
        assert!((10..100).contains(&length));
        content.resize(512, 0);
        [header(EntryType::XHeader, length), content].concat()
    }

    #[test]
    fn bounds_are_held() {
        let file = || header(EntryType::Regular, 0);
        let one = || Guard::new(io::empty());
        assert_eq!(look(&mut one(), &[file(), file(), vec![0; 1024], vec![7; 99]]), Ok(()));
        let mut many = one();
        many.entries = MAX_ENTRIES - 1;
        assert_eq!(look(&mut many, &[file()]), Ok(()));
        assert_eq!(look(&mut many, &[file()]).unwrap_err(), "it has too many entries");
        let long = |kind| look(&mut one(), &[header(kind, MAX_EXTENSION + 1)]).unwrap_err();
        for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::XGlobalHeader] {
            assert_eq!(long(kind), "it has a header that is too long");
        }
        let large = look(&mut one(), &[header(EntryType::Regular, MAX_FILE + 1)]);
        assert_eq!(large.unwrap_err(), "it has a file that is too large");
        let large = look(&mut one(), &[pax("size=2199023255552"), file()]);
        assert_eq!(large.unwrap_err(), "it has a file that is too large");
        let twice = [pax("size=0000000000512"), header(EntryType::GNULongName, 0)];
        assert_eq!(
            look(&mut one(), &twice).unwrap_err(),
            "it has sizes that stand for two entries"
        );
        // What a record says of the size is skipped as content, whatever it looks like.
        let content = header(EntryType::XHeader, MAX_EXTENSION + 1);
        assert_eq!(look(&mut one(), &[pax("size=0000000000512"), file(), content, file()]), Ok(()));
    }
}
