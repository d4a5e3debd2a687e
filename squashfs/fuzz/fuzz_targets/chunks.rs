//! A chunk table: it comes back from its own encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mica_squashfs::chunks::ChunkTable;

fuzz_target!(|data: &[u8]| {
    let Ok(table) = ChunkTable::parse(data) else { return };
    assert_eq!(ChunkTable::parse(&table.encode()).ok(), Some(table));
});
