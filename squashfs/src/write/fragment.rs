//! Small files: read ahead in batches, packed into fragment blocks.
//!
//! A fragment block is closed before the file that would overflow it, at the cut with the smallest
//! path hash among those that leave it at least seven eighths full; the files behind the cut open
//! the next block. So where blocks end depends on which files are near, not on how many bytes come
//! before: after a change, the following cuts soon are the same as they were.

use std::collections::VecDeque;

use super::data::{File, ReadFailure};
use super::pool::{Pending, Pool, Worker};
use super::reuse::small_digest;
use super::tree::NodeId;
use crate::format::FragmentPosition;

/// A batch is closed at this many bytes or files.
const BATCH_BYTES: u64 = 256 << 10;
const BATCH_FILES: usize = 64;

/// The file and what happened.
pub(super) type Failure = (NodeId, ReadFailure);

/// Contents of consecutive small files.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// End in `bytes` and digest, if wanted, of each file.
    ends: VecDeque<(usize, Option<[u8; 32]>)>,
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
}

impl<'a, 't> Small<'a, 't> {
    pub(super) fn new(files: Vec<File<'t>>, pool: &'a Pool<'t>, jobs: usize) -> Self {
        let (depth, ahead, current) = (jobs * 8, VecDeque::new(), Batch::default());
        Self { pool, files, next: 0, depth, ahead, current }
    }

    /// Content and digest of the next small file, which is `id`.
    pub(super) fn take(&mut self, id: NodeId) -> Result<(&[u8], Option<[u8; 32]>), Failure> {
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
        Ok((bytes, digest))
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
            let job = move |worker: &mut Worker| read_batch(&batch, bytes, worker.keyed());
            self.ahead.push_back(self.pool.submit(job));
        }
    }
}

fn read_batch(files: &[File<'_>], mut bytes: Vec<u8>, keyed: bool) -> Result<Batch, Failure> {
    let total: u64 = files.iter().map(|file| file.size).sum();
    bytes.resize(total as usize, 0);
    let mut batch = Batch { bytes, ends: VecDeque::with_capacity(files.len()), taken: 0 };
    let mut at = 0;
    for file in files {
        let end = at + file.size as usize;
        let bytes = &mut batch.bytes[at..end];
        read_whole(file, bytes).map_err(|failure| (file.id, failure))?;
        batch.ends.push_back((end, (keyed || file.twin).then(|| small_digest(bytes))));
        at = end;
    }
    Ok(batch)
}

pub(super) fn read_whole(file: &File<'_>, bytes: &mut [u8]) -> Result<(), ReadFailure> {
    let open = file.content.open()?;
    open.read_exact_at(bytes, 0)?;
    if open.is_unchanged()? { Ok(()) } else { Err(ReadFailure::Changed) }
}

/// A file in a fragment block.
#[derive(Clone, Copy)]
pub(super) struct Member<'t> {
    pub(super) file: File<'t>,
    pub(super) digest: Option<[u8; 32]>,
    /// Its bytes are among those of the block; otherwise it is known and read if need be.
    pub(super) is_read: bool,
    /// Hash of its path.
    hash: u64,
    /// Where it starts in the block.
    start: usize,
}

impl Member<'_> {
    fn size(&self) -> usize {
        self.file.size as usize
    }
}

/// A fragment block ready to be compressed.
pub(super) struct Cut<'t> {
    /// Contents of the members that were read, one after the other.
    pub(super) bytes: Vec<u8>,
    /// Length of the block.
    pub(super) length: usize,
    pub(super) members: Vec<Member<'t>>,
    index: u32,
}

impl Cut<'_> {
    /// Path hash of its first file.
    pub(super) fn hash(&self) -> u64 {
        self.members[0].hash
    }

    /// Its files and where they are.
    pub(super) fn positions(&self) -> impl Iterator<Item = (NodeId, FragmentPosition)> {
        let at = |start: usize| FragmentPosition { index: self.index, offset: start as u32 };
        self.members.iter().map(move |member| (member.file.id, at(member.start)))
    }
}

/// The fragment block that fills.
pub(super) struct Filling<'t> {
    block_size: usize,
    bytes: Vec<u8>,
    length: usize,
    members: Vec<Member<'t>>,
    cuts: u32,
}

