//! What networks and servers do to a pull.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::{Duration, Instant};

use common::proxy::{Fault, Proxy};
use common::{Bench, chain, hasty_retry, http, noise};
use mica_fetcher::registry::{Access, Registry, RegistryError, open};
use mica_fetcher::{Cache, Outcome, PullError, PullOptions, Pulled, ServeOptions, Server, listen};
use mica_graph::{Digest, Manifest};

const SIZE: usize = 1_000_000;

/// A package of one image of `SIZE` bytes, behind a proxy that spoils the first answers for it.
struct Faulty {
    bench: Bench,
    manifest: Manifest,
    proxy: Proxy,
    server: Server,
}

fn pull(registry: &dyn Registry, cache: &Cache) -> Result<Pulled, PullError> {
    let options = PullOptions { retry: hasty_retry(), ..PullOptions::default() };
    mica_fetcher::pull(registry, &"A".parse().unwrap(), cache, &options, &())
}

impl Faulty {
    fn new(faults: &[Fault]) -> Self {
        let mut bench = Bench::new();
        let manifest = bench.package("A", "1", &[("A", noise("1", SIZE))]);
        let registry = bench.registry();
        bench.push(&*registry, &manifest);
        let listener = listen("127.0.0.1:0").unwrap();
        let server =
            Server::spawn(listener, &bench.path("registry"), ServeOptions::default()).unwrap();
        // The manifest is a blob too, and comes first.
        let faults = std::iter::once(Fault::Pass).chain(faults.iter().cloned()).collect();
        let proxy = Proxy::new(server.address(), faults);
        Self { bench, manifest, proxy, server }
    }

    fn pull_into(&self, cache: &Cache) -> Result<Pulled, PullError> {
        pull(&*http(&self.proxy.url()), cache)
    }

    fn fetched(&self) -> u64 {
        let cache = self.bench.cache();
        let pulled = self.pull_into(&cache).unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.bench.assert_cached(&cache, &self.manifest);
        pulled.fetched_bytes()
    }

    fn error(&self) -> String {
        let cache = self.bench.cache();
        let error = chain(&self.pull_into(&cache).unwrap_err());
        assert_eq!(cache.image(&self.manifest.layers[0]).unwrap(), None, "not cached");
        assert!(error.starts_with("cannot fetch layer //lib:A ("), "{error}");
        error
    }
}

#[test]
fn connections_that_break_are_taken_up_where_they_broke() {
    for faults in [
        &[Fault::Refuse, Fault::Refuse, Fault::Refuse][..],
        &[Fault::Cut(0), Fault::Cut(1), Fault::Cut(500_000)],
        &[Fault::Cut(999_999)],
        &[Fault::Stall(300_000)],
        &[Fault::Answer("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned())],
        &[Fault::Answer(
            "HTTP/1.1 429 No\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n".to_owned(),
        )],
        &[Fault::Answer("nonsense\r\n\r\n".to_owned())],
    ] {
        assert_eq!(Faulty::new(faults).fetched(), SIZE as u64, "each byte once: {faults:?}");
    }
}

#[test]
fn servers_that_get_ranges_wrong_are_accepted() {
    let ignored = Faulty::new(&[Fault::Cut(400_000), Fault::IgnoreRange]);
    assert_eq!(ignored.fetched(), 1_400_000);
    let wrong = Faulty::new(&[Fault::Cut(400_000), Fault::WrongRange, Fault::IgnoreRange]);
    assert_eq!(wrong.fetched(), 1_400_000);
}

#[test]
fn lengths_that_are_wrong_are_found_out() {
    // Of a part: what is missing is asked for. Of a whole blob it is seen before anything is taken.
    for more in [-100, 10] {
        let part = Faulty::new(&[Fault::Cut(400_000), Fault::WrongLength(more)]);
        assert_eq!(part.fetched(), SIZE as u64);
        let error = Faulty::new(&[Fault::WrongLength(more)]).error();
        let found = SIZE as i64 + more;
        assert!(error.contains(&format!("has {found} bytes of blob")), "{error}");
    }
}

#[test]
fn a_byte_a_second_is_as_good_as_nothing() {
    let slow = Fault::Trickle(1, Duration::from_secs(1));
    let faulty = Faulty::new(&[slow]);
    let since = Instant::now();
    // Long enough for a byte to come now and then.
    let mut options = common::hasty();
    options.http.idle_timeout = Duration::from_millis(1500);
    let registry = open(&faulty.proxy.url(), &options).unwrap();
    let cache = faulty.bench.cache();
    let pulled = pull(&*registry, &cache).unwrap();
    faulty.bench.assert_cached(&cache, &faulty.manifest);
    assert_eq!(pulled.fetched_bytes(), SIZE as u64);
    assert!(since.elapsed() < Duration::from_secs(30));
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let origin = Faulty::new(&[]);
    let other = Proxy::new(origin.server.address(), vec![]);
    let faults = vec![Fault::Redirect(other.url()); 3];
    let proxy = Proxy::new(origin.server.address(), faults);
    for access in [
        Access::Bearer("sesame".to_owned()),
        Access::Basic { user: "user".to_owned(), password: "sesame".to_owned() },
    ] {
        let mut options = common::hasty();
        options.http.access = access;
        let registry = open(&proxy.url(), &options).unwrap();
        let cache = Cache::open(origin.bench.path("elsewhere")).unwrap();
        drop(pull(&*registry, &cache).unwrap());
        origin.bench.assert_cached(&cache, &origin.manifest);
    }
    let knows = |proxy: &Proxy| {
        let log = proxy.log.lock().unwrap();
        log.iter().filter(|head| head.to_lowercase().contains("authorization:")).count()
    };
    assert!(knows(&proxy) > 2 && other.count() == 2, "{} {}", knows(&proxy), other.count());
    assert_eq!(knows(&other), 0);
}

#[test]
fn wrong_bytes_are_thrown_away_and_named_if_they_stay_wrong() {
    assert_eq!(Faulty::new(&[Fault::Flip(77)]).fetched(), 2 * SIZE as u64);
    let faulty = Faulty::new(&[Fault::Flip(77), Fault::Flip(77)]);
    let error = faulty.error();
    let mut bytes = noise("1", SIZE);
    bytes[77] ^= 1;
    assert!(
        error.contains("sent wrong bytes for blob") && error.contains(&faulty.proxy.url()),
        "{error}"
    );
    assert!(error.contains(&faulty.manifest.layers[0].digest.to_string()), "{error}");
    assert!(error.contains(&Digest::of(&bytes).to_string()), "{error}");
    let left = std::fs::read_dir(faulty.bench.path("cache/incoming")).unwrap().count();
    assert_eq!(left, 0, "wrong bytes are not kept");
}

#[test]
fn a_truncated_image_in_the_registry_is_named() {
    let faulty = Faulty::new(&[]);
    let hex = faulty.manifest.layers[0].digest.hex();
    let path = faulty.bench.path("registry/blobs/blake3").join(&hex[..2]).join(&hex);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4711).unwrap();
    let error = faulty.error();
    assert!(error.contains("has 4711 bytes of blob") && error.contains("not 1000000"), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(faulty.error().contains("has no blob"));
}

#[test]
fn a_manifest_with_wrong_bytes_is_refused() {
    let faulty = Faulty::new(&[]);
    let proxy = Proxy::new(faulty.server.address(), vec![Fault::Flip(20)]);
    let registry = http(&proxy.url());
    let error = mica_fetcher::pull(
        &*registry,
        &"A".parse().unwrap(),
        &faulty.bench.cache(),
        &PullOptions::default(),
        &(),
    );
    let error = error.unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::WrongBytes { .. })), "{error}");
}

