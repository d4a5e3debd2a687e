//! Where fetched bytes go.

use std::path::Path;

use crate::cache::Part;
use crate::cache::borrowed::write::{NotTaken, Own};

/// Where an image's bytes go, from the first to the last.
pub(crate) trait Sink {
    /// How many are seen to.
    fn at(&self) -> u64;

    /// The file.
    fn path(&self) -> &Path;

    /// Takes the next ones.
    fn take(&mut self, bytes: &[u8]) -> Result<(), NotTaken>;
}

impl Sink for Part {
    fn at(&self) -> u64 {
        self.len()
    }

    fn path(&self) -> &Path {
        Part::path(self)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), NotTaken> {
        self.append(bytes).map_err(NotTaken::Io)
    }
}

impl Sink for Own<'_> {
    fn at(&self) -> u64 {
        Own::at(self)
    }

    fn path(&self) -> &Path {
        Own::path(self)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), NotTaken> {
        self.append(bytes)
    }
}
