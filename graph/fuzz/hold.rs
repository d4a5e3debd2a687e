//! The test of fuzz seeds, for every crate that has some: its `tests/seeds.rs` hands over its targets.
#![allow(clippy::unwrap_used)] // a helper of tests, outside of test functions

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A parser under test, and the folder of its seeds.
type Target<'a> = (&'a str, fn(&[u8]));

/// No target panics at a seed in `folder/fuzz/seeds`, nor at one that is cut off or changed in places, and none takes long.
pub(crate) fn hold(folder: &str, targets: &[Target<'_>]) {
    let seeds = Path::new(folder).join("fuzz/seeds");
    for (name, target) in targets {
        let mut count = 0;
        for entry in fs::read_dir(seeds.join(name)).expect(name) {
            let path = entry.unwrap().path();
            let seed = fs::read(&path).unwrap();
            let begun = Instant::now();
            target(&seed);
            let step = (seed.len() / 64).max(1);
            for at in (0..seed.len()).step_by(step) {
                target(&seed[..at]);
                let mut changed = seed.clone();
                changed[at] ^= 1 << (at % 8);
                target(&changed);
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{}", path.display());
            count += 1;
        }
        assert!(count > 0, "{name} has no seed");
    }
}
