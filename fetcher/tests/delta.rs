//! A new version of a large layer, of which the smaller part is here: that is copied, and only its new chunks cross the network.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::proxy::{Fault, Proxy};
use common::{Bench, chain, hasty_retry, http, noise};
use mica_fetcher::{Cache, Outcome, PullOptions, Pulled, ServeOptions, Server, Way, listen};
use mica_graph::Manifest;

const CHUNK: usize = 100_000;

fn pieces(names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| noise(name, CHUNK)).collect()
}

/// Two versions of a layer of 20 chunks; the second has many chunks more, one changed, and two swapped.
struct Versions {
    bench: Bench,
    server: Server,
    manifests: Vec<Manifest>,
}

const ADDED: usize = 25;
const NEW: u64 = ((ADDED + 1) * CHUNK) as u64;
const TOTAL: u64 = ((20 + ADDED) * CHUNK) as u64;

fn versions() -> Versions {
    let mut bench = Bench::new();
    let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    let old = bench.chunked("L", "v1", &pieces(&names));
    let added: Vec<String> = (0..ADDED).map(|i| format!("added {i}")).collect();
    names.splice(3..3, added.iter().map(String::as_str));
    names[ADDED + 9] = "changed";
    names.swap(ADDED + 14, ADDED + 17);
    let new = bench.chunked("L", "v2", &pieces(&names));
    let registry = bench.registry();
    let mut manifests = Vec::new();
    for (version, layer) in [("v1", old), ("v2", new)] {
        let manifest = bench.package("A", version, &[]);
        let manifest = Manifest { layers: vec![layer], ..manifest };
        bench.push(&*registry, &manifest);
        manifests.push(manifest);
    }
    let listener = listen("127.0.0.1:0").unwrap();
    let server = Server::spawn(listener, &bench.path("registry"), ServeOptions::default()).unwrap();
    Versions { bench, server, manifests }
}

fn pull(url: &str, reference: &str, cache: &Cache) -> Pulled {
    let options = PullOptions { retry: hasty_retry(), ..PullOptions::default() };
    let pulled = mica_fetcher::pull(&*http(url), &reference.parse().unwrap(), cache, &options, &());
    pulled.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// What came of the second version's image behind these faults, which begin after its manifest and chunk table.
fn second(faults: &[Fault], spoil: impl Fn(&Versions, &Cache)) -> (u64, u64, usize) {
    let versions = versions();
    let cache = versions.bench.cache();
    drop(pull(&versions.server.url(), "A@v1", &cache));
    spoil(&versions, &cache);
    let faults = [Fault::Pass, Fault::Pass].into_iter().chain(faults.iter().cloned()).collect();
    let proxy = Proxy::new(versions.server.address(), faults);
    let pulled = pull(&proxy.url(), "A@v2", &cache);
    versions.bench.assert_cached(&cache, &versions.manifests[1]);
    let Outcome::Fetched { bytes, copied, .. } = pulled.layers[0] else { panic!("not fetched") };
    // Without the one that asks for signatures.
    (bytes, copied, proxy.count() - 1)
}

#[test]
fn only_new_chunks_come() {
    // Index, manifest, chunk table, a look for patches, two runs.
    assert_eq!(second(&[], |_, _| {}), (NEW, TOTAL - NEW, 6));
}

#[test]
fn a_pull_is_explained_and_versions_are_compared() {
    let Versions { bench, server, manifests } = versions();
    let (cache, registry) = (bench.cache(), http(&server.url()));
    let explain = |reference: &str| {
        mica_fetcher::explain(&*registry, &reference.parse().unwrap(), &cache).unwrap()
    };
    let size = 20 * CHUNK as u64;
    assert_eq!(explain("A@v1").layers[0].1, Way::Whole { fetch: size, resume: 0 });
    drop(pull(&server.url(), "A@v1", &cache));
    assert_eq!(explain("A@v1").layers[0].1, Way::Cached);
    let explained = explain("A@v2");
    let copy = 19 * CHUNK as u64;
    assert_eq!(explained.layers[0].1, Way::Chunks { fetch: NEW, copy, requests: 2 });
    assert_eq!(pull(&server.url(), "A@v2", &cache).fetched_bytes(), explained.fetch());
    let name = "A".parse().unwrap();
    let versions = mica_fetcher::history(&*registry, &name, 10).unwrap();
    let shown: Vec<_> =
        versions.iter().map(|v| (v.version.as_str(), v.tags.len(), v.changed, v.ship)).collect();
    assert_eq!(shown, [("v2", 1, 1, TOTAL), ("v1", 0, 1, size)]);
    assert_eq!(versions[1].digest, manifests[0].digest());
    assert_eq!(mica_fetcher::history(&*registry, &name, 1).unwrap().len(), 1);
    let error = mica_fetcher::history(&*registry, &"B".parse().unwrap(), 1).unwrap_err();
    assert!(error.to_string().ends_with("has no package B"));
}

#[test]
fn broken_connections_and_servers_without_ranges() {
    let (bytes, copied, _) = second(&[Fault::Cut(50_000), Fault::Refuse], |_, _| {});
    assert_eq!((bytes, copied), (NEW, 19 * CHUNK as u64));
    let (bytes, copied, requests) = second(&[Fault::IgnoreRange], |_, _| {});
    assert_eq!((bytes, copied, requests), (TOTAL, 3 * CHUNK as u64, 5));
}

#[test]
fn an_old_image_that_was_altered_only_costs_bytes() {
    let flip = |versions: &Versions, cache: &Cache| {
        let path = cache.blob_path(&versions.manifests[0].layers[0].digest);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[CHUNK] ^= 1;
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    };
    let (bytes, ..) = second(&[], flip);
    assert_eq!(bytes, NEW + TOTAL);
    let remove = |versions: &Versions, cache: &Cache| {
        std::fs::remove_file(cache.blob_path(&versions.manifests[0].layers[0].digest)).unwrap();
    };
    assert_eq!(second(&[], remove), (TOTAL, 0, 4));
}
