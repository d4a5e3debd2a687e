//! Large files with the same content, found before anything is written.
//!
//! Only files of equal size are read for this, and compared by their [`content_digest`]; where
//! that is known already, they are not read.

use std::collections::{HashMap, VecDeque};

use super::WriteError;
use super::data::{File, ReadFailure};
use super::digest::{ContentDigestError, content_digest};
use super::plan::Plan;
use super::pool::{Pool, Worker};
use super::tree::NodeId;

/// For each large file whose content an earlier one has: that earlier one.
pub(super) fn find<'t>(
    files: &[File<'t>],
    block_size: u32,
    plan: &Plan<'_>,
    pool: &Pool<'t>,
    window: usize,
) -> Result<HashMap<NodeId, NodeId>, WriteError> {
    let mut large = files.iter().filter(|file| file.twin && file.size >= block_size.into());
    let mut first: HashMap<blake3::Hash, NodeId> = HashMap::new();
    let mut same = HashMap::new();
    let mut queue = VecDeque::new();
    loop {
        for &file in large.by_ref().take(window - queue.len()) {
            let job = move |worker: &mut Worker| match file.content.known_digest() {
                Some(known) => Ok(known.hash()),
                None => content_digest(file.content, &mut worker.raw).map(|digest| {
                    let hash = digest.hash();
                    file.content.remember_digest(digest);
                    hash
                }),
            };
            queue.push_back((file.id, pool.submit(job)));
        }
        let Some((id, pending)) = queue.pop_front() else { return Ok(same) };
        let digest = pending.wait()?.map_err(|error| ReadFailure::from(error).of(plan, id))?;
        match first.get(&digest) {
            Some(&earlier) => {
                same.insert(id, earlier);
            }
            None => {
                first.insert(digest, id);
            }
        }
    }
}

impl From<ContentDigestError> for ReadFailure {
    fn from(error: ContentDigestError) -> Self {
        match error {
            ContentDigestError::Read(source) => Self::Io(source),
            ContentDigestError::Changed => Self::Changed,
        }
    }
}
