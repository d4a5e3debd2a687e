//! What a registry says of an image's patches: one small document for each image that has any.
//!
//! It is JSON, `{"schema":1,"image":…,"patches":[{"old":…,"patch":{"digest":…,"size":…},"index":{…},"library":…}]}`. It lies
//! beside the manifests, not in them: a version never changes, and a patch may come later. A reader passes over a schema
//! it does not know and ignores unknown fields. Nothing of it is trusted: what counts is the digest of the image.

use mica_graph::{Blob, Digest, JsonBounds};
use serde::{Deserialize, Serialize};

const SCHEMA: u32 = 1;
/// More patches of one image are not noted; the oldest go first.
const MOST: usize = 64;

/// A patch that a registry has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchNote {
    /// The image it is applied to.
    pub old: Digest,
    /// The patch.
    pub patch: Blob,
    /// The start of it: its index.
    pub index: Blob,
    /// The library that has to compress again, with its version.
    pub library: String,
}

/// The patches that make an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PatchNotes {
    schema: u32,
    pub(crate) image: Digest,
    pub(crate) patches: Vec<PatchNote>,
}

impl PatchNotes {
    pub(crate) fn new(image: Digest, patches: Vec<PatchNote>) -> Self {
        Self { schema: SCHEMA, image, patches }
    }

    /// What a document may hold.
    pub(crate) const BOUNDS: JsonBounds = JsonBounds::new(256 << 10, 5000);

    /// The patches that a document names; none if it cannot be used.
    pub(crate) fn read(bytes: &[u8], image: &Digest) -> Vec<PatchNote> {
        if Self::BOUNDS.check(bytes).is_err() {
            return Vec::new();
        }
        match serde_json::from_slice::<Self>(bytes) {
            Ok(notes) if notes.schema == SCHEMA && notes.image == *image => notes.patches,
            _ => Vec::new(),
        }
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers")
    }

    /// Takes in further patches; one for the same old image replaces the other.
    pub(crate) fn merge(&mut self, further: &[PatchNote]) {
        self.patches.retain(|held| further.iter().all(|new| new.old != held.old));
        self.patches.splice(0..0, further.iter().cloned());
        self.patches.truncate(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(old: &[u8], patch: &[u8]) -> PatchNote {
        let blob = |bytes: &[u8]| Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
        let library = "zstd-1".to_owned();
        PatchNote { old: Digest::of(old), patch: blob(patch), index: blob(b"index"), library }
    }

    #[test]
    fn newer_patches_replace_older_ones() {
        let image = Digest::of(b"image");
        let mut notes = PatchNotes::new(image, vec![note(b"a", b"1"), note(b"b", b"2")]);
        notes.merge(&[note(b"b", b"3"), note(b"c", b"4")]);
        assert_eq!(notes.patches, [note(b"b", b"3"), note(b"c", b"4"), note(b"a", b"1")]);
        assert_eq!(PatchNotes::read(&notes.to_json(), &image), notes.patches);
        assert!(PatchNotes::read(&notes.to_json(), &Digest::of(b"other")).is_empty());
        notes.schema = 2;
        assert!(PatchNotes::read(&notes.to_json(), &image).is_empty());
        assert!(PatchNotes::read(b"{", &image).is_empty());
    }
}
