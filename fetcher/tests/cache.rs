//! The cache: damage, leases, removal, names.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{Bench, chain, noise};
use mica_fetcher::{
    Cache, CacheError, Damage, LookupError, PruneOptions, PullOptions, Pulled, SecretKey,
    Signatures,
};
use mica_graph::{Blob, Manifest};

fn pull(bench: &Bench, cache: &Cache, reference: &str) -> Pulled {
    let registry = bench.registry();
    let reference = reference.parse().unwrap();
    mica_fetcher::pull(&*registry, &reference, cache, &PullOptions::default(), &()).unwrap()
}

fn published(bench: &mut Bench, versions: &[&str]) -> Vec<Manifest> {
    let registry = bench.registry();
    let package = |version: &&str| {
        let layers = [("top", noise(version, 1000)), ("base", noise("base", 10_000))];
        let manifest = bench.package("A", version, &layers);
        bench.push(&*registry, &manifest);
        manifest
    };
    versions.iter().map(package).collect()
}

#[test]
fn packages_are_known_offline() {
    let mut bench = Bench::new();
    let manifests = published(&mut bench, &["v1", "v2"]);
    let cache = bench.cache();
    assert!(matches!(cache.lookup(&"A".parse().unwrap()), Err(LookupError::UnknownPackage(_))));
    drop(pull(&bench, &cache, "A@v1"));
    assert_eq!(cache.lookup(&"A".parse().unwrap()).unwrap(), manifests[0]);
    let held = pull(&bench, &cache, "A");
    assert_eq!(cache.lookup(&"A".parse().unwrap()).unwrap(), manifests[1]);
    assert_eq!(cache.lookup(&"A@v1".parse().unwrap()).unwrap(), manifests[0]);
    assert!(matches!(cache.lookup(&"A@v".parse().unwrap()), Err(LookupError::Select(_))));
    let packages = cache.packages().unwrap();
    let described: Vec<_> = packages
        .iter()
        .map(|p| (p.manifest.version.as_str(), p.tags.len(), p.local, p.layers, p.leased))
        .collect();
    assert_eq!(described, [("v2", 1, 11_000, 2, true), ("v1", 0, 11_000, 2, false)]);
    assert_eq!(
        cache.layer_by_inputs(&manifests[0].layers[0].inputs).unwrap().as_ref(),
        Some(&manifests[0].layers[0])
    );
    drop(held);
    cache.forget(&"A@v1".parse().unwrap()).unwrap();
    assert_eq!(cache.packages().unwrap().len(), 1);
}

#[test]
fn a_lease_outlives_everything_but_its_holder() {
    let mut bench = Bench::new();
    published(&mut bench, &["v1", "v2"]);
    let cache = bench.cache();
    let old = pull(&bench, &cache, "A@v1");
    drop(pull(&bench, &cache, "A@v2"));
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    let dry = cache.prune(&PruneOptions { dry_run: true, ..all.clone() }).unwrap();
    assert_eq!((dry.versions.len(), dry.bytes), (1, 1000));
    let pruned = cache.prune(&all).unwrap();
    assert_eq!((pruned.versions.len(), pruned.blobs.len(), pruned.bytes), (1, 1, 1000));
    bench.assert_cached(&cache, &old.manifest);
    // A descriptor handed on keeps it, whoever had it first.
    let handed: OwnedFd = old.lease.as_fd().try_clone_to_owned().unwrap();
    let manifest = old.manifest;
    drop(old.lease);
    assert_eq!(cache.prune(&all).unwrap().bytes, 0);
    assert_eq!(cache.disk_use().unwrap().leased, 11_000);
    drop(handed);
    assert_eq!(cache.prune(&all).unwrap().bytes, 11_000);
    assert!(matches!(cache.stack(&manifest), Err(CacheError::Missing { .. })));
    assert_eq!(std::fs::read_dir(bench.path("cache/leases")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(bench.path("cache/manifests")).unwrap().count(), 0);
}

#[test]
fn a_quota_removes_what_was_longest_unused() {
    let mut bench = Bench::new();
    let registry = bench.registry();
    for i in 0..6 {
        let manifest =
            bench.package("A", &format!("v{i}"), &[("top", noise(&format!("{i}"), 1000))]);
        bench.push(&*registry, &manifest);
    }
    let cache = bench.cache().with_quota(Some(3000));
    let held = pull(&bench, &cache, "A@v0");
    for i in 1..6 {
        drop(pull(&bench, &cache, &format!("A@v{i}")));
        std::thread::sleep(Duration::from_millis(5));
    }
    let local: Vec<bool> = cache.packages().unwrap().iter().map(|p| p.local > 0).collect();
    assert_eq!(local, [true, true, false, false, false, true], "v5, v4 and the leased v0");
    drop(held);
    let pruned = cache.prune(&PruneOptions { quota: Some(2500), ..Default::default() }).unwrap();
    assert_eq!(pruned.bytes, 1000);
    assert_eq!(cache.disk_use().unwrap().bytes, 2000);
    // What was removed comes again.
    drop(pull(&bench, &cache, "A@v1"));
}

/// Calls `check` with one bit of the file flipped, at its start, its middle and its end.
fn with_flipped_bits(path: &std::path::Path, mut check: impl FnMut()) {
    let mut bytes = std::fs::read(path).unwrap();
    for place in [0, bytes.len() / 2, bytes.len() - 1] {
        bytes[place] ^= 4;
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, &bytes).unwrap();
        bytes[place] ^= 4;
        check();
    }
}

