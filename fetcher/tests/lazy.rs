//! Images used before they are complete.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::proxy::{Fault, Proxy};
use common::{Bench, http, noise};
use mica_fetcher::{
    Cache, Lazy, LazyError, LazyImage, LazyOptions, ServeOptions, Server, listen, open_lazy,
};
use mica_graph::{Layer, Manifest};
use mica_squashfs::Source;

const CHUNK: usize = 100_000;
const CHUNKS: usize = 40;

struct Served {
    bench: Bench,
    layer: Layer,
    content: Vec<u8>,
    server: Server,
}

fn served() -> Served {
    let mut bench = Bench::new();
    let pieces: Vec<Vec<u8>> = (0..CHUNKS).map(|i| noise(&i.to_string(), CHUNK)).collect();
    let layer = bench.chunked("L", "1", &pieces);
    let manifest = Manifest { layers: vec![layer.clone()], ..bench.package("A", "1", &[]) };
    bench.push(&*bench.registry(), &manifest);
    let listener = listen("127.0.0.1:0").unwrap();
    let server = Server::spawn(listener, &bench.path("registry"), ServeOptions::default()).unwrap();
    Served { bench, layer, content: pieces.concat(), server }
}

impl Served {
    /// A proxy that passes the chunk table.
    fn proxy(&self, faults: Vec<Fault>) -> Proxy {
        let faults = [Fault::Pass].into_iter().chain(faults).collect();
        Proxy::new(self.server.address(), faults)
    }

    fn open(&self, url: &str, cache: &Cache, background: bool) -> Result<Lazy, LazyError> {
        let deadline = Duration::from_millis(1500);
        let options = LazyOptions { deadline, background, ..LazyOptions::default() };
        open_lazy(Arc::from(http(url)), cache, &self.layer, options)
    }

    fn partial(&self, url: &str, cache: &Cache, background: bool) -> LazyImage {
        match self.open(url, cache, background).unwrap() {
            Lazy::Partial(image) => image,
            Lazy::Complete(_) => panic!("complete"),
        }
    }

    fn assert_reads(&self, image: &LazyImage, offset: usize, length: usize) {
        let mut buffer = vec![0; length];
        image.read_exact_at(&mut buffer, offset as u64).unwrap();
        assert!(buffer == self.content[offset..offset + length]);
    }
}

