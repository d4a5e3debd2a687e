//! Unmounting what nobody uses.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::mount::Point;
use crate::server::Shared;

/// Takes the mount down once no request came for `timeout` and nobody holds a file or a directory of it.
pub(crate) fn watch(point: Point, shared: Arc<Shared>, timeout: Duration) {
    let shared: Weak<Shared> = Arc::downgrade(&shared);
    let spawned = thread::Builder::new().name("mica-idle".to_owned()).spawn(move || {
        let mut last = None;
        loop {
            thread::sleep(timeout);
            let Some(shared) = shared.upgrade() else { return };
            let now = Some(shared.counters.total());
            drop(shared);
            // The kernel refuses to unmount what is in use: then it is tried again later.
            if last == now && point.release() {
                return;
            }
            last = now;
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread to watch for idleness: the mount stays");
    }
}
