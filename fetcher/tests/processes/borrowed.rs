//! The same with images that borrow from each other.

use std::process::Child;
use std::time::Duration;

use mica_fetcher::registry::open;
use mica_fetcher::{Cache, Held, PruneOptions, ServeOptions, Server, listen};
use mica_graph::{Digest, Manifest};
use mica_squashfs::Source as _;

use super::common::{Bench, hasty, noise};
use super::{Dice, assert_clean, output, process, pull, text};

const CHUNK: usize = 60_000;

/// Versions of an image of 2.4 MB, in each three chunks new; each borrows from the ones before.
pub(crate) fn published(versions: usize) -> (Bench, Server, Vec<Manifest>) {
    let mut bench = Bench::new();
    let mut names: Vec<String> = (0..40).map(|i| i.to_string()).collect();
    let mut package = |version: usize| {
        for at in [3, 17, 31] {
            names[(at + version) % 40] = format!("{at} of {version}");
        }
        let pieces: Vec<_> = names.iter().map(|name| noise(name, CHUNK)).collect();
        let version = format!("v{version}");
        let layers = vec![bench.chunked("L", &version, &pieces)];
        let manifest = Manifest { layers, ..bench.package("A", &version, &[]) };
        bench.push(&*bench.registry(), &manifest);
        manifest
    };
    let manifests = (0..versions).map(&mut package).collect();
    let listener = listen("127.0.0.1:0").unwrap();
    let server = Server::spawn(listener, &bench.path("registry"), ServeOptions::default()).unwrap();
    (bench, server, manifests)
}

/// Whether it is here; then it reads as what it is.
fn reads(cache: &Cache, manifest: &Manifest) -> bool {
    let layer = &manifest.layers[0];
    let bytes = match cache.source(layer).unwrap() {
        None => return false,
        Some(Held::Whole(path)) => std::fs::read(path).unwrap(),
        Some(Held::Borrowed(image)) => {
            let mut bytes = vec![0; layer.size as usize];
            image.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        }
    };
    assert_eq!(Digest::of(&bytes), layer.digest);
    true
}

/// Killed while it fetches, borrows, or makes a file of what it borrowed.
pub(crate) fn killed_pulls() {
    let (bench, server, manifests) = published(6);
    let (url, folder) = (server.url(), text(bench.path("cache")));
    let registry = open(&url, &hasty()).unwrap();
    let mut dice = Dice::new();
    let mut borrowed = 0;
    for round in 0..60 {
        let version = round % 6;
        if version == 0 {
            drop(pull(&*registry, "A@v0", &bench.cache()).unwrap());
            continue;
        }
        let mut child = process(&["pull", &url, &format!("A@v{version}"), &folder, "-"]);
        std::thread::sleep(Duration::from_micros(dice.below(60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        // Opened now, it removes what the dead process left.
        let cache = bench.cache();
        assert!(reads(&cache, &manifests[0]));
        reads(&cache, &manifests[version]);
        drop(pull(&*registry, &format!("A@v{version}"), &cache).unwrap());
        assert!(reads(&cache, &manifests[version]));
        borrowed += cache.disk_use().unwrap().borrowed;
        if version == 5 {
            assert_clean(&cache);
            bench.assert_cached(&cache, &manifests[5]);
            cache.prune(&PruneOptions { all: true, ..Default::default() }).unwrap();
            assert_eq!(cache.disk_use().unwrap().bytes, 0);
            for folder in ["incoming", "leases", "blobs", "borrowed", "checked"] {
                assert_eq!(std::fs::read_dir(cache.root().join(folder)).unwrap().count(), 0);
            }
        }
    }
    assert!(borrowed > 0);
}

pub(crate) fn the_same_at_once() {
    let (bench, server, manifests) = published(2);
    let folder = text(bench.path("cache"));
    drop(pull(&*open(&server.url(), &hasty()).unwrap(), "A@v0", &bench.cache()).unwrap());
    let children: Vec<Child> =
        (0..12).map(|_| process(&["pull", &server.url(), "A@v1", &folder, "-"])).collect();
    let fetched = children.into_iter().map(|child| output(child).trim().parse::<u64>().unwrap());
    // Three chunks are new, and two of them are those that the first version had changed.
    assert!(fetched.sum::<u64>() <= 6 * CHUNK as u64);
    assert_clean(&bench.cache());
    assert!(reads(&bench.cache(), &manifests[1]));
}

pub(crate) fn under_a_quota() {
    let (bench, server, manifests) = published(6);
    let folder = text(bench.path("cache"));
    let quota = manifests[0].size() * 2;
    let children: Vec<Child> = (0..50)
        .map(|i| {
            let reference = format!("A@v{}", i % 6);
            process(&["pull", &server.url(), &reference, &folder, &quota.to_string()])
        })
        .collect();
    children.into_iter().for_each(|child| drop(output(child)));
    let cache = bench.cache();
    assert_clean(&cache);
    // The last two may have protected more than that between them.
    cache.prune(&PruneOptions { quota: Some(quota), ..Default::default() }).unwrap();
    assert!(cache.disk_use().unwrap().bytes <= quota);
    assert!(manifests.iter().filter(|manifest| reads(&cache, manifest)).count() > 0);
}
