//! Recipes: errors, never more bytes than they claim.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mica_squashfs::rebuild::{Recipe, rebuild};

fuzz_target!(|data: &[u8]| {
    let Ok(recipe) = Recipe::parse(data) else { return };
    assert_eq!(Recipe::parse(&recipe.encode()).as_ref(), Ok(&recipe));
    // The contents of an image: all zeros compress, as most of what is found here must.
    let mut contents = std::io::Read::take(std::io::repeat(0), recipe.raw_len().min(1 << 20));
    let mut out = Vec::new();
    let _ = rebuild(&recipe, None, &mut contents, &mut out, std::num::NonZero::new(1));
    assert!(out.len() as u64 <= recipe.image_len());
});
