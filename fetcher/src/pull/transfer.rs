//! One step of bringing an image in: a request, or a copy.

use std::fs::File;
use std::io::{self, Read};

use super::{Job, PIECE, PullError, Sink};
use crate::cache::CacheError;
use crate::cache::borrowed::write::NotTaken;
use crate::delta;
use crate::progress::Event;
use crate::registry::RegistryError;

impl Job<'_> {
    /// Copies a run of chunks from an image that is here.
    pub(super) fn copy(
        &self,
        sink: &mut dyn Sink,
        file: &File,
        mut offset: u64,
        mut length: u64,
        came: &mut Came,
    ) -> Result<(), TransferError> {
        let mut buffer = vec![0; PIECE];
        while length > 0 {
            self.check_stop().map_err(TransferError::Pull)?;
            let n = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
            // A source that became unreadable spoils the digest, and then all is fetched.
            if let Err(error) = delta::read(file, &mut buffer[..n], offset) {
                tracing::warn!(%error, "cannot copy from an earlier image");
            }
            self.append(sink, &buffer[..n])?;
            offset += n as u64;
            length -= n as u64;
            came.copied += n as u64;
        }
        Ok(())
    }

    /// One request's worth, up to `until`.
    pub(super) fn transfer(
        &self,
        sink: &mut dyn Sink,
        until: u64,
        came: &mut Came,
    ) -> Result<(), TransferError> {
        let stream = self.registry.blob(self.blob, sink.at()..until)?;
        let mut reader = stream.reader;
        // From a source that ignores ranges, what we have comes again; and the rest may as well come now.
        let mut skip = sink.at().saturating_sub(stream.start);
        let until = if skip > 0 { self.blob.size } else { until };
        let mut buffer = vec![0; PIECE];
        while sink.at() < until {
            self.check_stop().map_err(TransferError::Pull)?;
            let n = match reader.read(&mut buffer) {
                Ok(0) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.broken(e)),
            };
            came.received += n as u64;
            let skipped = usize::try_from(skip).unwrap_or(n).min(n);
            skip -= skipped as u64;
            let left = usize::try_from(until - sink.at()).unwrap_or(usize::MAX);
            let fresh = &buffer[skipped..n];
            self.append(sink, &fresh[..fresh.len().min(left)])?;
        }
        Ok(())
    }

    pub(crate) fn append(&self, sink: &mut dyn Sink, bytes: &[u8]) -> Result<(), TransferError> {
        match sink.take(bytes) {
            Ok(()) => {}
            Err(NotTaken::Io(source)) if crate::file::is_full(&source) => {
                return Err(TransferError::Full(source));
            }
            Err(NotTaken::Io(source)) => {
                let path = sink.path().to_owned();
                let error = crate::file::FileError { verb: "write", path, source };
                return Err(TransferError::Pull(CacheError::File(error).into()));
            }
            Err(NotTaken::Wrong { expected, found }) => {
                let registry = self.registry.address().to_owned();
                let wrong = RegistryError::WrongBytes { registry, expected, found };
                return Err(TransferError::Wrong(wrong));
            }
        }
        self.progress.event(Event::Bytes { layer: self.layer, bytes: bytes.len() as u64 });
        Ok(())
    }

    fn broken(&self, source: io::Error) -> TransferError {
        let registry = self.registry.address().to_owned();
        TransferError::Registry(RegistryError::Broken {
            registry,
            digest: self.blob.digest,
            source,
        })
    }
}

/// Whence the bytes of an image came.
#[derive(Default)]
pub(crate) struct Came {
    pub(crate) received: u64,
    pub(super) copied: u64,
    pub(super) patched: bool,
    /// Bytes of a patch that were here.
    pub(crate) resumed: u64,
}

pub(crate) enum TransferError {
    Registry(RegistryError),
    /// Bytes that are known to be wrong.
    Wrong(RegistryError),
    Full(io::Error),
    Pull(PullError),
}

impl From<RegistryError> for TransferError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}
