//! A limit on bytes per second, shared by everything that one process fetches and sends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many bytes per second, and no more. Clones share it.
#[derive(Clone, Debug)]
pub struct RateLimit {
    rate: u64,
    /// When the bytes that were let through so far are due.
    due: Arc<Mutex<Instant>>,
}

/// What may come at once after a pause.
const BURST: Duration = Duration::from_millis(100);

impl RateLimit {
    /// `rate` bytes per second; at least one.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), due: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Lets some bytes through; how long to wait with those after them.
    pub(crate) fn take(&self, bytes: usize) -> Duration {
        self.take_at(bytes, Instant::now())
    }

    fn take_at(&self, bytes: usize, now: Instant) -> Duration {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let start = now.checked_sub(BURST).map_or(*due, |earliest| (*due).max(earliest));
        let share = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        *due = start.checked_add(share).unwrap_or(start);
        due.saturating_duration_since(now)
    }

    /// How much to send at a time: no wait is long then.
    pub(crate) fn piece(&self, most: usize) -> usize {
        most.min(usize::try_from(self.rate / 4).unwrap_or(most)).max(1 << 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_through_keeps_the_rate() {
        let limit = RateLimit::new(1000);
        let start = Instant::now();
        let mut now = start;
        for bytes in [500, 1, 250, 4000, 10, 0, 700] {
            now += limit.take_at(bytes, now);
        }
        let took = (now - start).as_secs_f64();
        assert!((5.3..=5.5).contains(&took), "5461 bytes less a burst of 100 took {took} s");
        // Time that nobody used is not saved up.
        now += Duration::from_secs(100);
        let wait = limit.take_at(1000, now).as_secs_f64();
        assert!((0.85..=0.95).contains(&wait), "{wait}");
        assert_eq!(limit.piece(1 << 18), 1 << 10);
        assert_eq!(RateLimit::new(1 << 40).piece(1 << 18), 1 << 18);
    }
}
