//! Images that borrow most of their bytes from others: what is stored, what is read, what happens when something is gone or wrong.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "borrowed/network.rs"]
mod network;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{Bench, chain, hasty_retry, http, noise};
use mica_fetcher::registry::{OpenOptions, open};
use mica_fetcher::{
    Cache, Damage, Held, Lazy, LazyOptions, Outcome, PruneOptions, PullError, PullOptions, Pulled,
    Way,
};
use mica_graph::{Digest, Layer, Manifest};
use mica_squashfs::Source as _;
use proptest::prelude::*;

const CHUNK: usize = 40_000;
const ALL: usize = 40;
const SIZE: u64 = (ALL * CHUNK) as u64;

/// A package with one layer, published.
fn publish(bench: &mut Bench, version: &str, pieces: &[Vec<u8>]) -> Manifest {
    let layer = bench.chunked("L", version, pieces);
    let manifest = Manifest { layers: vec![layer], ..bench.package("A", version, &[]) };
    bench.push(&*bench.registry(), &manifest);
    manifest
}

/// So many versions of an image of 1.6 MB; each changes another chunk of the one before.
fn versions(bench: &mut Bench, count: usize) -> Vec<Manifest> {
    let mut names: Vec<String> = (0..ALL).map(|i| i.to_string()).collect();
    let mut next = |version: usize| {
        if version > 0 {
            names[version * 7 % ALL] = format!("{version} is new");
        }
        let pieces: Vec<_> = names.iter().map(|name| noise(name, CHUNK)).collect();
        publish(bench, &format!("v{version}"), &pieces)
    };
    (0..count).map(&mut next).collect()
}

fn try_pull(address: &str, reference: &str, cache: &Cache) -> Result<Pulled, PullError> {
    let registry = match address.starts_with("http") {
        true => http(address),
        false => open(address, &OpenOptions::default()).unwrap(),
    };
    let options = PullOptions { retry: hasty_retry(), ..PullOptions::default() };
    mica_fetcher::pull(&*registry, &reference.parse().unwrap(), cache, &options, &())
}

