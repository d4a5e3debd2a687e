//! Registries that send without end, or claim what cannot be: what it costs whoever asks them.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{User, World};
use mica_graph::Digest;

/// All documents of one package may take so much.
const MOST: u64 = 64 << 20;
/// Whatever the other side does, an answer is there by then: debug builds are slow.
const LONGEST: Duration = Duration::from_secs(90);

/// Answers a request for a path.
type Answer = fn(&str, &mut TcpStream) -> io::Result<()>;

fn serve(answer: Answer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let (mut path, mut lines) = (String::new(), 0);
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let Ok(line) = line else { return };
                    if line.is_empty() {
                        break;
                    }
                    if lines == 0 {
                        path = line.split(' ').nth(1).unwrap().to_owned();
                    }
                    lines += 1;
                }
                // Whoever has enough closes the connection.
                answer(&path, &mut stream).ok();
            });
        }
    });
    address
}

fn send(stream: &mut TcpStream, head: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// The same piece again and again.
fn endless(stream: &mut TcpStream, head: &str, start: &str, piece: &str) -> io::Result<()> {
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{start}");
    stream.write_all(head.as_bytes())?;
    let pieces = piece.repeat((64 << 10) / piece.len() + 1);
    loop {
        stream.write_all(pieces.as_bytes())?;
    }
}

fn filled(start: &str, piece: &str, end: &str, length: usize) -> Vec<u8> {
    format!("{start}{}{end}", piece.repeat(length / piece.len())).into_bytes()
}

const VERSION: &[u8] = b"{\"mica-registry\":1}\n";

fn index(manifest: &[u8]) -> Vec<u8> {
    let (digest, size) = (Digest::of(manifest), manifest.len());
    format!(
        r#"{{"schema":1,"name":"A","versions":[{{"version":"1","manifest":{{"digest":"{digest}","size":{size}}},"time":1}}],"tags":{{"latest":"1"}}}}"#
    )
    .into_bytes()
}

/// A manifest of one layer, with so many bytes more.
fn manifest(kind: &str, length: usize) -> Vec<u8> {
    let zero = format!("blake3:{}", "0".repeat(64));
    let layer = format!(
        r#"{{"module":"//a:a","version":"1","digest":"{zero}","size":1,"inputs":"{zero}"}}"#
    );
    let head = r#"{"schema":1,"name":"A","version":"1","target":"//a:a","layers":["#;
    match kind {
        "layers" => filled(head, &format!("{layer},"), &format!("{layer}]}}"), length),
        "strings" => {
            let head = format!("{head}{layer}],\"process\":{{\"entrypoint\":[");
            filled(&head, "\"\",", "\"\"]}}", length)
        }
        "labels" => {
            let mut text = format!("{head}{layer}],\"labels\":{{");
            for number in 0..length / 14 {
                text += &format!("\"{number:08}\":\"\",");
            }
            (text + "\"x\":\"\"}}").into_bytes()
        }
        _ => {
            let head = format!("{head}{layer}],\"x\":");
            [filled(&head, "[", "", length / 2), filled("", "]", "}", length / 2)].concat()
        }
    }
}

/// A registry of files whose package has this manifest.
fn with_manifest(path: &str, stream: &mut TcpStream, manifest: &[u8]) -> io::Result<()> {
    match path {
        "/mica-registry.json" => send(stream, "200 OK", VERSION),
        "/packages/A/index.json" => send(stream, "200 OK", &index(manifest)),
        path if path.ends_with(&Digest::of(manifest).hex()) => send(stream, "200 OK", manifest),
        _ => send(stream, "404 Not Found", b""),
    }
}

const FILES: [(&str, Answer); 11] = [
    ("a manifest of layers", |p, s| with_manifest(p, s, &manifest("layers", 60 << 20))),
    ("a manifest of strings", |p, s| with_manifest(p, s, &manifest("strings", (4 << 20) - 1000))),
    ("a manifest of labels", |p, s| with_manifest(p, s, &manifest("labels", (4 << 20) - 1000))),
    ("a deep manifest", |p, s| with_manifest(p, s, &manifest("deep", 3 << 20))),
    ("an endless index", |_, s| endless(s, "200 OK", "{\"versions\":[", "\"a\",")),
    ("an index of tags", |path, s| {
        let mut text = r#"{"schema":1,"name":"A","versions":[],"tags":{"#.to_owned();
        for number in 0..800_000 {
            text += &format!("\"t{number}\":\"1\",");
        }
        match path {
            "/mica-registry.json" => send(s, "200 OK", VERSION),
            _ => send(s, "200 OK", (text + "\"x\":\"1\"}}").as_bytes()),
        }
    }),
    ("an endless list of packages", |path, s| match path {
        "/mica-registry.json" => send(s, "200 OK", VERSION),
        "/packages.json" => endless(s, "200 OK", "[", "\"a\","),
        _ => send(s, "404 Not Found", b""),
    }),
    ("an endless error", |_, s| {
        let head = "403 Forbidden\r\nContent-Type: application/json";
        endless(s, head, "{\"error\":\"", "again and again ")
    }),
    ("endless headers", |_, s| endless(s, "200 OK", "", "X-More: and more\r\n")),
    ("endless redirects", |p, s| send(s, &format!("302 Found\r\nLocation: {p}x"), b"")),
    ("a length that cannot be", |_, s| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 100000000000000\r\n\r\n";
        s.write_all(head.as_bytes())?;
        endless(s, "200 OK", "", "{\"a\":")
    }),
];

