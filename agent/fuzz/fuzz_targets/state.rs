//! See `mica_agent::fuzz::state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_agent::fuzz::state(data));
