//! Signatures in every kind of registry.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::oci::{Distribution, image};
use common::s3::Store;
use common::{Bench, hasty, hasty_retry};
use mica_fetcher::registry::{OpenOptions, open, open_writable};
use mica_fetcher::{
    Cache, PullError, PullOptions, PushOptions, SecretKey, ServeOptions, Server, Signatures, Trust,
    TrustError, TrustRule, Writers, listen,
};
use mica_graph::Manifest;

fn key() -> SecretKey {
    SecretKey::parse(&SecretKey::generate(None).unwrap().0, None).unwrap()
}

fn asks_for(keys: &[&SecretKey]) -> Trust {
    let keys: Vec<_> = keys.iter().map(|key| key.public().unwrap()).collect();
    let (names, threshold) = (vec!["*".to_owned()], keys.len());
    Trust::default().with("the test".to_owned(), vec![TrustRule { names, keys, threshold }])
}

fn options() -> OpenOptions {
    let mut options = hasty();
    options.http.idle_timeout = std::time::Duration::from_secs(30);
    options
}

fn pull(
    address: &str,
    options: &OpenOptions,
    cache: &Cache,
    trust: Trust,
) -> Result<Manifest, PullError> {
    let registry = open(address, options).unwrap();
    let options = PullOptions { trust, retry: hasty_retry(), ..PullOptions::default() };
    let pulled = mica_fetcher::pull(&*registry, &"A@1".parse().unwrap(), cache, &options, &());
    pulled.map(|pulled| pulled.manifest)
}

fn round_trip(bench: &mut Bench, address: &str, open: &OpenOptions) {
    let manifest = bench.package("A", "1", &[("A", image("one", 2000))]);
    let (first, second) = (key(), key());
    let sign = |key: &SecretKey| Signatures::from_iter([key.sign(&manifest).unwrap()]);
    let registry = open_writable(address, open).unwrap();
    let options = PushOptions { signatures: sign(&first), ..PushOptions::default() };
    mica_fetcher::push(&*registry, &manifest, &|d| bench.image(d), &options, &()).unwrap();

    let cache = Cache::open(bench.path("cache")).unwrap();
    let error = pull(address, open, &cache, asks_for(&[&second])).unwrap_err();
    assert!(matches!(error, PullError::Trust(TrustError::TooFew { found: 0, .. })), "{error}");
    assert_eq!(cache.image(&manifest.layers[0]).unwrap(), None, "nothing of it was fetched");
    pull(address, open, &cache, asks_for(&[&first])).unwrap();
    assert_eq!(cache.signatures(&manifest.digest()).unwrap().iter().count(), 1);

    // A second signer, much later.
    let registry = open_writable(address, open).unwrap();
    registry.resolve(&"A@1".parse().unwrap()).unwrap();
    registry.add_signatures(&manifest.digest(), &sign(&second)).unwrap();
    registry.add_signatures(&manifest.digest(), &sign(&second)).unwrap();
    pull(address, open, &cache, asks_for(&[&first, &second])).unwrap();
    let all = cache.signatures(&manifest.digest()).unwrap();
    assert!(all.iter().count() >= 2);

    // Archives carry them along.
    let mut archive = tempfile::tempfile().unwrap();
    mica_fetcher::save(&cache, &["A@1".parse().unwrap()], &[], &mut archive).unwrap();
    let other = Cache::open(bench.path("other")).unwrap();
    mica_fetcher::load(&other, &mut archive, &Trust::default()).unwrap();
    assert_eq!(other.signatures(&manifest.digest()).unwrap(), all);
    other.check_trust(&asks_for(&[&first, &second]), &manifest).unwrap();
    other.check_trust(&asks_for(&[&key()]), &manifest).unwrap_err();
}

#[test]
fn in_a_folder() {
    let mut bench = Bench::new();
    let address = bench.path("registry").to_str().unwrap().to_owned();
    round_trip(&mut bench, &address, &options());
}

