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
    let coming = state.coming.load(Ordering::Relaxed);
    fits(state, coming.saturating_add(bytes))
}

fn fits(state: &State, bytes: u64) -> bool {
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
        let more =
            |coming: u64| Some(coming.saturating_add(bytes)).filter(|all| fits(self.state, *all));
        let coming = &self.state.coming;
        let taken = coming.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    pub(super) fn keep(self) {
        self.state.used.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // Apart from what is used: that may have been counted anew meanwhile.
        self.state.coming.fetch_sub(self.bytes, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::DirRegistry;
    use crate::server::ServeOptions;

    #[test]
    fn an_upload_that_breaks_off_after_a_count_takes_no_room_and_gives_none() {
        let folder = tempfile::tempdir().unwrap();
        let registry = DirRegistry::create(&folder.path().join("registry")).unwrap();
        let options = ServeOptions { quota: Some(100), ..ServeOptions::default() };
        let state = State::new(registry, options, true);
        let mut taken = Taken::new(&state);
        assert!(taken.more(60) && !taken.more(60));
        // As a sweep does meanwhile.
        state.used.store(10, Ordering::Relaxed);
        assert!(has_room(&state, 30) && !has_room(&state, 31));
        drop(taken);
        assert!(has_room(&state, 90) && !has_room(&state, 91));
        let mut taken = Taken::new(&state);
        assert!(taken.more(60));
        taken.keep();
        assert!(has_room(&state, 30) && !has_room(&state, 31));
    }
}
