//! The order in which blocks were first read: recorded by one mount, read ahead by later ones.
//!
//! A trace names a block by its file, never by its place in the image, so a trace of other images costs time and can't
//! give wrong bytes. As text:
//!
//! ```text
//! mica trace 1
//! <layer, 0 is the topmost> <inode reference> <index of the block in the file>
//! …
//! ```

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A block of a file of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Touch {
    pub(crate) layer: u32,
    pub(crate) inode: u64,
    pub(crate) block: u64,
}

/// Blocks in the order in which they were first read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    pub(crate) touches: Vec<Touch>,
}

const FIRST_LINE: &str = "mica trace 1";
/// A trace longer than that is cut: it would be of a run that read everything.
const LONGEST: usize = 1 << 20;

impl Trace {
    /// The trace as it is stored.
    pub fn to_text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n");
        for Touch { layer, inode, block } in &self.touches {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{layer} {inode} {block}");
        }
        text
    }

    /// Reads a stored trace; `None` if it is none.
    pub fn parse(text: &str) -> Option<Trace> {
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let touch = |line: &str| {
            let mut words = line.split(' ');
            Some(Touch {
                layer: words.next()?.parse().ok()?,
                inode: words.next()?.parse().ok()?,
                block: words.next()?.parse().ok()?,
            })
        };
        Some(Trace { touches: lines.take(LONGEST).map(touch).collect::<Option<_>>()? })
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.touches.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.touches.is_empty()
    }
}

/// Notes first reads.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    inner: Mutex<(HashSet<Touch>, Trace)>,
}

impl Recorder {
    pub(crate) fn note(&self, touch: Touch) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, trace) = &mut *inner;
        if trace.len() < LONGEST && seen.insert(touch) {
            trace.touches.push(touch);
        }
    }

    pub(crate) fn trace(&self) -> Trace {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

/// How far the readers are in a trace, so that who reads ahead stays close before them: decoded blocks that nobody asks
/// for soon would only push out others.
pub(crate) struct Progress {
    positions: HashMap<Touch, usize>,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    readers: usize,
    ended: bool,
}

impl Progress {
    pub(crate) fn new(trace: &Trace) -> Progress {
        let positions = trace.touches.iter().enumerate().map(|(at, &touch)| (touch, at)).collect();
        Progress { positions, state: Mutex::default(), moved: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader asks for a block.
    pub(crate) fn note(&self, touch: Touch) {
        let Some(&at) = self.positions.get(&touch) else { return };
        let mut state = self.state();
        if at >= state.readers {
            state.readers = at + 1;
            self.moved.notify_all();
        }
    }

    /// Nobody reads any more.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.moved.notify_all();
    }

    /// Waits until the readers are at most `window` behind `at`; where they are then, or `None` at the end.
    pub(crate) fn wait(&self, at: usize, window: usize) -> Option<usize> {
        let waiting = |state: &mut State| !state.ended && at > state.readers + window;
        let state = self.moved.wait_while(self.state(), waiting);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        (!state.ended).then_some(state.readers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(n: u64) -> Touch {
        Touch { layer: 1, inode: n, block: n * 2 }
    }

    #[test]
    fn traces_survive_their_text_and_damage_is_refused() {
        let recorder = Recorder::default();
        for n in [3, 1, 3, 2, 1] {
            recorder.note(touch(n));
        }
        let trace = recorder.trace();
        assert_eq!(trace.touches, [touch(3), touch(1), touch(2)]);
        assert_eq!(Trace::parse(&trace.to_text()), Some(trace));
        assert_eq!(Trace::parse(&Trace::default().to_text()), Some(Trace::default()));
        for bad in ["", "mica trace 2\n", "mica trace 1\n1 2\n", "mica trace 1\n1 2 -3\n"] {
            assert_eq!(Trace::parse(bad), None);
        }
    }

    #[test]
    fn reading_ahead_stays_close_before_the_readers() {
        let progress = Progress::new(&Trace { touches: (0..100).map(touch).collect() });
        assert_eq!(progress.wait(10, 10), Some(0));
        progress.note(touch(30));
        assert_eq!(progress.wait(41, 10), Some(31));
        progress.end();
        assert_eq!(progress.wait(90, 10), None);
    }
}
