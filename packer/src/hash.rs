//! BLAKE3 of a file while it is written, although its first bytes are known last.
//!
//! BLAKE3 is a tree over pieces of 1 KiB: subtrees can be hashed on their own and merged. So all of
//! the file but its first group is hashed as it passes, and the first group, which stays in memory,
//! at the end, when header and superblock have been filled in.

use std::io::{self, Seek, SeekFrom, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use mica_graph::Digest;

/// Bytes of a subtree: a power of two.
const GROUP: u64 = 64 << 10;

/// Hashes bytes that come in order, of which the first [`GROUP`] may change until the end.
struct LateHead {
    /// The first group.
    head: Vec<u8>,
    /// Chaining values of the full groups after the first.
    groups: Vec<ChainingValue>,
    open: Hasher,
    length: u64,
}

impl LateHead {
    fn new() -> Self {
        Self { head: Vec::new(), groups: Vec::new(), open: Hasher::new(), length: 0 }
    }

    /// Appends.
    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (GROUP - self.length % GROUP) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if self.length < GROUP {
                self.head.extend_from_slice(now);
            } else {
                if self.length.is_multiple_of(GROUP) {
                    self.open = Hasher::new();
                    self.open.set_input_offset(self.length);
                }
                self.open.update(now);
            }
            self.length += now.len() as u64;
            if self.length.is_multiple_of(GROUP) && self.length > GROUP {
                self.groups.push(self.open.finalize_non_root());
            }
            bytes = later;
        }
    }

    /// Replaces bytes of the first group that were written already.
    fn replace(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let place = self.head.get_mut(at..at + bytes.len());
        place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self) -> Digest {
        if self.length <= GROUP {
            return blake3::hash(&self.head).into();
        }
        if !self.length.is_multiple_of(GROUP) {
            self.groups.push(self.open.finalize_non_root());
        }
        let mut first = Hasher::new();
        first.update(&self.head);
        self.groups.insert(0, first.finalize_non_root());
        let left = (left_subtree_len(self.length) / GROUP) as usize;
        let (left, right) = self.groups.split_at(left);
        let (left, right) = (merged(left), merged(right));
        merge_subtrees_root(&left, &right, Mode::Hash).into()
    }
}

/// The chaining value of groups that are a subtree.
fn merged(groups: &[ChainingValue]) -> ChainingValue {
    if let [one] = groups {
        return *one;
    }
    // As many groups to the left as the largest power of two that leaves some to the right.
    let (left, right) = groups.split_at(groups.len().next_power_of_two() / 2);
    merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
}

/// Bytes that are written and hashed at a time: a multiple of [`GROUP`], so that pieces of any
/// length are hashed as fast as long ones.
const STEP: usize = 8 * GROUP as usize;
/// Steps that may wait to be hashed.
const AHEAD: usize = 4;

/// Passes writes on and hashes them on a thread of its own: the whole file, and what follows
/// `offset`.
///
/// Writes go forward, but for those that replace bytes near the start of the file.
pub(crate) struct HashingWriter<'f, W> {
    out: &'f mut W,
    offset: u64,
    /// Where the next write goes.
    position: u64,
    /// Where all that was written ends, the open step included.
    end: u64,
    /// What is not passed on yet.
    step: Vec<u8>,
    steps: SyncSender<Vec<u8>>,
    /// Steps that were hashed come back as buffers.
    spare: Receiver<Vec<u8>>,
    hashing: JoinHandle<(LateHead, LateHead)>,
    /// What was replaced: position and bytes.
    replaced: Vec<(u64, Vec<u8>)>,
}

