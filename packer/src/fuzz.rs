//! What is made of foreign archives and kept files by this crate, each for any bytes: for `fuzz/`, and for the test that runs
//! its seeds.

use std::io::{self, Read};

use crate::ScanCache;
use crate::tar_guard::Guard;

/// Takes any bytes; panics if something is wrong with what was made of them.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 2] = [("scan", scan), ("tar", tar)];

/// A tar: whatever its reader takes from it is within the bounds.
pub fn tar(data: &[u8]) {
    let mut archive = ::tar::Archive::new(Guard::new(data));
    let Ok(entries) = archive.entries() else { return };
    for entry in entries {
        let Ok(mut entry) = entry else { return };
        let _names = (entry.path_bytes().len(), entry.link_name_bytes().is_some());
        let _attributes = entry.pax_extensions().map(|said| said.map(Iterator::count)).is_ok();
        // Holes are as long as they like: they are skipped when a file is made.
        let mut start = entry.by_ref().take(1 << 20);
        let _read = io::copy(&mut start, &mut io::sink()).is_err();
        if start.limit() == 0 {
            return;
        }
    }
}

/// What is kept of an earlier scan.
pub fn scan(data: &[u8]) {
    let known = ScanCache::from_bytes(data.to_vec());
    if let Some(wanted) = data.first_chunk() {
        let _digest = known.find(wanted).map(|at| known.digest(at).is_some());
    }
}
