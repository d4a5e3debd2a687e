//! Bringing in what is new of an image whose rest stays where it is.

use mica_graph::Layer;
use mica_squashfs::chunks::Chunk;

use super::{Came, Job, Outcome, PullError, TransferError, with_room};
use crate::cache::borrowed::write::Own;
use crate::delta::borrow::{Plan, Step};
use crate::progress::Event;

impl Job<'_> {
    /// Makes the image one that borrows; whether that worked. The caller holds the lock of its digest.
    pub(super) fn borrow(
        &self,
        of: &Layer,
        plan: &Plan<'_>,
        came: &mut Came,
    ) -> Result<bool, PullError> {
        let is_own = |chunk: &Chunk| plan.is_own(chunk.offset);
        let begin = || Own::resume(self.cache, self.blob, plan.table, &is_own);
        let mut own = with_room(self.cache, begin)?;
        came.resumed = own.written();
        self.progress.event(Event::Bytes { layer: self.layer, bytes: own.at() });
        let gathered = self.gather(&mut own, plan, came);
        if matches!(gathered, Ok(false) | Err(PullError::Full { .. })) {
            // Half an image helps nobody on a full disk.
            own.discard()?;
        }
        if !gathered? {
            return Ok(false);
        }
        let (bases, segments) = plan.listed();
        Ok(with_room(self.cache, || own.finish(self.cache, of, &bases, &segments))?)
    }

    /// Brings the image's own bytes, taking broken connections up again; `false` if what is here is not what it should be.
    fn gather(
        &self,
        own: &mut Own<'_>,
        plan: &Plan<'_>,
        came: &mut Came,
    ) -> Result<bool, PullError> {
        let (mut failed, mut wrong) = (0, 0);
        while let Some(step) = plan.step(own.at()) {
            let before = own.at();
            let done = match step {
                Step::Skip { until } => {
                    own.skip(until);
                    self.progress.event(Event::Bytes { layer: self.layer, bytes: until - before });
                    Ok(())
                }
                Step::Copy { file, offset, length } => {
                    let copied = self.copy(own, file, offset, length, came);
                    if let Err(TransferError::Wrong(error)) = copied {
                        tracing::warn!(%error, "an earlier image is damaged");
                        return Ok(false);
                    }
                    copied
                }
                Step::Fetch { until } => self.transfer(own, until, came),
            };
            match done {
                Ok(()) => failed = 0,
                Err(TransferError::Wrong(error)) => {
                    tracing::warn!(%error, "wrong bytes");
                    wrong += 1;
                    if wrong > self.registry.sources() {
                        return Err(error.into());
                    }
                    self.registry.distrust(self.blob);
                }
                Err(error) => self.go_on(error, own, before, &mut failed)?,
            }
        }
        Ok(true)
    }

    pub(super) fn borrowed(&self, borrowed: u64, came: &Came) -> Result<Outcome, PullError> {
        self.cache.keep_quota()?;
        self.progress.event(Event::LayerDone { layer: self.layer });
        Ok(Outcome::Borrowed { bytes: came.received, resumed: came.resumed, borrowed })
    }
}
