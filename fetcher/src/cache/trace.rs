//! Which parts of an image were touched first, noted by one run for the next.

use std::ops::Range;
use std::path::PathBuf;

use mica_graph::Digest;

use super::names::{check_line, checked};
use super::{Cache, CacheError};
use crate::file;

/// A note of more bytes than this is none.
const MAX: u64 = 4 << 20;

impl Cache {
    fn trace_path(&self, digest: &Digest) -> PathBuf {
        self.folder("touched").join(digest.hex())
    }

    /// What an earlier run touched of an image, in its order; nothing if that is not known.
    pub fn trace(&self, digest: &Digest) -> Vec<Range<u64>> {
        let bytes = file::read_small(&self.trace_path(digest), MAX).ok().flatten();
        parse(bytes.as_deref().and_then(checked).unwrap_or_default())
    }

    /// Notes what a run touched. The note of a run that touched more stays.
    pub fn keep_trace(&self, digest: &Digest, ranges: &[Range<u64>]) -> Result<(), CacheError> {
        if ranges.len() <= self.trace(digest).len() {
            return Ok(());
        }
        let pairs: Vec<(u64, u64)> = ranges.iter().map(|range| (range.start, range.end)).collect();
        let body = serde_json::to_vec(&pairs).expect("numbers");
        let mut bytes = check_line(&body).into_bytes();
        bytes.extend_from_slice(&body);
        Ok(self.staging.write(&self.trace_path(digest), &bytes)?)
    }
}

/// What cannot be read is not known.
pub(crate) fn parse(body: &[u8]) -> Vec<Range<u64>> {
    let pairs: Vec<(u64, u64)> = serde_json::from_slice(body).unwrap_or_default();
    pairs.into_iter().map(|(start, end)| start..end).collect()
}
