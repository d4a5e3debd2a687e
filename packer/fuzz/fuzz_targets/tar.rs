//! See `mica_packer::fuzz::tar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_packer::fuzz::tar(data));
