//! See `mica_fetcher::fuzz::image_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_fetcher::fuzz::image_config(data));
