//! How many threads can be had.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

/// So many threads, or as many fewer as there can be beside one more.
///
/// Tried before a mount is there: whoever asks one that nobody serves waits for ever.
///
/// # Errors
/// There can't even be two.
pub(crate) fn available(wanted: usize) -> io::Result<usize> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let mut threads = Vec::new();
    let mut refused = None;
    for _ in 0..=wanted.max(1) {
        let gate = Arc::clone(&gate);
        let started = Builder::new().spawn(move || drop(gate.lock()));
        match started {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    drop(closed);
    let count = threads.len();
    threads.into_iter().for_each(|thread| drop(thread.join()));
    match refused {
        Some(error) if count < 2 => Err(error),
        _ => Ok(count - 1),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn as_many_as_wanted_where_nothing_limits_them() {
        assert_eq!(super::available(3).unwrap(), 3);
        assert_eq!(super::available(0).unwrap(), 1);
    }
}
