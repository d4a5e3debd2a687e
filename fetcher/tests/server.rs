//! The server as other HTTP clients see it: curl is the judge.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Bench, noise};
use mica_fetcher::registry::{RateLimit, open, open_writable};
use mica_fetcher::{PullOptions, ServeOptions, Server, Writers, listen};

struct Served {
    bench: Bench,
    server: Server,
    blob: String,
}

fn served(writers: Writers) -> Served {
    let mut bench = Bench::new();
    let manifest = bench.package("A", "1", &[("A", noise("1", 100_000))]);
    let registry = bench.registry();
    bench.push(&*registry, &manifest);
    let hex = manifest.layers[0].digest.hex();
    let options = ServeOptions { writers, ..ServeOptions::default() };
    let server =
        Server::spawn(listen("127.0.0.1:0").unwrap(), &bench.path("registry"), options).unwrap();
    Served { bench, server, blob: format!("blobs/blake3/{}/{hex}", &hex[..2]) }
}

/// Status, headers and body.
fn curl(args: &[&str]) -> (u16, String, Vec<u8>) {
    let output = Command::new("curl")
        .args(["-sS", "-i", "--path-as-is", "--max-time", "20", "--noproxy", "*"])
        .args(args)
        .output()
        .expect("this test needs curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let end = output.stdout.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&output.stdout[..end]).to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, output.stdout[end + 4..].to_vec())
}

#[test]
fn ranges_tags_and_conditions() {
    let Served { server, blob, bench: _bench } = served(Writers::Nobody);
    let url = format!("{}/{blob}", server.url());
    let content = noise("1", 100_000);
    let (status, head, body) = curl(&[&url]);
    assert!(status == 200 && body == content, "{head}");
    assert!(head.contains("content-length: 100000") && head.contains("accept-ranges: bytes"));
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let (status, head, body) = curl(&["-r", "99990-", &url]);
    assert_eq!((status, &body[..]), (206, &content[99_990..]));
    assert!(head.contains("content-range: bytes 99990-99999/100000"), "{head}");
    let (status, _, body) = curl(&["-r", "-10", &url]);
    assert_eq!((status, &body[..]), (206, &content[99_990..]));
    let (status, head, _) = curl(&["-r", "100000-", &url]);
    assert_eq!(status, 416);
    assert!(head.contains("content-range: bytes */100000"));
    let (status, head, body) = curl(&["-I", &url]);
    assert_eq!((status, body.len()), (200, 0));
    assert!(head.contains("content-length: 100000"));
    let none_match = format!("If-None-Match: {etag}");
    assert_eq!(curl(&["-H", &none_match, &url]).0, 304);
    let if_range = ["-r", "5-9", "-H", "If-Range: \"other\"", &url];
    assert_eq!(curl(&if_range).0, 200);
    let index = format!("{}/packages/A/index.json", server.url());
    let (status, head, body) = curl(&[&index]);
    assert!(status == 200 && head.contains("content-type: application/json"));
    assert!(body.starts_with(b"{\"schema\":1,\"name\":\"A\""));
}

#[test]
fn nothing_outside_the_layout_can_be_read_or_written() {
    let Served { bench, server, blob } = served(Writers::Everybody);
    std::fs::write(bench.path("secret"), "secret").unwrap();
    let paths = [
        "../secret",
        "packages/../../secret",
        "packages/%2e%2e/%2e%2e/secret",
        "blobs/blake3/../../../secret",
        "locks/package-A",
        "incoming/",
        "packages/A/",
        "//etc/passwd",
        "",
        "blobs/blake3/..%2f..%2f..%2fsecret/x",
    ];
    for path in paths {
        let url = format!("{}/{path}", server.url());
        let (status, _, body) = curl(&[&url]);
        assert_eq!(status, 404, "{path}");
        assert!(!String::from_utf8_lossy(&body).contains("secret"), "{path}");
        let (status, ..) = curl(&["-X", "PUT", "--data", "x", &url]);
        assert_eq!(status, 405, "{path}");
    }
    let url = format!("{}/{blob}", server.url());
    assert_eq!(curl(&["-X", "DELETE", &url]).0, 405);
    // Overwriting a blob with something else changes nothing.
    let bad = url.replace(&url[url.len() - 4..], "0000");
    assert_eq!(curl(&["-X", "PUT", "--data", "x", &bad]).0, 422);
    assert_eq!(curl(&[&bad]).0, 404);
    let publish = format!("{}/packages/A", server.url());
    assert_eq!(curl(&["-X", "POST", "--data", "{}", &publish]).0, 400);
}

#[test]
fn a_stop_lets_requests_end_and_frees_the_port() {
    let Served { bench, server, blob } = served(Writers::Nobody);
    let address = server.address().to_string();
    let url = format!("{}/{blob}", server.url());
    let output = bench.path("slow");
    let mut slow = Command::new("curl")
        .args(["-sS", "-N", "--noproxy", "*", "--limit-rate", "50k", &url, "-o"])
        .arg(&output)
        .spawn()
        .expect("this test needs curl");
    // Until it is in the middle.
    let since = std::time::Instant::now();
    while std::fs::metadata(&output).map_or(0, |meta| meta.len()) == 0 {
        assert!(since.elapsed() < std::time::Duration::from_secs(60), "curl gets nothing");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    server.stop().unwrap();
    assert!(slow.wait().unwrap().success());
    assert_eq!(std::fs::read(output).unwrap().len(), 100_000);
    // A program that another test is just starting holds a copy of the listener until it runs.
    let since = std::time::Instant::now();
    let again = loop {
        match listen(&address) {
            Ok(listener) => break listener,
            Err(error) => assert!(since.elapsed().as_secs() < 60, "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    Server::spawn(again, &bench.path("registry"), ServeOptions::default()).unwrap();
}

#[test]
fn a_limit_of_the_rate_holds_both_ways() {
    let mut bench = Bench::new();
    let manifest =
        bench.package("A", "1", &[("A", noise("a", 400_000)), ("B", noise("b", 400_000))]);
    bench.registry();
    let options = ServeOptions { writers: Writers::Everybody, ..ServeOptions::default() };
    let listener = listen("127.0.0.1:0").unwrap();
    let server = Server::spawn(listener, &bench.path("registry"), options).unwrap();
    let mut options = common::hasty();
    options.http.rate = Some(RateLimit::new(1_000_000));
    let since = Instant::now();
    bench.push(&*open_writable(&server.url(), &options).unwrap(), &manifest);
    assert!(since.elapsed() > Duration::from_millis(600), "{:?}", since.elapsed());
    let since = Instant::now();
    let registry = open(&server.url(), &options).unwrap();
    let pull = PullOptions::default();
    mica_fetcher::pull(&*registry, &"A".parse().unwrap(), &bench.cache(), &pull, &()).unwrap();
    assert!(since.elapsed() > Duration::from_millis(600), "{:?}", since.elapsed());
    bench.assert_cached(&bench.cache(), &manifest);
}
