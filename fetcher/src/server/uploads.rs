//! What is uploaded: how much of it there may be, and what becomes of that to which nothing refers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::State;

/// What a publisher is told.
pub(super) const FULL: &str = "the registry has no room for more: its quota is used up";

/// Between two looks at what may go.
const EVERY: Duration = Duration::from_secs(3600);

/// Whether so many bytes more may come.
pub(super) fn has_room(state: &State, bytes: u64) -> bool {
    let used = state.used.load(Ordering::Relaxed);
    state.options.quota.is_none_or(|quota| used.saturating_add(bytes) <= quota)
}

/// The room that an upload takes; given back unless it is kept.
pub(super) struct Taken<'a> {
    state: &'a State,
    bytes: u64,
}

impl<'a> Taken<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        Self { state, bytes: 0 }
    }

    /// Takes room for more, if there is any.
    pub(super) fn more(&mut self, bytes: u64) -> bool {
        if !has_room(self.state, bytes) {
            return false;
        }
        self.state.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        true
    }

    pub(super) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.state.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Removes what was uploaded a while ago and nothing refers to, now and then, and counts the rest.
pub(super) async fn keep(state: Arc<State>) {
    loop {
        let state_there = Arc::clone(&state);
        let swept = tokio::task::spawn_blocking(move || {
            let swept = state_there.registry.sweep_uploads(state_there.options.keep_uploads);
            match swept {
                Ok(swept) => {
                    if swept.removed > 0 {
                        tracing::info!(
                            blobs = swept.removed,
                            "removed uploads that nothing refers to"
                        );
                    }
                    state_there.used.store(swept.used, Ordering::Relaxed);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot look for uploads that nothing refers to")
                }
            }
        });
        if swept.await.is_err() {
            tracing::warn!("looking for uploads that nothing refers to failed");
        }
        tokio::time::sleep(EVERY).await;
    }
}
