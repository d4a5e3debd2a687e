//! See `mica_packer::fuzz::scan`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mica_packer::fuzz::scan(data));