#[test]
fn nothing_hangs() {
    let since = Instant::now();
    let stalls = vec![Fault::Stall(10); 8];
    assert!(Faulty::new(&stalls).error().contains("nothing came for 0.3 s"));
    let slow = vec![Fault::Trickle(1, Duration::from_millis(20)); 8];
    assert!(Faulty::new(&slow).error().contains("bytes per second"));
    assert!(since.elapsed() < Duration::from_secs(30));
}

#[test]
fn refusals_are_not_tried_again() {
    let answer = "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n".to_owned();
    let faulty = Faulty::new(&vec![Fault::Answer(answer); 5]);
    assert!(faulty.error().contains("refuses to read: 403"));
    // Index, manifest, its signatures, image.
    assert_eq!(faulty.proxy.count(), 4);
}

#[test]
fn a_pull_goes_on_in_another_process_where_one_was_cut_off() {
    let faulty = Faulty::new(&vec![Fault::Cut(200_000); 4]);
    let cache = faulty.bench.cache();
    let error = faulty.pull_into(&cache).unwrap_err();
    assert!(chain(&error).contains("broke off"), "{}", chain(&error));
    let pulled = faulty.pull_into(&faulty.bench.cache()).unwrap();
    assert_eq!(pulled.layers[0], Outcome::Fetched { bytes: 200_000, resumed: 800_000, copied: 0 });
    // Left-overs that are wrong cost a second transfer, no more.
    let other = Cache::open(faulty.bench.path("other")).unwrap();
    let hex = faulty.manifest.layers[0].digest.hex();
    std::fs::write(other.root().join(format!("incoming/{hex}.part")), noise("x", 900_000)).unwrap();
    faulty.pull_into(&other).unwrap();
    faulty.bench.assert_cached(&other, &faulty.manifest);
}

#[test]
fn one_request_for_each_layer() {
    let mut bench = Bench::new();
    let contents: Vec<(String, Vec<u8>)> =
        (0..60).map(|i| (format!("L{i}"), noise(&format!("{i}"), 1000 + i))).collect();
    let layers: Vec<(&str, Vec<u8>)> =
        contents.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    let manifest = bench.package("A", "1", &layers);
    let registry = bench.registry();
    bench.push(&*registry, &manifest);
    let listener = listen("127.0.0.1:0").unwrap();
    let server = Server::spawn(listener, &bench.path("registry"), ServeOptions::default()).unwrap();
    let proxy = Proxy::new(server.address(), vec![]);
    let cache = bench.cache();
    let pull = || {
        let options = PullOptions::default();
        mica_fetcher::pull(&*http(&proxy.url()), &"A".parse().unwrap(), &cache, &options, &())
            .unwrap()
    };
    assert_eq!(pull().fetched_layers(), 60);
    assert_eq!(proxy.count(), 63, "index, manifest and signatures once");
    assert_eq!(pull().fetched_layers(), 0);
    assert_eq!(proxy.count(), 64, "what is cached costs one look at the index");
}
