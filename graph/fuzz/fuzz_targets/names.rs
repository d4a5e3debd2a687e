//! See `mica_graph::fuzz::names`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_graph::fuzz::names(data));