impl<'t> Filling<'t> {
    pub(super) fn new(block_size: usize) -> Self {
        Self { block_size, bytes: Vec::new(), length: 0, members: Vec::new(), cuts: 0 }
    }

    /// Adds a file with the hash of its path, its bytes if they were read, and its digest if that
    /// is known; returns the blocks that are complete with it.
    pub(super) fn add(
        &mut self,
        file: File<'t>,
        hash: u64,
        bytes: Option<&[u8]>,
        digest: Option<[u8; 32]>,
    ) -> Vec<Cut<'t>> {
        let (start, is_read) = (self.length, bytes.is_some());
        self.members.push(Member { file, digest, is_read, hash, start });
        self.bytes.extend_from_slice(bytes.unwrap_or_default());
        self.length += file.size as usize;
        let mut complete = Vec::new();
        while self.length > self.block_size {
            let cut = self.best_cut();
            complete.push(self.cut(cut));
        }
        complete
    }

    /// What is left at the end.
    pub(super) fn take_rest(&mut self) -> Option<Cut<'t>> {
        (!self.members.is_empty()).then(|| self.cut(self.members.len()))
    }

    /// Number of members to close the block with.
    fn best_cut(&self) -> usize {
        let fullest = self.members.partition_point(|member| member.start <= self.block_size) - 1;
        let least = self.block_size / 8 * 7;
        // A cut lies before a member, so the hash is that of the file that opens the next block.
        let candidates = self.members.iter().enumerate().take(fullest + 1).skip(1);
        let candidates = candidates.filter(|(_, member)| member.start >= least);
        let best = candidates.min_by_key(|(_, member)| member.hash);
        best.map_or(fullest.max(1), |(index, _)| index)
    }

    fn cut(&mut self, count: usize) -> Cut<'t> {
        let rest = self.members.split_off(count);
        let members = std::mem::replace(&mut self.members, rest);
        let length = self.members.first().map_or(self.length, |member| member.start);
        self.members.iter_mut().for_each(|member| member.start -= length);
        self.length -= length;
        let read = members.iter().filter(|member| member.is_read).map(Member::size).sum();
        let rest = self.bytes.split_off(read);
        let bytes = std::mem::replace(&mut self.bytes, rest);
        let index = self.cuts;
        self.cuts += 1;
        Cut { bytes, length, members, index }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts(sizes: &[(u64, usize)]) -> Vec<Vec<usize>> {
        let mut filling = Filling::new(1000);
        let mut blocks = Vec::new();
        for (count, &(hash, size)) in sizes.iter().enumerate() {
            let (id, content) = (NodeId::default(), &b"");
            let file = File { id, content, size: size as u64, twin: false, known: None };
            // Every third is not read.
            let bytes = vec![hash as u8; size];
            let read = (count % 3 > 0).then_some(&bytes[..]);
            blocks.extend(filling.add(file, hash, read, None));
        }
        blocks.extend(filling.take_rest());
        for (index, block) in blocks.iter().enumerate() {
            assert!(block.length <= 1000);
            assert!(block.positions().all(|(_, at)| at.index == index as u32));
            let read = block.members.iter().filter(|member| member.is_read);
            let bytes = read.flat_map(|member| vec![member.hash as u8; member.size()]);
            assert_eq!(block.bytes, bytes.collect::<Vec<u8>>());
        }
        let ends = |block: &Cut<'_>| {
            let starts: Vec<usize> = block.positions().map(|(_, at)| at.offset as usize).collect();
            let ends = starts.iter().skip(1).copied().chain([block.length]);
            starts.iter().zip(ends).map(|(start, end)| end - start).collect()
        };
        blocks.iter().map(ends).collect()
    }

    #[test]
    fn blocks_end_at_the_smallest_hash_in_the_last_eighth() {
        assert_eq!(cuts(&[(5, 999), (6, 1)]), [vec![999, 1]]);
        assert_eq!(cuts(&[(5, 999), (6, 2)]), [vec![999], vec![2]]);
        assert_eq!(
            cuts(&[(1, 400), (9, 480), (2, 50), (7, 60), (8, 50)]),
            [vec![400, 480], vec![50, 60, 50]]
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