fn page(path: &str, stream: &mut TcpStream, body: &[u8]) -> io::Result<()> {
    let link = format!("Link: <{path}x>; rel=\"next\"");
    send(stream, &format!("200 OK\r\nContent-Type: application/json\r\n{link}"), body)
}

const OCI: [(&str, Answer); 6] = [
    ("endless pages of many tags", |path, s| match path.contains("/tags/list") {
        true => page(path, s, &filled("{\"tags\":[", "\"a\",", "\"a\"]}", 3 << 20)),
        false if path == "/v2/" => send(s, "200 OK", b"{}"),
        false => send(s, "404 Not Found", b""),
    }),
    ("endless pages of few tags", |path, s| match path.contains("/tags/list") {
        true => page(path, s, b"{\"tags\":[\"a\"]}"),
        false if path == "/v2/" => send(s, "200 OK", b"{}"),
        false => send(s, "404 Not Found", b""),
    }),
    ("an endless page", |path, s| match path {
        "/v2/" => send(s, "200 OK", b"{}"),
        path if path.contains("/tags/list") => endless(s, "200 OK", "{\"tags\":[", "\"a\","),
        _ => send(s, "404 Not Found", b""),
    }),
    ("an image manifest of layers", |path, s| match path {
        "/v2/" => send(s, "200 OK", b"{}"),
        _ => {
            let start =
                r#"{"schemaVersion":2,"config":{"mediaType":"","digest":"","size":1},"layers":["#;
            let layer = r#"{"mediaType":"","digest":"","size":1},"#;
            send(
                s,
                "200 OK",
                &filled(start, layer, &format!("{}]}}", layer.trim_end_matches(',')), 3 << 20),
            )
        }
    }),
    ("an endless image manifest", |path, s| match path {
        "/v2/" => send(s, "200 OK", b"{}"),
        _ => endless(s, "200 OK", "{\"layers\":[", "{},"),
    }),
    ("an endless token", |path, s| match path {
        path if path.starts_with("/token") => endless(s, "200 OK", "{\"token\":\"", "a"),
        _ => {
            let address = s.local_addr()?;
            let head =
                format!("401 No\r\nWWW-Authenticate: Bearer realm=\"http://{address}/token\"");
            send(s, &head, b"")
        }
    }),
];

fn list(stream: &mut TcpStream, contents: &str) -> io::Result<()> {
    let body = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name><KeyCount>0</KeyCount><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>{contents}</ListBucketResult>"
    );
    send(stream, "200 OK\r\nContent-Type: application/xml", body.as_bytes())
}

const S3: [(&str, Answer); 4] = [
    ("a list without end", |path, s| match path.contains("list-type") {
        true => endless(s, "200 OK", "<?xml version=\"1.0\"?><ListBucketResult>", "<Name>b</Name>"),
        false => send(s, "404 Not Found", b""),
    }),
    ("a list of a length that cannot be", |path, s| match path.contains("list-type") {
        true => {
            s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000000\r\n\r\n")?;
            endless(s, "", "<ListBucketResult>", "<Name>b</Name>")
        }
        false => send(s, "404 Not Found", b""),
    }),
    ("an object of a length that cannot be", |_, s| {
        let head = "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: 100000000000000\r\n\r\n";
        s.write_all(head.as_bytes())?;
        endless(s, "", "", "[")
    }),
    ("a list of pages without end", |path, s| match path.contains("list-type") {
        true => list(s, ""),
        false => send(s, "404 Not Found", b""),
    }),
];

/// Runs mica and returns what it said, and the most anonymous memory it was seen with.
fn measure(world: &World, args: &[&str]) -> (String, u64) {
    let mut command = world.mica(args);
    command.env("AWS_SKIP_SIGNATURE", "true");
    let said = world.path("said");
    command.stderr(std::fs::File::create(&said).unwrap());
    let mut child = command.spawn().unwrap();
    let (begun, mut most) = (Instant::now(), 0);
    let status = format!("/proc/{}/status", child.id());
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let now = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
        most = most.max(now.unwrap_or(0) << 10);
        if begun.elapsed() > LONGEST || most > 4 * MOST {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{args:?}: {:?}, {most} bytes", begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (std::fs::read_to_string(said).unwrap(), most)
}

fn all(world: &World, cases: &[(&str, Answer)], verb: &[&str], registry: impl Fn(&str) -> String) {
    for (what, answer) in cases {
        let address = registry(&serve(*answer));
        let (said, most) = measure(world, &[verb, &["--registry", &address]].concat());
        assert!(said.contains("error:"), "{what}: {said}");
        assert!(said.len() < 4096, "{what}: {said}");
        assert!(most < MOST, "{what}: {most} bytes, {said}");
    }
}

#[test]
fn registries_of_files() {
    all(&World::new(User::Me), &FILES, &["pull", "A"], |address| format!("http://{address}"));
}

#[test]
fn oci_registries() {
    all(&World::new(User::Me), &OCI, &["pull", "A"], |address| format!("oci://{address}/r"));
}

#[test]
fn buckets() {
    let bucket = |address: &str| format!("s3://b/r?endpoint=http://{address}&region=x");
    let world = World::new(User::Me);
    world.workspace("monorepo");
    world.ok(&["pack", "--workspace", "monorepo", "--target", "//app:A"]);
    world.ok(&["pull", "A"]);
    all(&world, &S3, &["push", "A"], bucket);
    all(&world, &S3[2..3], &["pull", "A"], bucket);
}
