//! Whether a chunk table is that of an image.

use mica_graph::Digest;
use mica_squashfs::chunks::ChunkTable;

/// Whether an image's bytes are those of a chunk table, found out while they come.
pub(super) struct Comparison {
    name: Digest,
    table: ChunkTable,
    /// The chunk in the making, and how much of it came.
    index: usize,
    came: u64,
    hasher: blake3::Hasher,
    wrong: bool,
}

impl Comparison {
    pub(super) fn new(name: Digest, table: ChunkTable) -> Self {
        Self { name, table, index: 0, came: 0, hasher: blake3::Hasher::new(), wrong: false }
    }

    pub(super) fn again(self) -> Self {
        Self::new(self.name, self.table)
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.wrong {
            let Some(chunk) = self.table.chunks().get(self.index) else {
                self.wrong = true;
                return;
            };
            let lacking = (u64::from(chunk.length) - self.came).min(bytes.len() as u64);
            let (here, more) = bytes.split_at(lacking as usize);
            self.hasher.update(here);
            self.came += lacking;
            bytes = more;
            if self.came == u64::from(chunk.length) {
                self.wrong = *self.hasher.finalize().as_bytes() != chunk.digest;
                self.hasher.reset();
                (self.index, self.came) = (self.index + 1, 0);
            }
        }
    }

    /// The table's digest, if all of the image is its.
    pub(super) fn fits(&self) -> Option<Digest> {
        (!self.wrong && self.index == self.table.chunks().len()).then_some(self.name)
    }
}
