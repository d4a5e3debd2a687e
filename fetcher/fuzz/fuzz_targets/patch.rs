//! The index of a patch: errors, never more memory than its bytes are worth, and it comes back from its encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mica_fetcher::PatchIndex;

fuzz_target!(|data: &[u8]| {
    let Ok(index) = PatchIndex::parse(data) else { return };
    assert_eq!(PatchIndex::parse(&index.encode()).ok().as_ref(), Some(&index));
    for piece in &index.pieces {
        assert!(piece.reference.iter().all(|(at, len)| at + u64::from(*len) <= index.old_len));
    }
});