#[test]
fn in_our_server() {
    let mut bench = Bench::new();
    let listener = listen("127.0.0.1:0").unwrap();
    let options = ServeOptions { writers: Writers::Everybody, ..ServeOptions::default() };
    let server = Server::spawn(listener, &bench.path("registry"), options).unwrap();
    round_trip(&mut bench, &server.url(), &self::options());
}

#[test]
fn in_an_oci_registry() {
    let mut bench = Bench::new();
    let server = Distribution::start(&bench.path("oci"), "");
    round_trip(&mut bench, &server.address("team"), &options());
}

#[test]
fn in_a_bucket() {
    let (mut bench, store) = (Bench::new(), Store::start());
    round_trip(&mut bench, &store.address("bucket"), &store.options());
}

/// Whoever may write to a registry, or send an archive, can add signatures that are worth nothing.
#[test]
fn junk_does_not_crowd_out_what_counts() {
    let mut bench = Bench::new();
    let manifest = bench.package("A", "1", &[("A", image("one", 2000))]);
    let good = key();
    let trust = asks_for(&[&good]);
    let junk: Signatures = (0..100).map(|_| key().sign(&manifest).unwrap()).collect();
    // First in the cache, then in the document that a registry sends.
    let cache = Cache::open(bench.path("cache")).unwrap();
    cache.add_signatures(&manifest, &junk, &Trust::default()).unwrap();
    let held = cache.signatures(&manifest.digest()).unwrap();
    assert_eq!(held.len(), Signatures::MAX_COUNT);
    bench.push(&*bench.registry(), &manifest);
    let mut document = junk.clone();
    document.merge(&Signatures::from_iter([good.sign(&manifest).unwrap()]));
    let folder = bench.path("registry/signatures");
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join(format!("{}.minisig", manifest.digest().hex()));
    std::fs::write(&file, document.to_text()).unwrap();
    let address = bench.path("registry").to_str().unwrap().to_owned();
    pull(&address, &options(), &cache, trust.clone()).unwrap();
    let held = cache.signatures(&manifest.digest()).unwrap();
    assert_eq!(held.len(), Signatures::MAX_COUNT);
    cache.check_trust(&trust, &manifest).unwrap();
    // More junk, from elsewhere, does not push it out again.
    let junk: Signatures = (0..9).map(|_| key().sign(&manifest).unwrap()).collect();
    cache.add_signatures(&manifest, &junk, &trust).unwrap();
    cache.check_trust(&trust, &manifest).unwrap();
    // Who cannot be heard any more is told so.
    let one = Signatures::from_iter([key().sign(&manifest).unwrap()]);
    let error = bench.registry().add_signatures(&manifest.digest(), &one).unwrap_err();
    assert!(error.to_string().contains("takes no more signatures of"), "{error}");
}

#[test]
fn documents_of_others_do_no_harm() {
    let mut bench = Bench::new();
    let manifest = bench.package("A", "1", &[("A", vec![1])]);
    let good = Signatures::from_iter([key().sign(&manifest).unwrap()]).to_text();
    assert_eq!(Signatures::parse(good.as_bytes()).unwrap().to_text(), good);
    assert_eq!(Signatures::parse(b"").unwrap(), Signatures::default());
    // Every shorter text, and every line with less or more of it, is refused or read, never a panic.
    for end in 0..good.len() {
        let parsed = Signatures::parse(&good.as_bytes()[..end]);
        assert!(end + 1 >= good.len() || end == 0 || parsed.is_err(), "{end}");
    }
    let lines: Vec<&str> = good.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        for changed in [&line[..line.len() - 4], &format!("{line}AAAA"), "", "\u{fffd}"] {
            let mut lines = lines.clone();
            lines[i] = changed;
            if let Ok(parsed) = Signatures::parse(lines.join("\n").as_bytes()) {
                asks_for(&[&key()]).check(&manifest, &parsed).unwrap_err();
            }
        }
    }
}