#[test]
fn only_what_is_read_comes_and_a_later_process_goes_on() {
    let served = served();
    let (proxy, cache) = (served.proxy(vec![]), served.bench.cache());
    let image = served.partial(&proxy.url(), &cache, false);
    served.assert_reads(&image, 7 * CHUNK + 5, 10);
    served.assert_reads(&image, 2 * CHUNK - 5, 10);
    assert_eq!(image.local(), (3 * CHUNK as u64, (CHUNKS * CHUNK) as u64));
    let c = CHUNK as u64;
    assert_eq!(image.touched(), [7 * c..8 * c, c..2 * c, 2 * c..3 * c]);
    assert_eq!(proxy.count(), 3, "the table, one chunk, and two next to each other");
    // Many readers, one request.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| served.assert_reads(&image, 20 * CHUNK, CHUNK));
        }
    });
    assert_eq!(proxy.count(), 4);
    assert!(image.read_exact_at(&mut [0; 2], (CHUNKS * CHUNK) as u64 - 1).is_err());
    // A second user takes what the first one has.
    let Ok(Lazy::Partial(second)) = served.open(&proxy.url(), &cache, true) else {
        panic!("complete")
    };
    served.assert_reads(&second, 20 * CHUNK, CHUNK);
    assert_eq!(proxy.count(), 4);
    drop(second);
    // When the lock is free, what came is still there.
    drop(image);
    let since = Instant::now();
    let again = loop {
        match served.open(&proxy.url(), &cache, true) {
            Ok(Lazy::Partial(image)) if image.local().0 >= 4 * c => break image,
            Ok(Lazy::Partial(_)) if since.elapsed() < Duration::from_secs(20) => {}
            _ => panic!("not partial, or the lock did not become free"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(again.local().0 >= 4 * c);
    assert!(again.wait_complete(Duration::from_secs(30)));
    served.assert_reads(&again, 0, CHUNKS * CHUNK);
    assert_eq!(cache.verify(false).unwrap().damage, []);
    assert!(matches!(served.open(&proxy.url(), &cache, true), Ok(Lazy::Complete(_))));
}

/// What nobody asked for comes when nobody waits, and a request for it is given up for a reader.
#[test]
fn readers_go_first() {
    let served = served();
    let mut waits = Vec::new();
    // Two requests in bulk on their way at a trickle, each of as much as a reader would wait minutes for.
    let slow = Fault::Trickle(CHUNK, Duration::from_millis(300));
    let proxy = served.proxy(vec![slow; 2]);
    let image = served.partial(&proxy.url(), &served.bench.cache(), true);
    let until = Instant::now() + Duration::from_secs(60);
    while image.local().0 == 0 {
        assert!(Instant::now() < until, "the background never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    for chunk in [39, 38, 37] {
        let since = Instant::now();
        served.assert_reads(&image, chunk * CHUNK, CHUNK);
        waits.push(since.elapsed());
    }
    let (local, _) = image.local();
    assert!(
        local < (CHUNKS * CHUNK / 2) as u64,
        "{local} bytes came while somebody read: {waits:?}"
    );
    assert!(image.wait_complete(Duration::from_secs(60)));
    served.assert_reads(&image, 0, CHUNKS * CHUNK);
    // A read across chunks is one request.
    let before = proxy.count();
    let other = Cache::open(served.bench.path("c")).unwrap();
    let image = served.partial(&proxy.url(), &other, false);
    served.assert_reads(&image, 5 * CHUNK + 1, 3 * CHUNK);
    assert_eq!(proxy.count() - before, 2, "the table, and the chunks");
}

#[test]
fn wrong_bytes_are_never_seen_and_broken_connections_are_tried_again() {
    let served = served();
    let proxy =
        served.proxy(vec![Fault::Flip(9), Fault::Cut(50), Fault::Refuse, Fault::IgnoreRange]);
    let image = served.partial(&proxy.url(), &served.bench.cache(), false);
    served.assert_reads(&image, 3 * CHUNK, CHUNK);
    assert_eq!(image.local().0, CHUNK as u64);
}

#[test]
fn without_a_network_what_is_here_is_read_and_the_rest_fails_in_time() {
    let served = served();
    let stalls = vec![Fault::Stall(10); 100];
    let proxy = served.proxy([vec![Fault::Pass], stalls].concat());
    let image = served.partial(&proxy.url(), &served.bench.cache(), false);
    served.assert_reads(&image, 5, 10);
    let since = Instant::now();
    let error = image.read_exact_at(&mut [0; 10], 9 * CHUNK as u64).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().starts_with("cannot fetch chunk 9 of layer //lib:L: "), "{error}");
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    // The kernel asks again at once, for smaller pieces: that costs no further deadline.
    let since = Instant::now();
    image.read_exact_at(&mut [0; 10], 9 * CHUNK as u64).unwrap_err();
    image.read_exact_at(&mut [0; 10], 12 * CHUNK as u64).unwrap_err();
    assert!(since.elapsed() < Duration::from_millis(1000), "{:?}", since.elapsed());
    served.assert_reads(&image, 50, 100);
}

#[test]
fn a_layer_without_a_table_is_refused() {
    let mut served = served();
    served.layer.chunks = None;
    let opened = served.open(&served.server.url(), &served.bench.cache(), true);
    assert!(matches!(opened, Err(LazyError::NoTable(_))));
}

/// A source that is never quite silent holds a reader no longer than one that is.
#[test]
fn bytes_that_drip_end_a_read_in_time() {
    let served = served();
    let drip = || Fault::Trickle(1, Duration::from_millis(50));
    let proxy = served.proxy((0..64).map(|_| drip()).collect());
    let cache = served.bench.cache();
    let image = served.partial(&proxy.url(), &cache, true);
    let begun = Instant::now();
    let mut buffer = vec![0; 10];
    let error = image.read_exact_at(&mut buffer, 5 * CHUNK as u64).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(image);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