impl<'f, W: Write + Seek> HashingWriter<'f, W> {
    /// Leaves the first `offset` bytes of `out` to be filled in by [`HashingWriter::finish`].
    pub(crate) fn new(out: &'f mut W, offset: u64) -> io::Result<Self> {
        out.seek(SeekFrom::Start(offset))?;
        let (steps, incoming) = sync_channel::<Vec<u8>>(AHEAD);
        let (outgoing, spare) = sync_channel(AHEAD + 2);
        let hash = move || {
            let (mut whole, mut payload) = (LateHead::new(), LateHead::new());
            whole.update(&vec![0; offset as usize]);
            for step in incoming {
                whole.update(&step);
                payload.update(&step);
                // No error: whoever wrote may have ended.
                drop(outgoing.try_send(step));
            }
            (whole, payload)
        };
        let hashing = std::thread::Builder::new().name("hash".to_owned()).spawn(hash)?;
        let (position, end, replaced) = (offset, offset, Vec::new());
        let step = Vec::with_capacity(STEP);
        Ok(Self { out, offset, position, end, step, steps, spare, hashing, replaced })
    }

    /// Writes the first bytes, which `header` makes of the digest of the rest; returns the digest
    /// of the whole file.
    pub(crate) fn finish<E: From<io::Error>>(
        mut self,
        header: impl FnOnce(&Digest) -> Result<Vec<u8>, E>,
    ) -> Result<Digest, E> {
        self.pass_on()?;
        drop(self.steps);
        let broke_off = |_| io::Error::other("the hashing thread broke off");
        let (mut whole, mut payload) = self.hashing.join().map_err(broke_off)?;
        for (at, bytes) in &self.replaced {
            whole.replace(*at as usize, bytes)?;
            payload.replace((at - self.offset) as usize, bytes)?;
        }
        if self.offset > 0 {
            let header = header(&payload.finish())?;
            self.out.seek(SeekFrom::Start(0))?;
            self.out.write_all(&header)?;
            whole.replace(0, &header)?;
        }
        Ok(whole.finish())
    }
}

impl<W: Write> HashingWriter<'_, W> {
    /// Writes the open step and has it hashed.
    fn pass_on(&mut self) -> io::Result<()> {
        if self.step.is_empty() {
            return Ok(());
        }
        self.out.write_all(&self.step)?;
        let mut next = self.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(STEP));
        next.clear();
        let step = std::mem::replace(&mut self.step, next);
        // A thread that is gone panicked, which `finish` reports.
        drop(self.steps.send(step));
        Ok(())
    }
}

impl<W: Write> Write for HashingWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = if self.position == self.end {
            let written = bytes.len().min(STEP - self.step.len());
            self.step.extend_from_slice(&bytes[..written]);
            if self.step.len() == STEP {
                self.pass_on()?;
            }
            self.end += written as u64;
            written
        } else {
            let written = self.out.write(bytes)?;
            self.replaced.push((self.position, bytes[..written].to_vec()));
            written
        };
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on()?;
        self.out.flush()
    }
}

impl<W: Write + Seek> Seek for HashingWriter<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.pass_on()?;
        self.position = self.out.seek(to)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_bytes() {
        for length in
            [0, 1, 4096, 65_535, 65_536, 65_537, 131_072, 200_000, 655_360, 1_000_001, 5_300_000]
        {
            for offset in [0_usize, 4096] {
                let data: Vec<u8> = (0..length).map(|i: usize| (i * i / 7) as u8).collect();
                let mut out = io::Cursor::new(Vec::new());
                let mut writer = HashingWriter::new(&mut out, offset as u64).unwrap();
                for piece in data.chunks(7919) {
                    writer.write_all(piece).unwrap();
                }
                if length > 100 {
                    writer.seek(SeekFrom::Start(offset as u64)).unwrap();
                    writer.write_all(b"late").unwrap();
                    writer.seek(SeekFrom::Start((offset + length) as u64)).unwrap();
                }
                let mut payload = None;
                let digest = writer.finish(|digest| {
                    payload = Some(*digest);
                    Ok::<_, io::Error>(vec![7; offset])
                });
                let bytes = out.into_inner();
                assert_eq!(digest.unwrap(), Digest::of(&bytes), "{length} {offset}");
                let rest = bytes.get(offset..).unwrap_or_default();
                assert!(payload.is_none_or(|payload| payload == Digest::of(rest)));
            }
        }
    }
}
