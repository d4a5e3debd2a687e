//! Where an image's bytes come from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Random access to bytes that do not change. Called from many threads at once.
#[allow(clippy::len_without_is_empty, reason = "an image is never empty")]
pub trait Source: Send + Sync {
    /// Number of bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset` on; fewer bytes than asked for are an error.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Says that `length` bytes from `offset` on will be read soon. A source that can't be read ahead ignores it.
    fn will_need(&self, offset: u64, length: u64) -> io::Result<()> {
        let _ = (offset, length);
        Ok(())
    }
}

impl Source for File {
    fn len(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A block device has no size in its metadata.
        use std::io::Seek as _;
        let mut handle: &File = self;
        handle.seek(io::SeekFrom::End(0))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn will_need(&self, offset: u64, length: u64) -> io::Result<()> {
        let length = std::num::NonZeroU64::new(length);
        Ok(rustix::fs::fadvise(self, offset, length, rustix::fs::Advice::WillNeed)?)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> io::Result<u64> {
        Ok(Vec::len(self) as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = start
            .checked_add(buf.len())
            .and_then(|end| self.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

impl<S: Source + ?Sized> Source for Arc<S> {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn will_need(&self, offset: u64, length: u64) -> io::Result<()> {
        (**self).will_need(offset, length)
    }
}
