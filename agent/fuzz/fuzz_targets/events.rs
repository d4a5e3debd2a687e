//! See `mica_agent::fuzz::events`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_agent::fuzz::events(data));
