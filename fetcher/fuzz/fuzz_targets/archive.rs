//! See `mica_fetcher::fuzz::archive`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_fetcher::fuzz::archive(data));