/// Every kind of file that the cache's module names, but locks, which are empty.
#[test]
fn one_flipped_bit_in_any_file_is_found_named_and_healed() {
    let mut bench = Bench::new();
    let pieces: Vec<Vec<u8>> = (0..4).map(|i| noise(&i.to_string(), 2000)).collect();
    let layer = bench.chunked("L", "v1", &pieces);
    let manifest = Manifest { layers: vec![layer.clone()], ..bench.package("A", "v1", &[]) };
    let registry = bench.registry();
    bench.push(&*registry, &manifest);
    let key = SecretKey::parse(&SecretKey::generate(None).unwrap().0, None).unwrap();
    let signatures = Signatures::from_iter([key.sign(&manifest).unwrap()]);
    registry.add_signatures(&manifest.digest(), &signatures).unwrap();
    let cache = bench.cache();
    drop(pull(&bench, &cache, "A@v1"));
    let table = layer.chunks.clone().unwrap();
    cache.insert(&table, &bench.image(&table.digest).unwrap()).unwrap();
    cache.keep_trace(&layer.digest, &[0..2000, 4000..6000]).unwrap();
    let own = |folder: &str, name: &str| cache.root().join(folder).join(name);
    let files = [
        cache.blob_path(&layer.digest),
        cache.blob_path(&table.digest),
        own("manifests", &manifest.digest().hex()),
        own("packages", "A"),
        own("signatures", &manifest.digest().hex()),
        own("touched", &layer.digest.hex()),
    ];
    for path in files {
        with_flipped_bits(&path, || {
            cache.keep_trace(&layer.digest, &[]).unwrap();
            let verified = cache.verify(true).unwrap();
            assert!(verified.damage.iter().any(|d| d.path() == path), "{}", path.display());
            mica_fetcher::heal(&*registry, &cache, &verified, &PullOptions::default()).unwrap();
            // What is only a note of a run is made again by the next one.
            cache.keep_trace(&layer.digest, &[0..2000, 4000..6000]).unwrap();
            assert_eq!(cache.verify(false).unwrap().damage, [], "{}", path.display());
            assert!(path.exists(), "{}", path.display());
            bench.assert_cached(&cache, &cache.lookup(&"A@v1".parse().unwrap()).unwrap());
            assert_eq!(cache.signatures(&manifest.digest()).unwrap(), signatures);
        });
    }
    std::fs::write(own("blobs", "stray"), "x").unwrap();
    assert!(matches!(cache.verify(false).unwrap().damage[..], [Damage::Foreign { .. }]));
    std::fs::remove_file(own("blobs", "stray")).unwrap();
    // Half an image of a pull that was cut off: the bit costs a second transfer.
    let part = own("incoming", &format!("{}.part", layer.digest.hex()));
    let half = &pieces.concat()[..5000];
    std::fs::write(&part, half).unwrap();
    with_flipped_bits(&part, || {
        std::fs::remove_file(cache.blob_path(&layer.digest)).unwrap();
        assert_eq!(pull(&bench, &cache, "A@v1").fetched_bytes(), 3000 + 8000);
        bench.assert_cached(&cache, &manifest);
        std::fs::write(&part, half).unwrap();
    });
    // A lease that cannot be read protects everything.
    let lease = cache.lease(&[]).unwrap();
    cache.packages().unwrap(); // removes those of the dead
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    let name = std::fs::read_dir(own("leases", "")).unwrap().next().unwrap().unwrap().path();
    for place in [0, 20] {
        let file = std::fs::File::options().read(true).write(true).open(&name).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1], place).unwrap();
        assert_eq!(cache.prune(&all).unwrap().bytes, 0);
        file.write_all_at(&byte, place).unwrap();
    }
    drop(lease);
}

