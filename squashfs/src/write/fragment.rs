//! Small files: read ahead in batches, packed into fragment blocks.
//!
//! A fragment block is closed before the file that would overflow it, at the cut with the smallest
//! path hash among those that leave it at least three quarters full; the files behind the cut open
//! the next block. So where blocks end depends on which files are near, not on how many bytes come
//! before: after a change, the following cuts soon are the same as they were.

use std::collections::{HashMap, VecDeque};

use super::data::{File, ReadFailure};
use super::pool::{Pending, Pool, Worker};
use super::tree::NodeId;
use crate::format::FragmentPosition;

/// A batch is closed at this many bytes or files.
const BATCH_BYTES: u64 = 256 << 10;
const BATCH_FILES: usize = 64;

/// The file and what happened.
type Failure = (NodeId, ReadFailure);

/// Contents of consecutive small files.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// End in `bytes` and digest (of files with twins) of each file.
    ends: VecDeque<(usize, Option<blake3::Hash>)>,
    taken: usize,
}

/// Hands out the contents of small files in order, reading ahead.
pub(super) struct Small<'a, 't> {
    pool: &'a Pool<'t>,
    files: Vec<File<'t>>,
    /// First file that no batch has been submitted for.
    next: usize,
    depth: usize,
    ahead: VecDeque<Pending<Result<Batch, Failure>>>,
    current: Batch,
    seen: HashMap<blake3::Hash, NodeId>,
}

impl<'a, 't> Small<'a, 't> {
    pub(super) fn new(files: Vec<File<'t>>, pool: &'a Pool<'t>, jobs: usize) -> Self {
        Self {
            pool,
            files,
            next: 0,
            depth: jobs * 8,
            ahead: VecDeque::new(),
            current: Batch::default(),
            seen: HashMap::new(),
        }
    }

    /// The content of the next small file, which is `id`, and the first file with the same content.
    pub(super) fn take(&mut self, id: NodeId) -> Result<(&[u8], Option<NodeId>), Failure> {
        let (end, digest) = loop {
            if let Some(next) = self.current.ends.pop_front() {
                break next;
            }
            self.fill();
            self.pool.give_back(std::mem::take(&mut self.current.bytes));
            let pending = self.ahead.pop_front().expect("a small file is taken once, in order");
            self.current = pending.wait().map_err(|_| (id, ReadFailure::Worker))??;
            self.fill();
        };
        let batch = &mut self.current;
        let bytes = &batch.bytes[batch.taken..end];
        batch.taken = end;
        let first = digest.and_then(|digest| match self.seen.get(&digest) {
            Some(&first) => Some(first),
            None => {
                self.seen.insert(digest, id);
                None
            }
        });
        Ok((bytes, first))
    }

    fn fill(&mut self) {
        while self.ahead.len() < self.depth && self.next < self.files.len() {
            let mut bytes = 0;
            let batch: Vec<File<'t>> = self.files[self.next..]
                .iter()
                .take(BATCH_FILES)
                .take_while(|file| {
                    bytes += file.size;
                    bytes <= BATCH_BYTES || bytes == file.size
                })
                .copied()
                .collect();
            self.next += batch.len();
            let bytes = self.pool.buffer();
            let job = move |_: &mut Worker| read_batch(&batch, bytes);
            self.ahead.push_back(self.pool.submit(job));
        }
    }
}

