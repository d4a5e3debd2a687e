//! The seeds of the fuzz targets, cut off and changed in places: no parser panics, or takes long.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use mica_graph::fuzz::TARGETS;

#[test]
fn seeds_and_what_is_near_them_hold() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, target) in TARGETS {
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
