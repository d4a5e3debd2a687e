//! Keeps what is handed to the kernel apart from what changes files.
//!
//! The kernel puts what it is handed into the page cache whatever is there: over newer data, and behind the end of a file
//! that was just truncated. So nothing is handed over of a file that may have been changed; and a request that is about to
//! open or truncate a file which is just being handed over is answered afterwards, by the thread that hands it over.
//!
//! No thread waits for another here. The kernel has whoever hands over wait for pages that are just being read or written,
//! and somebody must answer those requests. For the same reason reads and writes are never put off: a write comes
//! from a file that was opened for writing, so nothing of it is being handed over.

use std::mem::take;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::tree::Node;

#[derive(Default)]
pub(crate) struct Gate {
    current: Mutex<Current>,
}

/// The file that is being handed over; one at a time.
#[derive(Default)]
struct Current {
    ino: Option<u64>,
    /// Answers that were put off.
    waiting: Vec<Box<dyn FnOnce() + Send>>,
}

/// A file is being handed over until this is dropped.
pub(crate) struct Handing<'a>(&'a Gate);

impl Gate {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to hand over a file, if it is still as its layer has it and nobody may change it.
    pub(crate) fn begin(&self, node: &Node) -> Option<Handing<'_>> {
        let mut current = self.current();
        if current.ino.is_some() || !node.is_as_in_layer() {
            return None;
        }
        current.ino = Some(node.ino);
        Some(Handing(self))
    }

    /// Answers a request that opens or truncates a file: now, or after the file was handed over. If the file may be
    /// `changed` by it, nothing is handed over any more.
    pub(crate) fn pass(&self, node: &Node, changed: bool, answer: impl FnOnce() + Send + 'static) {
        let mut current = self.current();
        if changed {
            node.state().may_change = true;
        }
        if current.ino == Some(node.ino) {
            current.waiting.push(Box::new(answer));
            return;
        }
        drop(current);
        answer();
    }
}

impl Drop for Handing<'_> {
    fn drop(&mut self) {
        let mut current = self.0.current();
        current.ino = None;
        let waiting = take(&mut current.waiting);
        drop(current);
        waiting.into_iter().for_each(|answer| answer());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::kind::Kind;
    use crate::tree::node::{InUpper, State};

    fn node(ino: u64) -> Node {
        Node::new(ino, Kind::File, State::default())
    }

    #[test]
    fn who_opens_what_is_being_handed_over_is_answered_afterwards() {
        let (gate, one, other) = (Gate::default(), node(7), node(8));
        let (sender, answers) = channel();
        let pass = |node: &Node, changed, name| {
            let sender = sender.clone();
            gate.pass(node, changed, move || sender.send(name).unwrap());
        };
        let handing = gate.begin(&one);
        assert!(handing.is_some() && gate.begin(&other).is_none(), "one at a time");
        pass(&one, false, "read");
        pass(&one, true, "write");
        pass(&other, false, "other");
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), ["other"]);
        drop(handing);
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), ["read", "write"]);
        assert!(gate.begin(&one).is_none(), "it may have been changed");
        assert!(gate.begin(&other).is_some());
        other.state().upper = InUpper::Yes;
        assert!(gate.begin(&other).is_none());
        pass(&one, true, "again");
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), ["again"]);
    }
}