fn read_batch(files: &[File<'_>], mut bytes: Vec<u8>) -> Result<Batch, Failure> {
    let total: u64 = files.iter().map(|file| file.size).sum();
    bytes.resize(total as usize, 0);
    let mut batch = Batch { bytes, ends: VecDeque::with_capacity(files.len()), taken: 0 };
    let mut at = 0;
    for file in files {
        let end = at + file.size as usize;
        let bytes = &mut batch.bytes[at..end];
        read_whole(file, bytes).map_err(|failure| (file.id, failure))?;
        batch.ends.push_back((end, file.twin.then(|| blake3::hash(bytes))));
        at = end;
    }
    Ok(batch)
}

fn read_whole(file: &File<'_>, bytes: &mut [u8]) -> Result<(), ReadFailure> {
    let open = file.content.open()?;
    open.read_exact_at(bytes, 0)?;
    if open.is_unchanged()? { Ok(()) } else { Err(ReadFailure::Changed) }
}

/// A fragment block ready to be compressed.
pub(super) struct Cut {
    pub(super) bytes: Vec<u8>,
    pub(super) members: Vec<(NodeId, FragmentPosition)>,
    /// Path hash of its first file.
    pub(super) hash: u64,
}

/// The fragment block that fills.
pub(super) struct Filling {
    block_size: usize,
    bytes: Vec<u8>,
    /// File, path hash, start in `bytes`.
    members: Vec<(NodeId, u64, usize)>,
    cuts: u32,
}

impl Filling {
    pub(super) fn new(block_size: usize) -> Self {
        Self { block_size, bytes: Vec::new(), members: Vec::new(), cuts: 0 }
    }

    /// Adds a file; returns the blocks that are complete with it.
    pub(super) fn add(&mut self, id: NodeId, hash: u64, bytes: &[u8]) -> Vec<Cut> {
        self.members.push((id, hash, self.bytes.len()));
        self.bytes.extend_from_slice(bytes);
        let mut complete = Vec::new();
        while self.bytes.len() > self.block_size {
            let cut = self.best_cut();
            complete.push(self.cut(cut));
        }
        complete
    }

    /// What is left at the end.
    pub(super) fn take_rest(&mut self) -> Option<Cut> {
        (!self.members.is_empty()).then(|| self.cut(self.members.len()))
    }

    /// Number of members to close the block with.
    fn best_cut(&self) -> usize {
        let fullest = self.members.partition_point(|&(_, _, start)| start <= self.block_size) - 1;
        let least = self.block_size / 4 * 3;
        // A cut lies before a member, so the hash is that of the file that opens the next block.
        let candidates = self.members.iter().enumerate().take(fullest + 1).skip(1);
        let candidates = candidates.filter(|(_, (_, _, start))| *start >= least);
        let best = candidates.min_by_key(|(_, (_, hash, _))| *hash);
        best.map_or(fullest.max(1), |(index, _)| index)
    }

    fn cut(&mut self, count: usize) -> Cut {
        let at = self.members.get(count).map_or(self.bytes.len(), |&(_, _, start)| start);
        let rest = self.bytes.split_off(at);
        let bytes = std::mem::replace(&mut self.bytes, rest);
        let (index, hash) = (self.cuts, self.members[0].1);
        self.cuts += 1;
        let members = self.members.drain(..count);
        let place = |(id, _, start)| (id, FragmentPosition { index, offset: start as u32 });
        let members = members.map(place).collect();
        for (_, _, start) in &mut self.members {
            *start -= at;
        }
        Cut { bytes, members, hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(sizes: &[(u64, usize)]) -> Vec<Vec<usize>> {
        let mut filling = Filling::new(1000);
        let mut blocks = Vec::new();
        for &(hash, size) in sizes {
            blocks.extend(filling.add(NodeId::default(), hash, &vec![hash as u8; size]));
        }
        blocks.extend(filling.take_rest());
        for (index, block) in blocks.iter().enumerate() {
            assert!(block.bytes.len() <= 1000);
            assert!(block.members.iter().all(|(_, at)| at.index == index as u32));
        }
        let ends = |block: &Cut| {
            let starts: Vec<usize> =
                block.members.iter().map(|(_, at)| at.offset as usize).collect();
            let ends = starts.iter().skip(1).copied().chain([block.bytes.len()]);
            starts.iter().zip(ends).map(|(start, end)| end - start).collect()
        };
        blocks.iter().map(ends).collect()
    }

    #[test]
    fn blocks_end_at_the_smallest_hash_in_the_last_quarter() {
        assert_eq!(cuts(&[(5, 999), (6, 1)]), [vec![999, 1]]);
        assert_eq!(cuts(&[(5, 999), (6, 2)]), [vec![999], vec![2]]);
        assert_eq!(
            cuts(&[(1, 400), (9, 400), (2, 100), (7, 90), (8, 50)]),
            [vec![400, 400], vec![100, 90, 50]]
        );
    }

    #[test]
    fn cuts_come_back_after_an_insertion() {
        let files: Vec<(u64, usize)> =
            (0..400_u64).map(|i| (super::super::data::path_hash(&i.to_le_bytes()), 20)).collect();
        let before = cuts(&files).len();
        let mut changed = files.clone();
        changed.insert(3, (77, 33));
        let tail =
            |blocks: Vec<Vec<usize>>| blocks.into_iter().rev().take(before - 3).collect::<Vec<_>>();
        assert_eq!(tail(cuts(&files)), tail(cuts(&changed)));
    }
}
