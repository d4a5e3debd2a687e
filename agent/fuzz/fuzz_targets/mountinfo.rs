//! See `mica_agent::fuzz::mountinfo`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_agent::fuzz::mountinfo(data));