fn pull(bench: &Bench, reference: &str, cache: &Cache) -> Pulled {
    let registry = bench.path("registry");
    let pulled = try_pull(registry.to_str().unwrap(), reference, cache);
    pulled.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// What was borrowed of the only layer.
fn borrowed(pulled: &Pulled) -> u64 {
    match pulled.layers[0] {
        Outcome::Borrowed { borrowed, .. } => borrowed,
        ref other => panic!("{other:?}"),
    }
}

/// The bytes of an image as a mount would read them, in odd pieces.
fn read(cache: &Cache, layer: &Layer) -> Option<Vec<u8>> {
    match cache.source(layer).unwrap()? {
        Held::Whole(path) => Some(std::fs::read(path).unwrap()),
        Held::Borrowed(image) => {
            let mut bytes = vec![0; layer.size as usize];
            for (i, piece) in bytes.chunks_mut(77_777).enumerate() {
                image.read_exact_at(piece, i as u64 * 77_777).unwrap();
            }
            Some(bytes)
        }
    }
}

fn assert_reads(cache: &Cache, manifest: &Manifest) {
    let layer = &manifest.layers[0];
    assert_eq!(Digest::of(&read(cache, layer).unwrap()), layer.digest);
}

/// The file of a borrowed image.
fn file(cache: &Cache, layer: &Layer) -> PathBuf {
    let table = layer.chunks.as_ref().unwrap().digest.hex();
    cache.root().join("borrowed").join(format!("{}.{table}", layer.digest.hex()))
}

fn heal(bench: &Bench, cache: &Cache) -> Vec<PathBuf> {
    let verified = cache.verify(true).unwrap();
    mica_fetcher::heal(&*bench.registry(), cache, &verified, &PullOptions::default()).unwrap();
    assert_eq!(cache.verify(false).unwrap().damage, []);
    verified.damage.iter().map(|damage| damage.path().to_owned()).collect()
}

fn alter(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn many_versions_take_the_room_of_one_and_their_differences() {
    let mut bench = Bench::new();
    let manifests = versions(&mut bench, 45);
    let cache = bench.cache();
    drop(pull(&bench, "A@v0", &cache));
    let first = cache.disk_use().unwrap();
    for (version, manifest) in manifests.iter().enumerate().skip(1) {
        let pulled = pull(&bench, &format!("A@v{version}"), &cache);
        assert!(borrowed(&pulled) >= SIZE / 2);
        assert_eq!(pulled.fetched_bytes(), CHUNK as u64, "only what is new");
        assert_reads(&cache, manifest);
    }
    let all = cache.disk_use().unwrap();
    assert_eq!((all.borrowed, all.parts), (44, 0));
    // Each its chunk, its list and its table; now and then some of what is older, so that not too many files are open.
    let each = (all.bytes - first.bytes) / 44;
    assert!(each < 3 * CHUNK as u64, "{each} bytes for each further version");
    assert!(all.spared > 44 * (SIZE - 3 * CHUNK as u64));
    assert!(cache.packages().unwrap().iter().all(|p| (p.layers, p.local) == (1, SIZE)));
    assert_eq!(cache.verify(false).unwrap().damage, []);
    // Whoever wants a file gets one that is verified; what borrows from the image still reads.
    bench.assert_cached(&cache, &manifests[30]);
    assert!(cache.blob_path(&manifests[30].layers[0].digest).exists());
    manifests.iter().for_each(|manifest| assert_reads(&cache, manifest));
    bench.assert_cached(&cache, &manifests[44]);
    assert!(!file(&cache, &manifests[44].layers[0]).exists(), "it borrows no more");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    /// Chains of versions, removed at random: whatever is held is what was published.
    #[test]
    fn what_is_held_is_what_was_published(
        edits in prop::collection::vec(
            (prop::collection::vec((0..60_usize, 0..4_u8, 1..5_usize), 0..6), 0..10_u8),
            20,
        ),
    ) {
        let mut bench = Bench::new();
        let cache = bench.cache().with_quota(Some(12 << 20));
        let mut names: Vec<String> = (0..60).map(|i| i.to_string()).collect();
        let mut manifests = Vec::new();
        for (version, (edits, then)) in edits.into_iter().enumerate() {
            for (at, what, count) in edits {
                let at = at % names.len();
                let end = (at + count).min(names.len());
                match what {
                    0 => names[at] = format!("{version}: {at}"),
                    1 => names.rotate_left(at),
                    2 if names.len() > 40 => drop(names.drain(at..end)),
                    _ => drop(names.splice(at..at, (0..count).map(|i| format!("{version} {at} {i}")))),
                }
            }
            // Chunks of different lengths.
            let length = |name: &String| 15_000 + noise(name, 1)[0] as usize * 100;
            let pieces: Vec<_> = names.iter().map(|name| noise(name, length(name))).collect();
            manifests.push(publish(&mut bench, &format!("v{version}"), &pieces));
            drop(pull(&bench, &format!("A@v{version}"), &cache));
            let some = &manifests[version * usize::from(then) / 10];
            let reference = format!("A@{}", some.version);
            match then {
                0 | 1 if cache.lookup(&reference.parse().unwrap()).is_ok() => {
                    cache.forget(&reference.parse().unwrap()).unwrap();
                    cache.prune(&PruneOptions::default()).unwrap();
                }
                2 => drop(cache.prune(&PruneOptions { quota: Some(4 << 20), ..Default::default() })),
                3 => drop(cache.image(&some.layers[0]).unwrap()),
                4 => drop(pull(&bench, &reference, &cache)),
                // Somebody removes files by hand.
                5 => drop(std::fs::remove_file(file(&cache, &some.layers[0]))),
                6 => drop(std::fs::remove_file(cache.blob_path(&some.layers[0].digest))),
                _ => {}
            }
            for manifest in &manifests {
                if let Some(bytes) = read(&cache, &manifest.layers[0]) {
                    prop_assert_eq!(Digest::of(&bytes), manifest.layers[0].digest);
                }
            }
        }
        heal(&bench, &cache);
        for manifest in &manifests {
            drop(pull(&bench, &format!("A@{}", manifest.version), &cache));
            bench.assert_cached(&cache, manifest);
        }
    }
}

/// A layer that says to have the image of another, with a table of what it really gives out.
fn pretending(bench: &mut Bench, victim: &Layer, pieces: &[Vec<u8>]) -> Layer {
    let own = bench.chunked("L", "evil", pieces);
    assert_eq!(own.size, victim.size);
    Layer { digest: victim.digest, ..own }
}

/// Publishes files without looking at them, as somebody who means harm would.
fn publish_layer(bench: &Bench, name: &str, version: &str, layer: Layer, image: &Path) -> Manifest {
    let mut other = Bench::new();
    let manifest = Manifest { layers: vec![layer.clone()], ..other.package(name, version, &[]) };
    let registry = bench.registry();
    let table = layer.chunks.as_ref().unwrap();
    let file = |digest: &Digest| match *digest == table.digest {
        true => bench.image(digest),
        false => Some(image.to_owned()),
    };
    mica_fetcher::push(&*registry, &manifest, &file, &Default::default(), &()).unwrap();
    manifest
}

#[test]
fn a_false_table_makes_nobody_elses_image_wrong() {
    let mut bench = Bench::new();
    let pieces =
        |name: &str| (0..ALL).map(|i| noise(&format!("{name}{i}"), CHUNK)).collect::<Vec<_>>();
    let good = pieces("good");
    let victim = publish(&mut bench, "v1", &good);
    let digest = victim.layers[0].digest;
    // Somebody else's package, on a version of which its next one can borrow.
    let mut evil = pieces("evil");
    let old = bench.chunked("L", "old", &evil);
    let image = bench.image(&old.digest).unwrap();
    publish_layer(&bench, "B", "v1", old, &image);
    evil[5] = noise("evil twist", CHUNK);
    let pretending = pretending(&mut bench, &victim.layers[0], &evil);
    // Its registry gives out other bytes under the victim's digest.
    let whole = bench.path("evil image");
    std::fs::write(&whole, evil.concat()).unwrap();
    let evil_registry =
        bench.path("registry").join("blobs/blake3").join(&digest.hex()[..2]).join(digest.hex());
    let real = std::fs::read(&evil_registry).unwrap();
    let manifest = publish_layer(&bench, "B", "v2", pretending, &whole);
    alter(&evil_registry, |bytes| *bytes = evil.concat());
    let cache = bench.cache();
    drop(pull(&bench, "B@v1", &cache));
    drop(pull(&bench, "B@v2", &cache));
    assert!(matches!(cache.source(&manifest.layers[0]).unwrap(), Some(Held::Borrowed(_))));
    // For the victim's package it is not there, in no way.
    assert!(!cache.holds(&victim.layers[0]));
    assert!(cache.image(&victim.layers[0]).unwrap().is_none());
    alter(&evil_registry, |bytes| *bytes = real);
    assert_eq!(pull(&bench, "A@v1", &cache).fetched_bytes(), SIZE);
    bench.assert_cached(&cache, &victim);
    // And whoever wants the pretender as a file gets the image that has the digest.
    let path = cache.image(&manifest.layers[0]).unwrap().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), good.concat());
}

