//! XAR headers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mica_squashfs::XarHeader;

fuzz_target!(|data: &[u8]| {
    let Ok(header) = XarHeader::parse(data) else { return };
    if let Ok(bytes) = header.encode() {
        assert_eq!(XarHeader::parse(&bytes).as_ref(), Ok(&header));
    }
});
