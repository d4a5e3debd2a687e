//! Mirrors, and credentials on the way to other hosts.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::proxy::{Fault, Proxy};
use common::{Bench, chain, hasty, hasty_retry, noise};
use mica_fetcher::registry::{Access, OpenOptions, open};
use mica_fetcher::{PullError, PullOptions, Pulled, ServeOptions, Server, listen};
use mica_graph::Manifest;

const SIZE: usize = 600_000;

struct Served {
    bench: Bench,
    manifest: Manifest,
    server: Server,
}

fn served() -> Served {
    let mut bench = Bench::new();
    let manifest = bench.package("A", "1", &[("A", noise("1", SIZE))]);
    bench.push(&*bench.registry(), &manifest);
    let listener = listen("127.0.0.1:0").unwrap();
    let server = Server::spawn(listener, &bench.path("registry"), ServeOptions::default()).unwrap();
    Served { bench, manifest, server }
}

impl Served {
    fn pull(&self, origin: &str, options: &OpenOptions) -> Result<Pulled, PullError> {
        let cache = self.bench.cache();
        cache.prune(&mica_fetcher::PruneOptions { all: true, ..Default::default() }).unwrap();
        let registry = open(origin, options).unwrap();
        let pull = PullOptions { retry: hasty_retry(), ..PullOptions::default() };
        let pulled = mica_fetcher::pull(&*registry, &"A".parse().unwrap(), &cache, &pull, &());
        if pulled.is_ok() {
            self.bench.assert_cached(&cache, &self.manifest);
        }
        pulled
    }

    fn mirrored(&self, mirrors: &[&Proxy], origin: &str) -> Result<Pulled, PullError> {
        let mirrors = mirrors.iter().map(|proxy| proxy.url()).collect();
        self.pull(origin, &OpenOptions { mirrors, ..hasty() })
    }
}

#[test]
fn bytes_come_from_a_mirror_and_names_from_the_origin() {
    let served = served();
    let mirror = Proxy::new(served.server.address(), vec![]);
    let origin = Proxy::new(served.server.address(), vec![]);
    served.mirrored(&[&mirror], &origin.url()).unwrap();
    assert_eq!((mirror.count(), origin.count()), (2, 2), "index and signatures are names");
}

#[test]
fn whoever_fails_is_replaced_in_the_middle() {
    let served = served();
    let address = served.server.address();
    // The manifest passes, the image breaks off.
    let breaks = Proxy::new(address, vec![Fault::Pass, Fault::Cut(200_000)]);
    let pulled = served.mirrored(&[&breaks], &served.server.url()).unwrap();
    assert_eq!(pulled.fetched_bytes(), SIZE as u64);
    assert_eq!(breaks.count(), 2, "left alone after it failed");
    let gone = Proxy::new(address, vec![Fault::Refuse; 50]);
    let missing = "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".to_owned();
    let empty = Proxy::new(address, vec![Fault::Answer(missing); 50]);
    served.mirrored(&[&gone, &empty], &served.server.url()).unwrap();
}

#[test]
fn wrong_bytes_from_mirrors_are_replaced_by_the_origins() {
    let served = served();
    let liar = || Proxy::new(served.server.address(), vec![Fault::Flip(5); 50]);
    let (one, two) = (liar(), liar());
    let pulled = served.mirrored(&[&one, &two], &served.server.url()).unwrap();
    assert_eq!(pulled.fetched_bytes(), 3 * SIZE as u64);
    drop(pulled);
    let bad_origin = liar();
    let error = chain(&served.mirrored(&[&one], &bad_origin.url()).unwrap_err());
    assert!(error.contains("wrong bytes"), "{error}");
}

#[test]
fn a_mirror_serves_while_the_origin_is_away() {
    let served = served();
    let mirror = Proxy::new(served.server.address(), vec![]);
    served.mirrored(&[&mirror], "http://127.0.0.1:1").unwrap();
    // Without one, the origin's error is told.
    let error = chain(&served.pull("http://127.0.0.1:1", &hasty()).unwrap_err());
    assert!(error.contains("cannot reach the registry at http://127.0.0.1:1"), "{error}");
}

#[test]
fn credentials_stay_with_their_host() {
    let served = served();
    let elsewhere = Proxy::new(served.server.address(), vec![]);
    let hex = served.manifest.layers[0].digest.hex();
    let moved = format!(
        "HTTP/1.1 307 Moved\r\nlocation: {}/blobs/blake3/{}/{hex}\r\ncontent-length: 0\r\n\r\n",
        elsewhere.url(),
        &hex[..2]
    );
    let origin = Proxy::new(served.server.address(), vec![Fault::Pass, Fault::Answer(moved)]);
    let mut options = hasty();
    options.http.access = Access::Bearer("sesame".to_owned());
    served.pull(&origin.url(), &options).unwrap();
    let shown = |proxy: &Proxy| -> Vec<bool> {
        proxy.log.lock().unwrap().iter().map(|head| head.contains("sesame")).collect()
    };
    assert_eq!(shown(&origin), [true; 4]);
    assert_eq!(shown(&elsewhere), [false]);
    // Nor are they sent to mirrors.
    let mirror = Proxy::new(served.server.address(), vec![]);
    options.mirrors = vec![mirror.url()];
    served.pull(&origin.url(), &options).unwrap();
    assert_eq!(shown(&mirror), [false, false]);
    // Those of a URL are sent as Basic, and shown nowhere.
    let basic = Proxy::new(served.server.address(), vec![]);
    let url = basic.url().replace("http://", "http://user:pw@");
    served.pull(&url, &hasty()).unwrap();
    assert!(
        basic.log.lock().unwrap()[0].to_lowercase().contains("authorization: basic dxnlcjpwdw==")
    );
}
