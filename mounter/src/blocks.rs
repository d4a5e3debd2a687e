//! Decoded blocks, shared by all files of a mount.
//!
//! Bounded by bytes; each block is decoded once however many readers wait for it. The oldest block that
//! nobody asked for again goes first (CLOCK). Buffers of blocks that are gone are used again, so that a
//! long read doesn't ask the system for fresh pages all the time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A block: the layer, and where in its image it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    pub(crate) layer: u32,
    pub(crate) offset: u64,
}

pub(crate) struct BlockCache {
    inner: Mutex<Inner>,
    decoded: Condvar,
    limit: usize,
}

#[derive(Default)]
struct Inner {
    slots: HashMap<BlockKey, Slot>,
    /// Blocks in the order in which they are looked at for eviction.
    queue: VecDeque<BlockKey>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
    /// Threads that wait for another's decoding: mostly none, and waking nobody costs a system call too.
    waiting: usize,
}

enum Slot {
    /// A thread is decoding it.
    Pending,
    Ready {
        data: Arc<Vec<u8>>,
        /// Asked for since it was last looked at.
        used: bool,
    },
}

const MAX_SPARE: usize = 4;

impl BlockCache {
    pub(crate) fn new(limit: usize) -> BlockCache {
        BlockCache { inner: Mutex::default(), decoded: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that can panic runs under the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the block is there or on its way.
    pub(crate) fn contains(&self, key: BlockKey) -> bool {
        self.lock().slots.contains_key(&key)
    }

    /// The block, decoded by `decode` if nobody did or does.
    pub(crate) fn get<E>(
        &self,
        key: BlockKey,
        decode: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Arc<Vec<u8>>, E> {
        let mut inner = self.lock();
        loop {
            match inner.slots.get_mut(&key) {
                Some(Slot::Ready { data, used }) => {
                    *used = true;
                    return Ok(Arc::clone(data));
                }
                Some(Slot::Pending) => {
                    inner.waiting += 1;
                    inner = self.decoded.wait(inner).unwrap_or_else(PoisonError::into_inner);
                    inner.waiting -= 1;
                }
                None => break,
            }
        }
        inner.slots.insert(key, Slot::Pending);
        let mut buffer = inner.spare.pop().unwrap_or_default();
        drop(inner);
        // If decoding fails, or panics, those who wait try for themselves.
        let pending = Pending { cache: self, key };
        buffer.clear();
        decode(&mut buffer)?;
        let data = Arc::new(buffer);
        pending.finish(Arc::clone(&data));
        Ok(data)
    }

    /// Drops a block that is not expected to be asked for again.
    pub(crate) fn forget(&self, key: BlockKey) {
        let mut inner = self.lock();
        if matches!(inner.slots.get(&key), Some(Slot::Ready { .. })) {
            inner.remove(key);
            inner.clean_up();
        }
    }

    #[cfg(test)]
    fn queued(&self) -> usize {
        self.lock().queue.len()
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

struct Pending<'a> {
    cache: &'a BlockCache,
    key: BlockKey,
}

impl Pending<'_> {
    fn finish(self, data: Arc<Vec<u8>>) {
        let mut inner = self.cache.lock();
        inner.bytes += data.capacity();
        inner.slots.insert(self.key, Slot::Ready { data, used: false });
        inner.queue.push_back(self.key);
        inner.shrink(self.cache.limit);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut inner = self.cache.lock();
        if matches!(inner.slots.get(&self.key), Some(Slot::Pending)) {
            inner.slots.remove(&self.key);
        }
        let waited_for = inner.waiting > 0;
        drop(inner);
        if waited_for {
            self.cache.decoded.notify_all();
        }
    }
}

impl Inner {
    /// Takes keys of forgotten blocks from the queue, when they are more than the others: each costs about one look.
    fn clean_up(&mut self) {
        if self.queue.len() <= 2 * self.slots.len() + MAX_SPARE {
            return;
        }
        let mut seen = HashSet::new();
        let slots = &self.slots;
        // A block that was forgotten and read again has two places: the later one stays.
        let mut kept: VecDeque<_> = std::mem::take(&mut self.queue);
        kept.make_contiguous().reverse();
        kept.retain(|key| slots.contains_key(key) && seen.insert(*key));
        kept.make_contiguous().reverse();
        self.queue = kept;
    }

    fn shrink(&mut self, limit: usize) {
        // The block that was just added stays, whatever the limit.
        while self.bytes > limit && self.queue.len() > 1 {
            let Some(key) = self.queue.pop_front() else { break };
            match self.slots.get_mut(&key) {
                Some(Slot::Ready { used, .. }) if *used => {
                    *used = false;
                    self.queue.push_back(key);
                }
                Some(Slot::Ready { .. }) => self.remove(key),
                // Forgotten since, and perhaps on its way again.
                _ => {}
            }
        }
    }

    fn remove(&mut self, key: BlockKey) {
        let Some(Slot::Ready { data, .. }) = self.slots.remove(&key) else { return };
        self.bytes -= data.capacity();
        if let (Ok(buffer), true) = (Arc::try_unwrap(data), self.spare.len() < MAX_SPARE) {
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn key(offset: u64) -> BlockKey {
        BlockKey { layer: 0, offset }
    }

    fn fill(cache: &BlockCache, offset: u64) -> Arc<Vec<u8>> {
        let decode = |out: &mut Vec<u8>| {
            out.resize(1000, offset as u8);
            Ok::<(), Infallible>(())
        };
        cache.get(key(offset), decode).unwrap()
    }

    #[test]
    fn the_limit_holds_and_what_is_asked_for_again_stays() {
        let cache = BlockCache::new(10_000);
        for offset in 0..100 {
            fill(&cache, offset);
            fill(&cache, 0);
        }
        assert!(cache.bytes() <= 10_000 + 1000);
        assert!(cache.contains(key(0)) && !cache.contains(key(50)));
    }

    #[test]
    fn who_reads_and_forgets_without_end_takes_no_memory() {
        let cache = BlockCache::new(10_000);
        fill(&cache, 7);
        for offset in 1000..20_000 {
            fill(&cache, offset);
            cache.forget(key(offset));
            if offset % 3 == 0 {
                fill(&cache, 7);
            }
        }
        assert!(cache.queued() < 20, "{}", cache.queued());
        assert!(cache.contains(key(7)));
        // What is asked for again and again is where it belongs.
        for offset in 0..100 {
            fill(&cache, offset);
        }
        assert!(cache.bytes() <= 11_000);
    }

    #[test]
    fn many_readers_of_one_block_decode_it_once() {
        let (cache, decoded) = (BlockCache::new(1 << 20), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let decode = |out: &mut Vec<u8>| {
                        decoded.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(20));
                        out.push(7);
                        Ok::<(), Infallible>(())
                    };
                    assert_eq!(*cache.get(key(1), decode).unwrap(), [7]);
                });
            }
        });
        assert_eq!(decoded.into_inner(), 1);
    }

    #[test]
    fn a_failed_decode_is_not_remembered() {
        let cache = BlockCache::new(1 << 20);
        assert_eq!(cache.get(key(1), |_| Err("bad")), Err("bad"));
        assert!(!cache.contains(key(1)));
        assert_eq!(fill(&cache, 1)[0], 1);
        cache.forget(key(1));
        assert!(!cache.contains(key(1)));
    }
}
