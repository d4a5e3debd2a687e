//! Content of the layers' files, block by block, and decoding ahead of those who read in sequence.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use mica_squashfs::{Block, FileBlocks, Image, ReadError};

use crate::blocks::{BlockCache, BlockKey};
use crate::lower::LowerError;
use crate::stack::Stack;
use crate::trace::{Progress, Recorder, Touch, Trace};

/// Blocks decoded ahead of a reader.
const AHEAD: u64 = 3;
/// Wishes that may wait; more are dropped, since their readers are busy anyway.
const QUEUE: usize = 32;
const MAX_WORKERS: usize = 4;

/// The images and the cache of their blocks.
pub(crate) struct Decoder {
    pub(crate) stack: Stack,
    blocks: BlockCache,
    limit: usize,
    /// Where a trace is recorded.
    pub(crate) recorder: Option<Arc<Recorder>>,
    /// Where a trace is read ahead.
    progress: OnceLock<Progress>,
    ended: AtomicBool,
}

/// A file whose blocks are known, and how far it was read.
pub(crate) struct OpenFile {
    pub(crate) layer: usize,
    /// Its inode, for traces.
    inode: u64,
    pub(crate) blocks: FileBlocks,
    /// Where the last read ended.
    end: AtomicU64,
    /// The first block that nobody asked to decode ahead.
    asked: AtomicU64,
}

impl OpenFile {
    pub(crate) fn new(layer: usize, inode: u64, blocks: FileBlocks) -> OpenFile {
        let (end, asked) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
        OpenFile { layer, inode, blocks, end, asked }
    }

    /// Notes a read; says whether it goes on where the one before ended.
    pub(crate) fn goes_on(&self, offset: u64, end: u64) -> bool {
        let before = self.end.swap(end, Ordering::Relaxed);
        if before != offset {
            self.asked.store(0, Ordering::Relaxed);
        }
        before == offset
    }
}

impl Decoder {
    pub(crate) fn new(stack: Stack, cache_bytes: usize, record: bool) -> Decoder {
        Decoder {
            stack,
            blocks: BlockCache::new(cache_bytes),
            limit: cache_bytes,
            recorder: record.then(Arc::default),
            progress: OnceLock::new(),
            ended: AtomicBool::new(false),
        }
    }

    /// Says to traces that a reader asks for a block.
    fn note(&self, file: &OpenFile, block: u64) {
        if self.recorder.is_none() && self.progress.get().is_none() {
            return;
        }
        let touch = Touch { layer: file.layer as u32, inode: file.inode, block };
        if let Some(recorder) = &self.recorder {
            recorder.note(touch);
        }
        if let Some(progress) = self.progress.get() {
            progress.note(touch);
        }
    }

    /// Decodes the blocks of a trace a little before they are asked for. `open` finds a file by its place in a layer.
    pub(crate) fn follow(&self, trace: &Trace, open: impl Fn(Touch) -> Option<Arc<OpenFile>>) {
        let progress = self.progress.get_or_init(|| Progress::new(trace));
        // The end may have come before the beginning; one of the two sees the other.
        if self.ended.load(Ordering::SeqCst) {
            progress.end();
        }
        // Half of the cache is for what readers ask for besides.
        let block_size = self.stack.layers.iter().map(|l| l.image.superblock().block_size).max();
        let window = self.limit / 2 / block_size.unwrap_or(1 << 17).max(1) as usize;
        let mut at = 0;
        while at < trace.len() {
            let Some(readers) = progress.wait(at, window) else { return };
            // What readers have asked for already needs no reading ahead.
            at = at.max(readers);
            let Some(&touch) = trace.touches.get(at) else { return };
            if let Some(file) = open(touch) {
                self.prepare(&file, touch.block);
            }
            at += 1;
        }
    }

