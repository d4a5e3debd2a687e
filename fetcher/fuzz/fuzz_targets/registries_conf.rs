//! See `mica_fetcher::fuzz::registries_conf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_fetcher::fuzz::registries_conf(data));
