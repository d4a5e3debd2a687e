//! The index of a patch: errors, never more memory than its bytes are worth, nor more work than the image it makes; and it comes
//! back from its encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mica_fetcher::PatchIndex;

fuzz_target!(|data: &[u8]| {
    let Ok(index) = PatchIndex::parse(data) else { return };
    assert_eq!(PatchIndex::parse(&index.encode()).ok().as_ref(), Some(&index));
    for piece in &index.pieces {
        assert!(piece.reference.iter().all(|(at, len)| at + u64::from(*len) <= index.old_len));
    }
    // What applying it costs follows from the length of the image.
    let image = index.recipe.image_len();
    assert!(index.work() <= index.most_work());
    assert!(index.work() <= image.saturating_mul(5 * 64) + (6 * 32 << 20));
    let pieces = index.pieces.len() as u64;
    assert!(pieces <= 1 + index.recipe.raw_len() / (32 << 10));
});