#[test]
fn a_version_file_is_healed_unless_it_names_another_layout() {
    let bench = Bench::new();
    let root = bench.cache().root().to_owned();
    with_flipped_bits(&root.join("version"), || {
        let error = Cache::open(&root).unwrap_err();
        assert_eq!(error.to_string(), format!("{}/version is damaged", root.display()));
        assert!(error.hint().unwrap().contains("verify --repair"));
        assert!(Cache::open_damaged(&root).unwrap().1);
        assert!(!Cache::open_damaged(&root).unwrap().1);
    });
    std::fs::write(root.join("version"), "mica-cache 2\n").unwrap();
    let error = Cache::open_damaged(&root).unwrap_err();
    assert!(error.to_string().contains("has layout `mica-cache 2`"), "{error}");
}

#[test]
fn a_truncated_image_is_found_when_it_is_used_and_fetched_again() {
    let mut bench = Bench::new();
    let manifest = published(&mut bench, &["v1"]).remove(0);
    let cache = bench.cache();
    drop(pull(&bench, &cache, "A"));
    let path = cache.blob_path(&manifest.layers[0].digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"short").unwrap();
    let error = cache.stack(&manifest).unwrap_err();
    assert!(error.to_string().contains("has 5 bytes, not 1000"), "{error}");
    assert!(error.hint().unwrap().contains("verify --repair"));
    assert_eq!(pull(&bench, &cache, "A").fetched_bytes(), 1000);
    bench.assert_cached(&cache, &manifest);
}

#[test]
fn a_shared_cache_below_is_used_in_place() {
    let mut bench = Bench::new();
    let manifest = published(&mut bench, &["v1"]).remove(0);
    drop(pull(&bench, &bench.cache(), "A"));
    let own = Cache::open(bench.path("own")).unwrap().with_shared(bench.path("cache"));
    assert_eq!(pull(&bench, &own, "A").fetched_bytes(), 0);
    assert!(own.stack(&manifest).unwrap()[0].starts_with(bench.path("cache")));
    assert_eq!(own.disk_use().unwrap().bytes, 0);
    std::fs::remove_dir_all(bench.path("cache")).unwrap();
    assert_eq!(pull(&bench, &own, "A").fetched_bytes(), 11_000);
}

#[test]
fn a_file_is_taken_in_only_as_what_it_is() {
    let mut bench = Bench::new();
    let layer = bench.layer("A", "1", b"content");
    let cache = bench.cache();
    let blob = layer.image();
    let source = bench.image(&layer.digest).unwrap();
    assert!(cache.insert(&blob, &source).unwrap());
    assert!(!cache.insert(&blob, &source).unwrap());
    let other = Blob { digest: mica_graph::Digest::of(b"other"), size: 7 };
    let error = cache.insert(&other, &source).unwrap_err();
    assert!(matches!(error, CacheError::NotThisBlob { .. }), "{}", chain(&error));
    assert_eq!(cache.image(&layer).unwrap(), Some(cache.blob_path(&layer.digest)));
}

#[test]
fn folders_of_others_are_left_alone() {
    let bench = Bench::new();
    let error = Cache::open(bench.folder.path()).unwrap_err();
    assert!(matches!(error, CacheError::NotACache { .. }));
    assert!(!bench.path("blobs").exists());
}
