//! Which chunks of an image are here, and which come next.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use mica_squashfs::chunks::{Chunk, ChunkTable};

use super::LazyOptions;

/// Longest run fetched by one request in the background.
pub(super) const RUN: u64 = 4 << 20;
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    Missing,
    Coming,
    Here,
}

/// What to fetch by one request.
pub(super) struct Next {
    /// Numbers of chunks.
    pub(super) run: Range<usize>,
    /// Whether nobody asked for it.
    pub(super) bulk: bool,
}

pub(super) struct State {
    pub(super) chunks: Vec<Chunked>,
    pub(super) missing: usize,
    /// Chunks that readers wait for.
    pub(super) wanted: VecDeque<usize>,
    /// Chunks of an earlier run, still to be looked at.
    pub(super) first: VecDeque<usize>,
    /// Chunks in the order in which readers first touched them.
    pub(super) touched: Vec<usize>,
    pub(super) seen: Vec<bool>,
    /// Requests on their way for what nobody asked for.
    pub(super) bulk: usize,
    /// Why the last request failed.
    pub(super) error: Option<String>,
    /// When a reader last waited in vain; `None` since something came.
    pub(super) gave_up: Option<Instant>,
    /// Whether the image has its name in the cache; `None` while chunks are missing.
    pub(super) cached: Option<bool>,
    pub(super) stopped: bool,
}

impl State {
    /// Finds the chunks that an earlier, interrupted fetch left.
    pub(super) fn new(file: &File, table: &ChunkTable, options: &LazyOptions) -> Self {
        let mut buffer = Vec::new();
        let mut here = |chunk: &Chunk| {
            buffer.resize(chunk.length as usize, 0);
            let read = file.read_exact_at(&mut buffer, chunk.offset).is_ok();
            if read && chunk.matches(&buffer) { Chunked::Here } else { Chunked::Missing }
        };
        let chunks: Vec<Chunked> = table.chunks().iter().map(&mut here).collect();
        let missing = chunks.iter().filter(|chunk| **chunk == Chunked::Missing).count();
        let first = options.first.iter().flat_map(|range| numbers(table, range)).collect();
        let seen = vec![false; chunks.len()];
        Self {
            chunks,
            missing,
            wanted: VecDeque::new(),
            first,
            touched: Vec::new(),
            seen,
            bulk: 0,
            error: None,
            gave_up: None,
            cached: None,
            stopped: false,
        }
    }

    /// What to fetch next: what a reader waits for in one piece, or a chunk of an earlier run; in bulk a run of them.
    pub(super) fn next(
        &mut self,
        table: &ChunkTable,
        background: bool,
        may_bulk: bool,
    ) -> Option<Next> {
        let one = |chunk| Next { run: chunk..chunk + 1, bulk: false };
        while let Some(chunk) = self.wanted.pop_front() {
            if self.chunks[chunk] != Chunked::Missing {
                continue;
            }
            let mut next = one(chunk);
            while self.wanted.front() == Some(&next.run.end)
                && self.chunks[next.run.end] == Chunked::Missing
            {
                self.wanted.pop_front();
                next.run.end += 1;
            }
            return Some(next);
        }
        while background && let Some(chunk) = self.first.pop_front() {
            if self.chunks[chunk] == Chunked::Missing {
                return Some(one(chunk));
            }
        }
        if !background || !may_bulk {
            return None;
        }
        let start = self.chunks.iter().position(|chunk| *chunk == Chunked::Missing)?;
        let limit = table.chunks()[start].offset + RUN;
        let more = (start + 1..self.chunks.len()).take_while(|i| {
            self.chunks[*i] == Chunked::Missing && table.chunks()[*i].end() <= limit
        });
        Some(Next { run: start..start + 1 + more.count(), bulk: true })
    }
}

/// The numbers of the chunks that hold a range.
pub(super) fn numbers(table: &ChunkTable, range: &Range<u64>) -> Range<usize> {
    let start = table.chunks().partition_point(|chunk| chunk.end() <= range.start);
    let end = table.chunks().partition_point(|chunk| chunk.offset < range.end);
    start..end.max(start)
}
