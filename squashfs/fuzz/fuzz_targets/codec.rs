//! The decoders, on any bytes: never more than allowed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mica_squashfs::codec::{Compression, with_decompressor};

fuzz_target!(|data: &[u8]| {
    let Some((id, block)) = data.split_first() else { return };
    let Some(compression) = Compression::from_id((*id).into()) else { return };
    let mut out = Vec::new();
    for max in [8192, 131_072] {
        if with_decompressor(compression, |d| d.decompress(block, max, &mut out)).is_ok() {
            assert!(out.len() <= max);
        }
    }
});
