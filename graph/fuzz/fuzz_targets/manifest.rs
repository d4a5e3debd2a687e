//! See `mica_graph::fuzz::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_graph::fuzz::manifest(data));
