//! How many files the server may have open: as many as the system lets it, whatever its caller's soft limit was.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError, Weak};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::tree::Node;
use crate::tree::node::OpenFile;

/// The soft and the hard limit of open files of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// The soft limit; `None`: unlimited.
    pub soft: Option<u64>,
    /// The hard limit; `None`: unlimited.
    pub hard: Option<u64>,
}

/// Raises this process's soft limit of open files to the hard one, once; says what the limits were. Whoever starts
/// programs that are not its own gives them those.
pub fn raise_descriptor_limit() -> DescriptorLimit {
    static BEFORE: OnceLock<DescriptorLimit> = OnceLock::new();
    *BEFORE.get_or_init(|| {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum
            && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        {
            tracing::debug!(%error, "the limit of open files stays");
        }
        DescriptorLimit { soft: current, hard: maximum }
    })
}

/// Files of the upper that are kept open only to save opening them again; the oldest are closed.
pub(crate) struct OpenFiles {
    queue: Mutex<VecDeque<Weak<Node>>>,
    limit: usize,
    /// All that this process may have.
    total: u64,
}

/// Descriptors that are left for what is done with one request.
const RESERVE: u64 = 24;

impl OpenFiles {
    /// For a half of the descriptors that this process may have.
    pub(crate) fn new() -> OpenFiles {
        let total = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = usize::try_from(total / 2).unwrap_or(usize::MAX).clamp(8, 16 << 10);
        OpenFiles { queue: Mutex::default(), limit, total }
    }

    /// Whether a descriptor is one of the last: they are given out from the lowest on.
    pub(crate) fn is_last(&self, fd: &OwnedFd) -> bool {
        u64::try_from(fd.as_raw_fd()).is_ok_and(|fd| fd.saturating_add(RESERVE) >= self.total)
    }

    /// Notes that a file was opened; gives those that are to be closed instead.
    pub(crate) fn opened(&self, node: Weak<Node>) -> Vec<OpenFile> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(node);
        let too_many = queue.len().saturating_sub(self.limit);
        let old: Vec<_> = queue.drain(..too_many).collect();
        drop(queue);
        old.iter().filter_map(Weak::upgrade).filter_map(|node| node.state().file.take()).collect()
    }
}