#[test]
fn chunks_are_taken_only_from_where_a_table_was_seen_to_be_true() {
    let mut bench = Bench::new();
    let pieces: Vec<_> = (0..ALL).map(|i| noise(&format!("{i}"), CHUNK)).collect();
    let (mut lies, mut next) = (pieces.clone(), pieces.clone());
    // The first version's table says that its image has a chunk which it doesn't have, and the second needs.
    lies[7] = noise("not there", CHUNK);
    next[7] = noise("not there", CHUNK);
    let table = bench.chunked("L", "v1", &lies).chunks;
    let layer = Layer { chunks: table, ..bench.chunked("L", "v1", &pieces) };
    let image = bench.image(&layer.digest).unwrap();
    publish_layer(&bench, "A", "v1", layer, &image);
    let second = publish(&mut bench, "v2", &next);
    let cache = bench.cache();
    drop(pull(&bench, "A@v1", &cache));
    let pulled = pull(&bench, "A@v2", &cache);
    assert_eq!(pulled.fetched_bytes(), SIZE, "that image is not borrowed from at all");
    bench.assert_cached(&cache, &second);
}

#[test]
fn what_was_not_compared_when_it_came_is_compared_before_it_is_borrowed_from() {
    let mut bench = Bench::new();
    let manifests = versions(&mut bench, 3);
    let cache = bench.cache();
    let layer = &manifests[0].layers[0];
    let image = layer.image();
    cache.insert(&image, &bench.image(&layer.digest).unwrap()).unwrap();
    let table = layer.chunks.clone().unwrap();
    cache.insert(&table, &bench.image(&table.digest).unwrap()).unwrap();
    cache.record(&manifests[0], &[]).unwrap();
    let checked = || std::fs::read_dir(cache.root().join("checked")).unwrap().count();
    assert_eq!(checked(), 0);
    let pulled = pull(&bench, "A@v1", &cache);
    assert_eq!((pulled.fetched_bytes(), checked()), (CHUNK as u64, 1));
    assert_reads(&cache, &manifests[1]);
    // Damaged before that, it is no source.
    cache.prune(&PruneOptions { all: true, ..Default::default() }).unwrap();
    drop(pulled);
    cache.prune(&PruneOptions { all: true, ..Default::default() }).unwrap();
    assert_eq!((checked(), cache.disk_use().unwrap().bytes), (0, 0));
}

