//! See `mica_graph::fuzz::build_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_graph::fuzz::build_file(data));