    /// Nobody reads any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(progress) = self.progress.get() {
            progress.end();
        }
    }

    pub(crate) fn image(&self, layer: usize) -> &Image {
        // Layer numbers come from walking this very stack.
        &self.stack.layers[layer].image
    }

    pub(crate) fn fail(&self, layer: usize, block: Option<u64>, source: ReadError) -> LowerError {
        let name = self.stack.layers.get(layer).map_or("?", |l| &l.name);
        LowerError { layer: name.to_owned(), block, source }
    }

    /// Calls `sink` with the bytes of block `index` of a file, and how many there are; `None` for zeros that are
    /// not stored. A block that is taken `whole` is in the kernel's cache then, and is not kept here.
    pub(crate) fn with_block<T>(
        &self,
        file: &OpenFile,
        index: u64,
        whole: bool,
        sink: impl FnOnce(Option<&[u8]>, usize) -> T,
    ) -> Result<T, LowerError> {
        let fail = |source| self.fail(file.layer, Some(index), source);
        self.note(file, index);
        let (block, start, len, max) = match file.blocks.block(index).map_err(fail)? {
            Block::Hole { len } => return Ok(sink(None, len as usize)),
            Block::Data { block, len } => (block, 0, len as usize, len as usize),
            Block::Fragment { block, start, len } => {
                (block, start as usize, len as usize, file.blocks.block_size() as usize)
            }
        };
        let key = BlockKey { layer: file.layer as u32, offset: block.offset };
        let image = self.image(file.layer);
        let data = self.blocks.get(key, |out| image.read_block(&block, max, out)).map_err(fail)?;
        let bytes = data.get(start..start + len).ok_or_else(|| {
            let (have, want) = (data.len(), start + len);
            fail(ReadError::BlockLength { position: block.offset, have, want })
        })?;
        let result = sink(Some(bytes), len);
        drop(data);
        if whole && max == len {
            self.blocks.forget(key);
        }
        Ok(result)
    }

    /// Whether a block is at hand, or on its way.
    pub(crate) fn is_decoded(&self, file: &OpenFile, index: u64) -> bool {
        match file.blocks.block(index) {
            Ok(Block::Data { block, .. } | Block::Fragment { block, .. }) => {
                self.blocks.contains(BlockKey { layer: file.layer as u32, offset: block.offset })
            }
            Ok(Block::Hole { .. }) => true,
            Err(_) => false,
        }
    }

    fn prepare(&self, file: &OpenFile, index: u64) {
        let (block, len) = match file.blocks.block(index) {
            Ok(Block::Data { block, len }) => (block, len),
            Ok(Block::Fragment { block, .. }) => (block, file.blocks.block_size()),
            _ => return,
        };
        let key = BlockKey { layer: file.layer as u32, offset: block.offset };
        let image = self.image(file.layer);
        let decoded = self.blocks.get(key, |out| image.read_block(&block, len as usize, out));
        if decoded.is_err() {
            tracing::debug!(index, "a block could not be decoded ahead; its reader will see why");
        }
    }
}

/// Threads that decode ahead; started when somebody first reads in sequence, ended with the mount.
#[derive(Default)]
pub(crate) struct Ahead {
    queue: OnceLock<SyncSender<Wish>>,
}

struct Wish {
    file: Arc<OpenFile>,
    index: u64,
}

impl Ahead {
    /// Asks for the blocks from `next` on.
    pub(crate) fn ask(&self, decoder: &Arc<Decoder>, file: &Arc<OpenFile>, next: u64) {
        let until = (next + AHEAD).min(file.blocks.count());
        let from = next.max(file.asked.load(Ordering::Relaxed));
        if from >= until {
            return;
        }
        let queue = self.queue.get_or_init(|| start(decoder));
        for index in from..until {
            if queue.try_send(Wish { file: Arc::clone(file), index }).is_err() {
                return;
            }
        }
        file.asked.store(until, Ordering::Relaxed);
    }
}

fn start(decoder: &Arc<Decoder>) -> SyncSender<Wish> {
    let (sender, receiver) = sync_channel(QUEUE);
    let receiver = Arc::new(Mutex::new(receiver));
    let workers = thread::available_parallelism().map_or(1, |n| n.get() / 2);
    for _ in 0..workers.clamp(1, MAX_WORKERS) {
        let (decoder, receiver) = (Arc::clone(decoder), Arc::clone(&receiver));
        let work = move || work(&decoder, &receiver);
        // Without a thread nothing is decoded ahead: the queue fills up and wishes are dropped.
        if let Err(error) = thread::Builder::new().name("mica-ahead".to_owned()).spawn(work) {
            tracing::warn!(%error, "no thread to decode ahead");
        }
    }
    sender
}

fn work(decoder: &Decoder, receiver: &Mutex<Receiver<Wish>>) {
    loop {
        let wish = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Wish { file, index }) = wish else { return };
        decoder.prepare(&file, index);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_reads_ahead_ends_also_if_the_end_came_first() {
        let touch = |block| Touch { layer: 0, inode: 0, block };
        let trace = Trace { touches: (0..10_000).map(touch).collect() };
        let decoder = Arc::new(Decoder::new(Stack::default(), 1 << 20, false));
        decoder.end();
        let (done, ended) = std::sync::mpsc::channel();
        thread::spawn(move || {
            decoder.follow(&trace, |_| None);
            done.send(())
        });
        ended.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}
