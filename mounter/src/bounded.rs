//! A small cache that is bounded by the bytes of what it holds.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was put first goes first; what is larger than all room is not kept.
pub(crate) struct Bounded<K, V> {
    limit: usize,
    inner: Mutex<Inner<K, V>>,
}

struct Inner<K, V> {
    values: HashMap<K, (Arc<V>, usize)>,
    queue: VecDeque<K>,
    bytes: usize,
}

/// What a value takes besides itself, about.
const OVERHEAD: usize = 96;

impl<K: Copy + Eq + Hash, V> Bounded<K, V> {
    pub(crate) fn new(limit: usize) -> Bounded<K, V> {
        let inner = Inner { values: HashMap::new(), queue: VecDeque::new(), bytes: 0 };
        Bounded { limit, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        // Nothing that can panic runs under the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: K) -> Option<Arc<V>> {
        self.lock().values.get(&key).map(|(value, _)| Arc::clone(value))
    }

    pub(crate) fn put(&self, key: K, value: Arc<V>, bytes: usize) {
        let bytes = bytes + OVERHEAD;
        let mut inner = self.lock();
        if bytes > self.limit || inner.values.contains_key(&key) {
            return;
        }
        inner.values.insert(key, (value, bytes));
        inner.queue.push_back(key);
        inner.bytes += bytes;
        let mut dropped = Vec::new();
        while inner.bytes > self.limit {
            let Some(oldest) = inner.queue.pop_front() else { break };
            if let Some((value, bytes)) = inner.values.remove(&oldest) {
                inner.bytes -= bytes;
                dropped.push(value);
            }
        }
        drop(inner); // before what was dropped is freed
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_what_is_too_large_is_not_kept() {
        let cache = Bounded::new(10 * (100 + OVERHEAD));
        for key in 0..100 {
            cache.put(key, Arc::new(key), 100);
            assert!(cache.bytes() <= 10 * (100 + OVERHEAD));
        }
        assert_eq!(cache.get(99).as_deref(), Some(&99));
        assert!(cache.get(89).is_none());
        cache.put(200, Arc::new(0), 1 << 20);
        assert!(cache.get(200).is_none() && cache.get(99).is_some());
    }
}
