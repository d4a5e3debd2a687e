//! A bounded cache of decoded blocks in shards, each behind its own lock.
//!
//! A lock is held for a map operation, never for I/O or decoding: two threads that miss the same block both decode it,
//! and the second result is dropped. That costs a few microseconds now and then and nobody ever waits for a read.
//! Values are handed out as `Arc`, so eviction never takes a block from its reader.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

const SHARDS: usize = 8;

/// Least recently used values go first, by shard. A shard always keeps the value put last, however large.
pub(crate) struct Cache<V> {
    shards: [Mutex<Shard<V>>; SHARDS],
    /// Bytes one shard may hold.
    limit: usize,
}

struct Shard<V> {
    slots: HashMap<u64, Slot<V>>,
    bytes: usize,
    /// Counts uses; the slot with the lowest is the oldest.
    clock: u64,
}

struct Slot<V> {
    value: Arc<V>,
    bytes: usize,
    used: u64,
}

impl<V> Cache<V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| {
                Mutex::new(Shard { slots: HashMap::new(), bytes: 0, clock: 0 })
            }),
            limit: limit / SHARDS,
        }
    }

    fn shard(&self, key: u64) -> std::sync::MutexGuard<'_, Shard<V>> {
        // Positions of blocks have few distinct low bits in some images: mix before taking three bits.
        let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61;
        // No code that can panic runs under the lock, so a poisoned one is in order.
        self.shards[mixed as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: u64) -> Option<Arc<V>> {
        let mut shard = self.shard(key);
        shard.clock += 1;
        let now = shard.clock;
        let slot = shard.slots.get_mut(&key)?;
        slot.used = now;
        Some(Arc::clone(&slot.value))
    }

    pub(crate) fn put(&self, key: u64, value: Arc<V>, bytes: usize) {
        let mut shard = self.shard(key);
        shard.clock += 1;
        let used = shard.clock;
        if let Some(old) = shard.slots.insert(key, Slot { value, bytes, used }) {
            shard.bytes -= old.bytes;
        }
        shard.bytes += bytes;
        while shard.bytes > self.limit && shard.slots.len() > 1 {
            let Some(oldest) = shard.slots.iter().min_by_key(|(_, s)| s.used).map(|(k, _)| *k)
            else {
                break;
            };
            if let Some(slot) = shard.slots.remove(&oldest) {
                shard.bytes -= slot.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_used_last_within_the_limit() {
        let cache = Cache::new(SHARDS * 100);
        for key in 0..1000 {
            cache.put(key, Arc::new(key), 10);
            assert_eq!(
                cache.get(0).as_deref(),
                Some(&0),
                "used after every put, so never the oldest"
            );
        }
        let held: usize = cache.shards.iter().map(|s| s.lock().unwrap().bytes).sum();
        assert!(held <= SHARDS * 100);
        assert!(cache.get(1).is_none());
    }

    #[test]
    fn a_value_above_the_limit_is_kept_until_the_next() {
        let cache = Cache::new(SHARDS);
        cache.put(7, Arc::new(()), 1000);
        assert!(cache.get(7).is_some());
        cache.put(7, Arc::new(()), 2000);
        assert!(cache.get(7).is_some());
    }
}
