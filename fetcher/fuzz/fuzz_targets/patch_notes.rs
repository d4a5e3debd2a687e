//! See `mica_fetcher::fuzz::patch_notes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_fetcher::fuzz::patch_notes(data));
