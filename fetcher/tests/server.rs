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
    served_with(ServeOptions { writers, ..ServeOptions::default() })
}

fn served_with(options: ServeOptions) -> Served {
    let mut bench = Bench::new();
    let manifest = bench.package("A", "1", &[("A", noise("1", 100_000))]);
    let registry = bench.registry();
    bench.push(&*registry, &manifest);
    let hex = manifest.layers[0].digest.hex();
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

/// Sends a document; the status of the answer, and what it says.
fn send(served: &Served, method: &str, path: &str, document: &str) -> (u16, String) {
    let file = served.bench.path("document");
    std::fs::write(&file, document).unwrap();
    let (url, data) = (format!("{}/{path}", served.server.url()), format!("@{}", file.display()));
    let (status, _, body) = curl(&["-X", method, "--data-binary", &data, &url]);
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// What the index says, if a reader can use it.
fn index(served: &Served) -> mica_fetcher::registry::Index {
    let registry = open(&served.server.url(), &Default::default()).unwrap();
    registry.index(&"A".parse().unwrap()).unwrap().unwrap()
}

#[test]
fn documents_take_room_as_blobs_do() {
    let options = ServeOptions {
        writers: Writers::Everybody,
        quota: Some(400_000),
        ..ServeOptions::default()
    };
    let served = served_with(options);
    let image = served.blob.rsplit('/').next().unwrap();
    let note = |number: u32| {
        let inputs = format!("{number:064x}");
        let document = format!(
            r#"{{"module":"//a:a","version":"1","digest":"blake3:{image}","size":100000,"inputs":"blake3:{inputs}"}}"#
        );
        send(&served, "PUT", &format!("layers/{inputs}.json"), &document).0
    };
    let accepted = (0..200).take_while(|number| note(*number) == 200).count();
    assert!(accepted > 0 && accepted < 100, "{accepted} documents within 400 kB");
    assert_eq!(note(1000), 507);
    // Going back to another version is possible all the same.
    let tagging = r#"{"tag":"stable","version":"1"}"#;
    assert_eq!(send(&served, "POST", "packages/A/tags", tagging).0, 200);
}

#[test]
fn a_document_that_no_reader_would_take_is_not_written() {
    let served = served(Writers::Everybody);
    let manifest = serde_json::to_string(&index(&served).versions[0].manifest).unwrap();
    let mut refused = None;
    for round in 0..3 {
        let tags: Vec<String> = (0..10_000).map(|tag| format!("\"t{round}-{tag}\"")).collect();
        let document = format!(
            r#"{{"name":"A","version":"1","manifest":{manifest},"tags":[{}]}}"#,
            tags.join(",")
        );
        let (status, said) = send(&served, "POST", "packages/A", &document);
        if status != 200 {
            refused = Some((status, said));
            break;
        }
    }
    let (status, said) = refused.expect("30,000 tags of one package");
    assert!(status == 422 && said.contains("takes no more"), "{status} {said}");
    assert!(!index(&served).tags.is_empty());
    let image = served.blob.rsplit('/').next().unwrap();
    let (inputs, long) = ("0".repeat(64), "b".repeat(100_000));
    let note = format!(
        r#"{{"module":"//a:{long}","version":"1","digest":"blake3:{image}","size":100000,"inputs":"blake3:{inputs}"}}"#
    );
    let (status, said) = send(&served, "PUT", &format!("layers/{inputs}.json"), &note);
    assert!(status == 422 || status == 400, "{status} {said}");
}