#[test]
fn damage_is_found_named_and_healed_wherever_it_is() {
    let mut bench = Bench::new();
    let manifests = versions(&mut bench, 4);
    let cache = bench.cache();
    let pull_all = || (0..4).for_each(|i| drop(pull(&bench, &format!("A@v{i}"), &cache)));
    pull_all();
    let layer = |i: usize| &manifests[i].layers[0];
    let (base, one, two) =
        (cache.blob_path(&layer(0).digest), file(&cache, layer(1)), file(&cache, layer(2)));
    for path in [&base, &one, &two] {
        let length = std::fs::metadata(path).unwrap().len() as usize;
        // At the start are own bytes, before the end the list, at the end what says where that starts.
        for place in [0, length / 2, length - 100, length - 36, length - 1] {
            alter(path, |bytes| bytes[place] ^= 4);
            let found = cache.verify(false).unwrap();
            let named = found.damage.iter().any(|damage| damage.path() == path);
            assert!(named, "{} at {place}: {found:?}", path.display());
            assert!(heal(&bench, &cache).contains(path));
            assert!(manifests.iter().all(|manifest| cache.holds(&manifest.layers[0])));
            manifests.iter().for_each(|manifest| assert_reads(&cache, manifest));
        }
    }
    // Cut short, or gone: as good as not there, and it comes again.
    for i in [1, 2] {
        let path = [&one, &two][i - 1];
        alter(path, |bytes| bytes.truncate(bytes.len() / 2));
        assert!(!cache.holds(layer(i)));
        drop(pull(&bench, &format!("A@v{i}"), &cache));
        assert_reads(&cache, &manifests[i]);
    }
    // Its package forgotten, the base is nobody's to heal; what borrowed from it is.
    cache.forget(&"A@v0".parse().unwrap()).unwrap();
    cache.prune(&PruneOptions::default()).unwrap();
    assert!(base.exists(), "it is borrowed from");
    alter(&base, |bytes| bytes[CHUNK * 20] ^= 1);
    heal(&bench, &cache);
    (1..4).for_each(|i| assert_reads(&cache, &manifests[i]));
    std::fs::write(cache.root().join("borrowed/stray"), "x").unwrap();
    assert!(matches!(cache.verify(false).unwrap().damage[..], [Damage::Foreign { .. }]));
}

#[test]
fn an_image_that_is_read_stays_readable_when_its_bases_go() {
    let mut bench = Bench::new();
    let manifests = versions(&mut bench, 2);
    let cache = bench.cache();
    drop(pull(&bench, "A@v0", &cache));
    drop(pull(&bench, "A@v1", &cache));
    let layer = &manifests[1].layers[0];
    let Some(Held::Borrowed(image)) = cache.source(layer).unwrap() else { panic!("not borrowed") };
    std::fs::remove_file(cache.blob_path(&manifests[0].layers[0].digest)).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(Digest::of(&bytes), layer.digest);
    assert!(image.read_exact_at(&mut bytes, 1).is_err(), "beyond the end");
    image.will_need(SIZE - 10, 100).unwrap();
    assert!(!cache.holds(layer), "for others it is not there");
    assert!(cache.image(layer).unwrap().is_none());
    assert_eq!(pull(&bench, "A@v1", &cache).fetched_bytes(), SIZE);
    bench.assert_cached(&cache, &manifests[1]);
}

#[test]
fn a_quota_removes_borrowers_before_what_they_borrow_from() {
    let mut bench = Bench::new();
    let manifests = versions(&mut bench, 6);
    let cache = bench.cache();
    let layer = |i: usize| &manifests[i].layers[0];
    drop(pull(&bench, "A@v0", &cache));
    for i in 1..6 {
        drop(pull(&bench, &format!("A@v{i}"), &cache));
    }
    // As if each was used a day after the one before.
    let used = |path: &Path, day: u64| {
        let times = std::fs::FileTimes::new();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * (1000 + day));
        std::fs::File::open(path).unwrap().set_times(times.set_modified(time)).unwrap();
    };
    used(&cache.blob_path(&layer(0).digest), 0);
    (1..6).for_each(|i| used(&file(&cache, layer(i)), i as u64));
    let held = |expected: [bool; 6]| {
        let held: Vec<bool> = (0..6).map(|i| cache.holds(layer(i))).collect();
        assert_eq!(held, expected);
    };
    let lease = cache.lease(&[layer(2).digest]).unwrap();
    used(&file(&cache, layer(2)), 2);
    // A byte too much: what nobody needs goes first, and that is the last one alone.
    let quota = |bytes| {
        cache.prune(&PruneOptions { quota: Some(bytes), ..Default::default() }).unwrap();
    };
    quota(cache.disk_use().unwrap().bytes - 1);
    held([true, true, true, true, true, false]);
    quota(0);
    held([true, true, true, false, false, false]);
    assert_reads(&cache, &manifests[2]);
    drop(lease);
    quota(0);
    held([false; 6]);
    assert_eq!(cache.disk_use().unwrap().bytes, 0);
}

