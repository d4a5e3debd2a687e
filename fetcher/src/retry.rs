//! Trying again: how often, and how long to wait in between.

use std::time::Duration;

use crate::registry::RegistryError;

/// Tries again after connection faults and answers that ask for it, waiting twice as long each time.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Tries in all; at least one is made.
    pub attempts: u32,
    /// The first wait.
    pub first: Duration,
    /// The longest wait, also of those a server asks for.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(20));
        Self { attempts: 5, first, longest }
    }
}

impl Retry {
    /// How long to wait after the `failed`th try (from 1) ended with `error`; `None` to give up.
    pub(crate) fn after(&self, failed: u32, error: &RegistryError) -> Option<Duration> {
        if failed >= self.attempts || !error.is_transient() {
            return None;
        }
        let doubled = self.first.saturating_mul(1 << (failed - 1).min(16));
        Some(error.retry_after().unwrap_or(doubled).min(self.longest))
    }

    pub(crate) fn run<T>(
        &self,
        mut operation: impl FnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut failed = 0;
        loop {
            let error = match operation() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            failed += 1;
            let Some(wait) = self.after(failed, &error) else { return Err(error) };
            tracing::debug!(%error, ?wait, "trying again");
            std::thread::sleep(wait);
        }
    }
}
