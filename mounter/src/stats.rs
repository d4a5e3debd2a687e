//! Counting requests: the measure of a FUSE server is how often the kernel has to ask.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::sys;

macro_rules! operations {
    ($($name:ident $text:literal)*) => {
        /// A kind of request.
        #[derive(Debug, Clone, Copy)]
        pub(crate) enum Op { $($name),* }

        const NAMES: &[&str] = &[$($text),*];
    };
}

operations! {
    Lookup "lookup" Forget "forget" Getattr "getattr" Setattr "setattr" Readlink "readlink"
    Mknod "mknod" Mkdir "mkdir" Unlink "unlink" Rmdir "rmdir" Symlink "symlink" Rename "rename"
    Link "link" Open "open" Read "read" Write "write" Release "release" Fsync "fsync"
    Opendir "opendir" Readdir "readdir" Readdirplus "readdirplus"
    Fsyncdir "fsyncdir" Statfs "statfs" Setxattr "setxattr" Getxattr "getxattr"
    Listxattr "listxattr" Removexattr "removexattr" Create "create" Fallocate "fallocate"
    Lseek "lseek" CopyFileRange "copy_file_range" Ioctl "ioctl"
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// Counters, one for each kind of request.
#[derive(Debug)]
pub(crate) struct Counters {
    counts: [AtomicU64; NAMES.len()],
}

impl Counters {
    pub(crate) fn new() -> Counters {
        Counters { counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    pub(crate) fn count(&self, op: Op) {
        self.counts[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn requests(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        NAMES.iter().copied().zip(counts).filter(|&(_, count)| count > 0).collect()
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// What a mount has done so far.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests of the kernel by operation; those that never came are left out.
    pub requests: Vec<(&'static str, u64)>,
    /// Inodes held in memory; 0 once the mount is gone.
    pub nodes: usize,
}

impl Stats {
    /// Requests of one operation.
    pub fn requests_of(&self, operation: &str) -> u64 {
        self.requests.iter().find(|(name, _)| *name == operation).map_or(0, |&(_, n)| n)
    }

    /// Requests of all operations.
    pub fn total(&self) -> u64 {
        self.requests.iter().map(|&(_, count)| count).sum()
    }

    /// Asks the server of the mount that `path` is on, whichever process that is. `None`: it is not a mount of ours.
    pub fn of(path: &Path) -> io::Result<Option<Stats>> {
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let text = match sys::stats_text(file) {
            Ok(text) => text,
            Err(rustix::io::Errno::NOTTY | rustix::io::Errno::NOSYS) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        Ok(std::str::from_utf8(&text).ok().and_then(Stats::parse))
    }

    /// What is answered to [`Stats::of`]: the nodes, then a line for each operation.
    pub(crate) fn text(&self) -> String {
        let lines = self.requests.iter().map(|(name, count)| format!("{name} {count}\n"));
        format!("{}\n{}", self.nodes, lines.collect::<String>())
    }

    fn parse(text: &str) -> Option<Stats> {
        let mut lines = text.lines();
        let nodes = lines.next()?.parse().ok()?;
        let requests = lines.filter_map(|line| {
            let (name, count) = line.split_once(' ')?;
            // A server of another version may count what we don't know.
            Some((*NAMES.iter().find(|known| **known == name)?, count.parse().ok()?))
        });
        Some(Stats { requests: requests.collect(), nodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_survive_their_text_and_fit() {
        let requests = NAMES.iter().map(|&name| (name, u64::MAX)).collect();
        let stats = Stats { requests, nodes: usize::MAX };
        assert_eq!(Stats::parse(&stats.text()), Some(stats.clone()));
        assert!(stats.text().len() < sys::TEXT);
    }
}