#[test]
fn a_forgotten_base_stays_as_long_as_somebody_borrows_from_it() {
    let mut bench = Bench::new();
    let manifests = versions(&mut bench, 4);
    let cache = bench.cache();
    (0..4).for_each(|i| drop(pull(&bench, &format!("A@v{i}"), &cache)));
    for i in 0..3 {
        cache.forget(&format!("A@v{i}").parse().unwrap()).unwrap();
    }
    let pruned = cache.prune(&PruneOptions::default()).unwrap();
    let table = manifests[0].layers[0].chunks.clone().unwrap();
    assert_eq!(pruned.bytes, 3 * table.size, "nothing is compared with the tables any more");
    assert_reads(&cache, &manifests[3]);
    // Whole, it needs nobody.
    bench.assert_cached(&cache, &manifests[3]);
    let pruned = cache.prune(&PruneOptions::default()).unwrap();
    assert!(pruned.bytes > SIZE && pruned.blobs.len() >= 3, "{pruned:?}");
    bench.assert_cached(&cache, &manifests[3]);
    assert_eq!(cache.disk_use().unwrap().unneeded, 0);
}

#[test]
fn a_shared_cache_lends_and_holds_borrowed_images() {
    let mut bench = Bench::new();
    let manifests = versions(&mut bench, 4);
    let shared = bench.cache();
    (0..2).for_each(|i| drop(pull(&bench, &format!("A@v{i}"), &shared)));
    let own = Cache::open(bench.path("own")).unwrap().with_shared(bench.path("cache"));
    // What is there, in whatever form, is used in place.
    for (i, manifest) in manifests.iter().enumerate().take(2) {
        let pulled = pull(&bench, &format!("A@v{i}"), &own);
        assert_eq!(pulled.layers, [Outcome::Cached]);
        assert_reads(&own, manifest);
    }
    assert_eq!(own.disk_use().unwrap().bytes, 0);
    // New versions borrow from it, and from what borrowed from it.
    for (i, manifest) in manifests.iter().enumerate().skip(2) {
        let pulled = pull(&bench, &format!("A@v{i}"), &own);
        assert_eq!(
            (borrowed(&pulled), pulled.fetched_bytes()),
            (SIZE - CHUNK as u64, CHUNK as u64)
        );
        assert_reads(&own, manifest);
    }
    assert!(own.disk_use().unwrap().bytes < 3 * CHUNK as u64);
    assert_eq!(own.verify(false).unwrap().damage, []);
    // A file of one that only the shared cache has is made in our own.
    bench.assert_cached(&own, &manifests[1]);
    assert!(own.blob_path(&manifests[1].layers[0].digest).exists());
    // Without it they come again.
    std::fs::remove_dir_all(bench.path("cache")).unwrap();
    assert!(!own.holds(&manifests[3].layers[0]));
    drop(pull(&bench, "A@v3", &own));
    bench.assert_cached(&own, &manifests[3]);
}

#[test]
fn borrowed_is_complete_to_lazy_readers_and_is_explained() {
    let mut bench = Bench::new();
    let manifests = versions(&mut bench, 2);
    let cache = bench.cache();
    drop(pull(&bench, "A@v0", &cache));
    let explained =
        mica_fetcher::explain(&*bench.registry(), &"A@v1".parse().unwrap(), &cache).unwrap();
    let (fetch, borrow) = (CHUNK as u64, SIZE - CHUNK as u64);
    assert_eq!(explained.layers[0].1, Way::Borrowed { fetch, borrow, requests: 1 });
    assert_eq!(explained.fetch(), fetch);
    drop(pull(&bench, "A@v1", &cache));
    let layer = &manifests[1].layers[0];
    assert_eq!(cache.local(layer), SIZE);
    let registry: Arc<dyn mica_fetcher::registry::Registry> =
        Arc::from(open(bench.path("registry").to_str().unwrap(), &OpenOptions::default()).unwrap());
    let lazy = mica_fetcher::open_lazy(registry, &cache, layer, LazyOptions::default()).unwrap();
    let Lazy::Complete(Held::Borrowed(image)) = lazy else { panic!("not complete") };
    assert_eq!((image.size(), image.borrowed()), (SIZE, borrow));
}
