//! Everything that removes, against pulls that borrow and readers that hold: all at once, and killed at any moment.

use std::process::Child;
use std::time::{Duration, Instant};

use mica_fetcher::registry::open;
use mica_fetcher::{Cache, Held, LookupError, PruneOptions};
use mica_graph::{Digest, Layer};
use mica_squashfs::{Image, Source};

use super::borrowed::published;
use super::common::{chain, hasty};
use super::{Dice, assert_clean, output, process, pull, text};

const VERSIONS: usize = 6;

/// Removes in every way there is until it is killed.
pub(crate) fn remove_process(cache: &str) {
    let cache = Cache::open(cache).unwrap();
    let mut dice = Dice::new();
    loop {
        let done = match dice.below(5) {
            0 => cache.prune(&PruneOptions { all: true, ..Default::default() }).map(drop),
            1 => {
                cache.prune(&PruneOptions { quota: Some(3 << 20), ..Default::default() }).map(drop)
            }
            2 => cache.verify(true).map(|found| assert!(found.damage.is_empty(), "{found:?}")),
            3 => cache.disk_use().map(drop),
            _ => {
                let package = format!("A@v{}", dice.below(VERSIONS as u64)).parse().unwrap();
                match cache.forget(&package) {
                    Err(LookupError::Cache(error)) => Err(error),
                    _ => Ok(()),
                }
            }
        };
        done.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
}

/// Pulls, and reads what it pulled again and again while it has it.
pub(crate) fn read_process(url: &str, cache: &str, rounds: &str) {
    let cache = Cache::open(cache).unwrap();
    let registry = open(url, &hasty()).unwrap();
    let mut dice = Dice::new();
    for _ in 0..rounds.parse::<u32>().unwrap() {
        let reference = format!("A@v{}", dice.below(VERSIONS as u64));
        let pulled = pull(&*registry, &reference, &cache);
        let pulled = pulled.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let layer = &pulled.manifest.layers[0];
        // As a mount does it: opened once, then read whatever happens to the names.
        let held = cache.source(layer).unwrap().unwrap();
        let source: Box<dyn Source> = match held {
            Held::Whole(path) => Box::new(std::fs::File::open(path).unwrap()),
            Held::Borrowed(image) => Box::new(image),
        };
        for _ in 0..3 {
            reads(&*source, layer);
            std::thread::sleep(Duration::from_micros(dice.below(5000)));
        }
        // And by name: under the lease it stays.
        assert!(cache.holds(layer), "{reference} went in spite of the lease");
        // It is no image; whoever opens it says so and takes no harm.
        assert!(Image::from_source(source, &Default::default()).is_err());
    }
}

fn reads(source: &dyn Source, layer: &Layer) {
    let mut bytes = vec![0; layer.size as usize];
    source.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(Digest::of(&bytes), layer.digest, "other bytes than its own");
}

pub(crate) fn races() {
    let (bench, server, manifests) = published(VERSIONS);
    let (url, folder) = (server.url(), text(bench.path("cache")));
    drop(bench.cache());
    let reader = || process(&["read", &url, &folder, "25"]);
    let remover = || process(&["remove", &folder]);
    let readers: Vec<Child> = (0..3).map(|_| reader()).collect();
    let mut killed: Vec<Child> = vec![remover(), remover(), reader()];
    let mut dice = Dice::new();
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_micros(dice.below(150_000)));
        let victim = dice.below(3) as usize;
        // One that ended by itself was not killed: it failed, unless it is a reader that was through.
        let ended = killed[victim].try_wait().unwrap();
        assert!(ended.is_none_or(|status| status.success()), "{victim}: {ended:?}");
        killed[victim].kill().unwrap();
        killed[victim].wait().unwrap();
        killed[victim] = if victim == 2 { reader() } else { remover() };
    }
    for mut child in killed {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    readers.into_iter().for_each(|child| drop(output(child)));
    let cache = bench.cache();
    assert_clean(&cache);
    let registry = open(&url, &hasty()).unwrap();
    for (version, manifest) in manifests.iter().enumerate() {
        let pulled = pull(&*registry, &format!("A@v{version}"), &cache).unwrap();
        assert_eq!(pulled.manifest.digest(), manifest.digest());
        bench.assert_cached(&cache, manifest);
    }
}
