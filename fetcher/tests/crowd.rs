//! Our server and clients that are slow, many, or not who they should be.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use common::{Bench, noise};
use mica_fetcher::registry::DirRegistry;
use mica_fetcher::{ServeOptions, Server, Writers, listen};
use mica_graph::{Blob, Digest};

fn served(bench: &Bench, options: ServeOptions) -> Server {
    Server::spawn(listen("127.0.0.1:0").unwrap(), &bench.path("registry"), options).unwrap()
}

fn published() -> Bench {
    let mut bench = Bench::new();
    let manifest = bench.package("A", "1", &[("A", noise("a", 16 << 20))]);
    bench.push(&*bench.registry(), &manifest);
    bench
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// The status of the answer to a request.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

fn get(address: SocketAddr) -> String {
    ask(
        address,
        &format!("GET /packages.json HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
    )
}

/// How long it takes until the other side has closed the connection.
fn closed_after(mut stream: TcpStream) -> Duration {
    let begun = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    while !matches!(stream.read(&mut buffer), Ok(0) | Err(_)) {}
    begun.elapsed()
}

#[test]
fn there_is_always_room_for_one_more() {
    let bench = published();
    let server = served(&bench, ServeOptions::default());
    for start in ["", "GET /pa", "GET /packages.json HTTP/1.1\r\nHost: x\r\n"] {
        let half_open: Vec<TcpStream> = (0..300)
            .map(|_| {
                let mut stream = connect(server.address());
                stream.write_all(start.as_bytes()).unwrap();
                stream
            })
            .collect();
        let begun = Instant::now();
        assert!(get(server.address()).contains("200"), "{start}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        drop(half_open);
    }
}

#[test]
fn a_head_that_does_not_come_is_not_waited_for() {
    let bench = published();
    let server = served(&bench, ServeOptions::default());
    let mut stream = connect(server.address());
    stream.write_all(b"GET /pa").unwrap();
    assert!(closed_after(stream) < Duration::from_secs(20));
}

fn hasty() -> ServeOptions {
    let idle_timeout = Duration::from_secs(1);
    ServeOptions { writers: Writers::Everybody, idle_timeout, ..ServeOptions::default() }
}

#[test]
fn transfers_that_trickle_are_cut_off() {
    let bench = published();
    let server = served(&bench, hasty());
    let address = server.address();
    let path =
        format!("/blobs/blake3/{0}/{1}", &Digest::of(b"x").hex()[..2], Digest::of(b"x").hex());
    // An upload, a byte at a time.
    let mut stream = connect(address);
    let head = format!("PUT {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let begun = Instant::now();
    while stream.write_all(b"x").is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the upload is still taken");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(bench.path("registry/incoming").read_dir().unwrap().count(), 0);
    // An answer that nobody takes.
    let manifest = bench.registry().index(&"A".parse().unwrap()).unwrap().unwrap();
    let manifest = bench.registry().manifest(&manifest.resolve(&"A".parse().unwrap()).unwrap());
    let hex = manifest.unwrap().layers[0].digest.hex();
    let mut stream = connect(address);
    let head = format!("GET /blobs/blake3/{}/{hex} HTTP/1.1\r\nHost: {address}\r\n\r\n", &hex[..2]);
    stream.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let mut came = 0;
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        came += n;
    }
    assert!(came < 16 << 20, "all of it came, {came} bytes: it was still being sent");
}

#[test]
fn web_pages_and_other_names_are_refused() {
    let bench = published();
    let server = served(&bench, ServeOptions { writers: Writers::Everybody, ..hasty() });
    let address = server.address();
    let body = r#"{"tag":"stable","version":"1"}"#;
    let post = |host: &str, more: &str| {
        let length = body.len();
        ask(
            address,
            &format!(
                "POST /packages/A/tags HTTP/1.1\r\nHost: {host}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            ),
        )
    };
    let page = "Origin: http://evil.example\r\nContent-Type: text/plain\r\n";
    assert!(post(&address.to_string(), page).contains("403"));
    assert!(post("evil.example", "").contains("403"));
    assert!(post("127.0.0.1.evil.example", "").contains("403"));
    let read = format!(
        "GET /packages.json HTTP/1.1\r\nHost: evil.example:{}\r\nConnection: close\r\n\r\n",
        address.port()
    );
    assert!(ask(address, &read).contains("403"));
    for host in [address.to_string(), "localhost".to_owned(), "[::1]:80".to_owned()] {
        assert!(post(&host, "").contains("200"), "{host}");
    }
    // A name without a dot is none of a web page; changes need one of ours all the same.
    let read = "GET /packages.json HTTP/1.1\r\nHost: registry:5080\r\nConnection: close\r\n\r\n";
    assert!(ask(address, read).contains("200"));
    assert!(post("registry:5080", "").contains("403"));
    let named = served(&bench, ServeOptions { hosts: vec!["reg.example".to_owned()], ..hasty() });
    let read = "GET /packages.json HTTP/1.1\r\nHost: reg.example\r\nConnection: close\r\n\r\n";
    assert!(ask(named.address(), read).contains("200"));
}

fn put(address: SocketAddr, bytes: &[u8]) -> String {
    let hex = Digest::of(bytes).hex();
    let mut stream = connect(address);
    let head = format!(
        "PUT /blobs/blake3/{}/{hex} HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        &hex[..2]
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A refusal may come before all is sent.
    let sent = format!("{:x}\r\n", bytes.len()).into_bytes();
    drop(stream.write_all(&[&sent, bytes, b"\r\n0\r\n\r\n"].concat()));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_quota_holds_also_for_what_does_not_say_how_long_it_is() {
    let bench = Bench::new();
    let server = served(&bench, ServeOptions { quota: Some(1 << 20), ..hasty() });
    assert!(put(server.address(), &noise("one", 600 << 10)).contains("201"));
    assert!(put(server.address(), &noise("two", 600 << 10)).contains("507"));
    assert!(put(server.address(), &noise("three", 300 << 10)).contains("201"));
    assert_eq!(bench.path("registry/incoming").read_dir().unwrap().count(), 0);
}

#[test]
fn what_nothing_refers_to_goes_after_a_while() {
    let bench = published();
    let registry = DirRegistry::open(&bench.path("registry")).unwrap();
    let (old, new) = (noise("old", 1000), noise("new", 1000));
    let blob = |bytes: &[u8]| Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
    for bytes in [&old, &new] {
        let content = mica_fetcher::registry::Content::Bytes(bytes);
        bench.registry().put_blob(&blob(bytes), content).unwrap();
    }
    // A day passes for everything but what was just sent.
    let day_ago = SystemTime::now() - Duration::from_secs(25 * 3600);
    let mut all = 0;
    for start in bench.path("registry/blobs/blake3").read_dir().unwrap() {
        for file in start.unwrap().path().read_dir().unwrap() {
            let path = file.unwrap().path();
            if path != blob_path(&bench, &Digest::of(&new)) {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(day_ago).unwrap();
            }
            all += 1;
        }
    }
    let day = Duration::from_secs(24 * 3600);
    let swept = registry.sweep_uploads(day).unwrap();
    assert_eq!(swept.removed, 1, "of {all}");
    assert!(!blob_path(&bench, &Digest::of(&old)).exists());
    assert!(blob_path(&bench, &Digest::of(&new)).exists());
    let cache = bench.cache();
    let options = mica_fetcher::PullOptions::default();
    mica_fetcher::pull(&registry, &"A".parse().unwrap(), &cache, &options, &()).unwrap();
    // An index that cannot be read keeps everything.
    std::fs::write(bench.path("registry/packages/A/index.json"), "x").unwrap();
    let file = std::fs::File::options().write(true).open(blob_path(&bench, &Digest::of(&new)));
    file.unwrap().set_modified(day_ago).unwrap();
    registry.sweep_uploads(day).unwrap_err();
    assert!(blob_path(&bench, &Digest::of(&new)).exists());
}

fn blob_path(bench: &Bench, digest: &Digest) -> std::path::PathBuf {
    let hex = digest.hex();
    bench.path("registry/blobs/blake3").join(&hex[..2]).join(hex)
}
