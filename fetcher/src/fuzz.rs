//! What is made of foreign documents by this crate, each for any bytes: for `fuzz/`, and for the test that runs its seeds.

use std::fs::File;
use std::io::Write;

use mica_graph::Digest;

use crate::patch::{PatchIndex, PatchNotes};
use crate::registry::Index;
use crate::registry::oci::form::{self, OciIndex, OciManifest};
use crate::{ImageDefaults, Signatures, archive, cache, registry};

/// Takes any bytes; panics if something is wrong with what was made of them.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 10] = [
    ("archive", archive),
    ("authfile", authfile),
    ("image_config", image_config),
    ("index", index),
    ("oci", oci),
    ("patch", patch),
    ("patch_notes", patch_notes),
    ("registries_conf", registries_conf),
    ("signatures", signatures),
    ("trace", trace),
];

/// An archive of packages, as far as it is read before anything is stored.
pub fn archive(data: &[u8]) {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::memfd_create("archive", flags) else { return };
    let mut file = File::from(fd);
    if file.write_all(data).is_ok() {
        let _refused = archive::look(&mut file).is_err();
    }
}

/// A file of credentials.
pub fn authfile(data: &[u8]) {
    registry::fuzz_credentials(data);
}

/// A container image's configuration.
pub fn image_config(data: &[u8]) {
    let _refused = ImageDefaults::parse(data).is_err();
}

/// A registry's index of a package: it comes back from its own encoding.
pub fn index(data: &[u8]) {
    let Ok(name) = "A".parse() else { return };
    if let Ok(index) = Index::from_json(data, &name) {
        assert_eq!(Index::from_json(&index.to_json(), &name).ok(), Some(index));
    }
}

/// The documents of OCI registries.
pub fn oci(data: &[u8]) {
    let _refused = form::parse::<OciIndex>(data).is_err();
    if let Ok(manifest) = form::parse::<OciManifest>(data) {
        let _foreign = manifest.entry().is_none();
        let _facts = manifest.facts().count();
        let _note = (manifest.noted_layer(), manifest.noted_patches(&Digest::of(b"")));
    }
    let _refused = form::read_config(data).is_err();
}

/// The index of a patch: never more work than the image it makes, no piece reaches beyond the old contents, and it comes back
/// from its own encoding.
pub fn patch(data: &[u8]) {
    let Ok(index) = PatchIndex::parse(data) else { return };
    for piece in &index.pieces {
        assert!(piece.reference.iter().all(|(at, len)| at + u64::from(*len) <= index.old_len));
    }
    // What applying it costs follows from the length of the image.
    let image = index.recipe.image_len();
    assert!(index.work() <= index.most_work());
    assert!(index.work() <= image.saturating_mul(5 * 64) + ((6 * 32) << 20));
    let pieces = index.pieces.len() as u64;
    assert!(pieces <= 1 + index.recipe.raw_len() / (32 << 10));
    assert_eq!(PatchIndex::parse(&index.encode()).ok(), Some(index));
}

/// The note of the patches of an image.
pub fn patch_notes(data: &[u8]) {
    let _notes = PatchNotes::read(data, &Digest::of(b"")).len();
}

/// `registries.conf`.
pub fn registries_conf(data: &[u8]) {
    registry::oci::conf::fuzz(data);
}

/// The signatures of a manifest: they come back from their own encoding.
pub fn signatures(data: &[u8]) {
    if let Ok(signatures) = Signatures::parse(data) {
        let text = signatures.to_text();
        let again = Signatures::parse(text.as_bytes()).map(|again| again.to_text());
        assert_eq!(again.ok(), Some(text));
    }
}

/// What a run touched of an image.
pub fn trace(data: &[u8]) {
    let _ranges = cache::fuzz_trace(data).len();
}
