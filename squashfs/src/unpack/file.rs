//! Regular files: batches of small ones, pieces of large ones.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Run, UnpackError, read_error};
use crate::read::{Block, FileBlocks, WalkEntry};

/// Blocks of one piece of a large file.
const PIECE: u64 = 32;
/// Files in a batch.
const BATCH: usize = 64;
/// Blocks in a batch, about.
const BATCH_BLOCKS: u64 = 32;
/// Directories in a batch. Each is an open descriptor, times the queue's length; a process may have 1024.
const BATCH_DIRECTORIES: usize = 8;

/// A file to make.
struct Task {
    entry: WalkEntry,
    directory: Arc<OwnedFd>,
    blocks: FileBlocks,
}

/// A large file that several threads write.
pub(super) struct Large {
    task: Task,
    /// Made by the first thread that comes.
    file: std::sync::OnceLock<std::fs::File>,
    /// One thread makes it, the others wait for that one call.
    making: std::sync::Mutex<()>,
    /// Pieces not written yet; who takes it to zero sets the attributes.
    left: AtomicU64,
}

/// What a thread is given to do.
pub(super) enum Job {
    /// Files to make and fill, one after the other.
    Small(Vec<SmallTask>),
    /// Blocks `first..end` of a file.
    Piece {
        /// The file.
        file: Arc<Large>,
        /// First block.
        first: u64,
        /// Behind the last block.
        end: u64,
    },
}

/// A file that one thread makes and fills.
pub(super) struct SmallTask(Task);

/// Small files not submitted yet.
#[derive(Default)]
pub(super) struct Batch {
    tasks: Vec<SmallTask>,
    blocks: u64,
    /// Changes of directory in the batch.
    directories: usize,
    /// Fragment block of the files in the batch.
    fragment: Option<u64>,
}

impl Batch {
    /// Adds a file; submits what is due.
    pub(super) fn add(
        &mut self,
        entry: WalkEntry,
        directory: Arc<OwnedFd>,
        blocks: FileBlocks,
        submit: &dyn Fn(Job),
    ) {
        let count = blocks.count();
        let fragment = blocks.fragment_offset();
        let task = Task { entry, directory, blocks };
        if count > PIECE {
            self.flush(submit);
            // A file of holes may have more blocks than anybody can count.
            let piece = PIECE.max(count / 4096);
            let left = AtomicU64::new(count.div_ceil(piece));
            let file = Arc::new(Large {
                task,
                file: Default::default(),
                making: Default::default(),
                left,
            });
            for first in (0..count).step_by(piece as usize) {
                let end = count.min(first + piece);
                submit(Job::Piece { file: Arc::clone(&file), first, end });
            }
            return;
        }
        let other = fragment.is_some() && self.fragment.is_some() && fragment != self.fragment;
        let full = self.tasks.len() >= BATCH || self.blocks >= BATCH_BLOCKS;
        if other || full || self.directories >= BATCH_DIRECTORIES {
            self.flush(submit);
        }
        let last = self.tasks.last().map(|SmallTask(task)| &task.directory);
        if last.is_none_or(|last| !Arc::ptr_eq(last, &task.directory)) {
            self.directories += 1;
        }
        self.fragment = fragment.or(self.fragment);
        self.blocks += count - u64::from(fragment.is_some());
        self.tasks.push(SmallTask(task));
    }

    pub(super) fn flush(&mut self, submit: &dyn Fn(Job)) {
        let batch = std::mem::take(self);
        if !batch.tasks.is_empty() {
            submit(Job::Small(batch.tasks));
        }
    }
}

impl Run<'_> {
    /// Does a job, unless another thread failed.
    pub(super) fn work(&self, job: Job) -> Result<(), UnpackError> {
        let mut buffer = Vec::new();
        match job {
            Job::Small(tasks) => {
                for SmallTask(task) in tasks {
                    if self.failed() {
                        return Ok(());
                    }
                    let file = self.create(&task)?;
                    self.fill(&task, &file, 0, task.blocks.count(), &mut buffer)?;
                    self.complete(&task, file)?;
                }
                Ok(())
            }
            Job::Piece { file: large, first, end } => {
                if self.failed() {
                    return Ok(());
                }
                let file = self.shared_file(&large)?;
                self.fill(&large.task, file, first, end, &mut buffer)?;
                if large.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    let file = file
                        .try_clone()
                        .map_err(|e| self.target.io_error("open", &large.task.entry.path, e))?;
                    self.complete(&large.task, file)?;
                }
                Ok(())
            }
        }
    }

    fn create(&self, task: &Task) -> Result<std::fs::File, UnpackError> {
        let file = self.target.create_file(&task.directory, &task.entry.path)?;
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(file)
    }

    fn shared_file<'l>(&self, large: &'l Large) -> Result<&'l std::fs::File, UnpackError> {
        let _making = large.making.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(file) = large.file.get() {
            return Ok(file);
        }
        let file = self.create(&large.task)?;
        Ok(large.file.get_or_init(|| file))
    }

    /// Writes blocks `first..end`; holes stay holes.
    fn fill(
        &self,
        task: &Task,
        file: &std::fs::File,
        first: u64,
        end: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), UnpackError> {
        let path = &task.entry.path;
        for (index, block) in task.blocks.stored(first..end) {
            block.and_then(|_| task.blocks.read(index, buffer)).map_err(|e| read_error(path, e))?;
            let offset = index * u64::from(task.blocks.block_size());
            file.write_all_at(buffer, offset)
                .map_err(|e| self.target.io_error("write", path, e))?;
            self.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives a file its size, where it ends in a hole, and its attributes.
    fn complete(&self, task: &Task, file: std::fs::File) -> Result<(), UnpackError> {
        let blocks = &task.blocks;
        if let Some(last) = blocks.count().checked_sub(1) {
            let block = blocks.block(last).map_err(|e| read_error(&task.entry.path, e))?;
            if matches!(block, Block::Hole { .. }) {
                file.set_len(blocks.size())
                    .map_err(|e| self.target.io_error("set the size of", &task.entry.path, e))?;
            }
        }
        self.attributes(&task.entry, &file.into())
    }
}
