//! Many processes on one cache, processes killed at any point, and a full disk.
//!
//! Run without arguments it is the test; with `pull` or `push` it is one of the processes that are killed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[path = "processes/borrowed.rs"]
mod borrowed;
mod common;
#[path = "processes/full_disk.rs"]
mod full_disk;
#[path = "processes/removal.rs"]
mod removal;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use common::patched::Versions;
use common::proxy::{Fault, Proxy};
use common::{Bench, chain, hasty, noise};
use mica_fetcher::registry::{Registry, open, open_writable};
use mica_fetcher::{
    Cache, Outcome, PruneOptions, PullError, PullOptions, Pulled, PushOptions, ServeOptions,
    Server, TlsIdentity, Writers, listen,
};
use mica_graph::{Digest, Manifest};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["pull", url, reference, cache, quota] => pull_process(url, reference, cache, quota),
        ["remove", cache] => removal::remove_process(cache),
        ["read", url, cache, rounds] => removal::read_process(url, cache, rounds),
        ["push", registry, manifest, images] => push_process(registry, manifest, images),
        _ => {
            let filter = words.iter().find(|word| !word.starts_with('-'));
            for (name, test) in TESTS {
                if filter.is_none_or(|filter| name.contains(filter)) {
                    test();
                    println!("test {name} ... ok");
                }
            }
        }
    }
    ExitCode::SUCCESS
}

const TESTS: [(&str, fn()); 14] = [
    ("removal_races_with_whoever_borrows_and_reads", removal::races),
    ("a_killed_patch_goes_on", a_killed_patch_goes_on),
    ("a_killed_pull_leaves_nothing_half", a_killed_pull_leaves_nothing_half),
    ("a_killed_pull_that_borrows_leaves_nothing_half", borrowed::killed_pulls),
    ("a_killed_push_leaves_nothing_half", a_killed_push_leaves_nothing_half),
    ("processes_that_want_the_same_fetch_it_once", processes_that_want_the_same_fetch_it_once),
    ("processes_that_borrow_the_same_fetch_it_once", borrowed::the_same_at_once),
    ("pulling_and_pruning_at_once_under_a_quota", pulling_and_pruning_at_once_under_a_quota),
    ("borrowing_and_pruning_at_once_under_a_quota", borrowed::under_a_quota),
    ("a_full_disk_is_said_so_and_goes_on", full_disk::is_said_so_and_goes_on),
    ("a_push_to_a_full_disk_is_whole_or_not_there", full_disk::of_a_registry),
    ("an_archive_for_a_full_disk_is_whole_or_not_there", full_disk::of_a_load),
    ("our_server_speaks_tls", our_server_speaks_tls),
    ("https_trusts_the_roots_of_the_machine", https_trusts_the_roots_of_the_machine),
];

fn pull_process(url: &str, reference: &str, cache: &str, quota: &str) {
    let quota: Option<u64> = quota.parse().ok();
    let cache = Cache::open(cache).unwrap().with_quota(quota);
    let registry = open(url, &hasty()).unwrap();
    let pulled = pull(&*registry, reference, &cache).unwrap_or_else(|e| panic!("{}", chain(&e)));
    // Under its lease everything is there, whatever the others remove.
    for (layer, path) in pulled.manifest.layers.iter().zip(cache.stack(&pulled.manifest).unwrap()) {
        assert_eq!(Digest::of(&std::fs::read(path).unwrap()), layer.digest);
    }
    println!("{}", pulled.fetched_bytes());
    if quota.is_some() {
        cache.prune(&PruneOptions { quota, ..Default::default() }).unwrap();
    }
}

fn push_process(registry: &str, manifest: &str, images: &str) {
    let manifest = Manifest::from_json(&std::fs::read(manifest).unwrap()).unwrap();
    let registry = open_writable(registry, &hasty()).unwrap();
    let file = |digest: &Digest| Some(Path::new(images).join(digest.hex()));
    mica_fetcher::push(&*registry, &manifest, &file, &PushOptions::default(), &()).unwrap();
}

fn pull(registry: &dyn Registry, reference: &str, cache: &Cache) -> Result<Pulled, PullError> {
    mica_fetcher::pull(registry, &reference.parse().unwrap(), cache, &PullOptions::default(), &())
}

fn process(arguments: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a process printed; its own complaint if it failed.
fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Delays that differ from run to run; the seed is printed so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn published(layers: usize, size: usize, versions: usize) -> (Bench, Server, Vec<Manifest>) {
    let mut bench = Bench::new();
    let registry = bench.registry();
    let package = |version: usize| {
        let names: Vec<String> = (0..layers).map(|i| format!("L{i}")).collect();
        let content = |name: &String| noise(&format!("{name} of {version}"), size);
        let layers: Vec<(&str, Vec<u8>)> =
            names.iter().map(|name| (name.as_str(), content(name))).collect();
        let manifest = bench.package("A", &format!("v{version}"), &layers);
        bench.push(&*registry, &manifest);
        manifest
    };
    let manifests = (0..versions).map(package).collect();
    let listener = listen("127.0.0.1:0").unwrap();
    let server = Server::spawn(listener, &bench.path("registry"), ServeOptions::default()).unwrap();
    (bench, server, manifests)
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

fn assert_clean(cache: &Cache) {
    let verified = cache.verify(false).unwrap();
    assert_eq!(verified.damage, []);
}

fn a_killed_pull_leaves_nothing_half() {
    let (bench, server, manifests) = published(6, 1_500_000, 2);
    let (url, folder) = (server.url(), text(bench.path("cache")));
    let mut dice = Dice::new();
    for round in 0..60 {
        let reference = if round % 2 == 0 { "A@v0" } else { "A@v1" };
        let mut child = process(&["pull", &url, reference, &folder, "-"]);
        std::thread::sleep(Duration::from_micros(dice.below(120_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        if round % 10 == 9 {
            let cache = bench.cache();
            assert_clean(&cache);
            pull(&*open(&url, &hasty()).unwrap(), reference, &cache).unwrap();
            bench.assert_cached(&cache, &manifests[round % 2]);
            cache.prune(&PruneOptions { all: true, ..Default::default() }).unwrap();
            assert_eq!(cache.disk_use().unwrap().bytes, 0);
            for folder in ["incoming", "leases", "blobs", "manifests"] {
                assert_eq!(std::fs::read_dir(cache.root().join(folder)).unwrap().count(), 0);
            }
        }
    }
}

/// Killed while pieces come and are applied, each pull goes on behind the pieces of the one before.
fn a_killed_patch_goes_on() {
    let versions = Versions::new();
    versions.publish(&*versions.bench.registry());
    let cache = versions.bench.cache();
    pull(&*versions.bench.registry(), "A@v1", &cache).unwrap();
    let listener = listen("127.0.0.1:0").unwrap();
    let folder = versions.bench.path("registry");
    let server = Server::spawn(listener, &folder, ServeOptions::default()).unwrap();
    let image = versions.new.layers[0].digest;
    let notes = versions.bench.registry().patches(&image).unwrap();
    let patch = notes[0].patch.clone();
    let incoming = |name: &Digest| {
        let path = cache.root().join("incoming").join(format!("{}.part", name.hex()));
        std::fs::metadata(path).map_or(0, |meta| meta.len())
    };
    let slow = Fault::Trickle((patch.size / 50) as usize, Duration::from_millis(20));
    for round in 1..=8 {
        let proxy = Proxy::new(server.address(), vec![slow.clone(); 3]);
        let (url, root) = (proxy.url(), text(cache.root().to_owned()));
        let mut child = process(&["pull", &url, "A@v2", &root, "-"]);
        let since = std::time::Instant::now();
        // In turn by what has come, and by what has been rebuilt of it.
        let far = || match round % 2 {
            0 => incoming(&image) > 0,
            _ => incoming(&patch.digest) > patch.size * round / 10,
        };
        while !far() && since.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(far(), "round {round}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_clean(&cache);
        assert!(!cache.blob_path(&image).exists());
    }
    let pulled = pull(&*open(&server.url(), &hasty()).unwrap(), "A@v2", &cache).unwrap();
    let Outcome::Patched { bytes, resumed } = pulled.layers[0] else { panic!("not patched") };
    assert_eq!(bytes + resumed, patch.size);
    assert!(resumed >= patch.size * 7 / 10, "{resumed} of {}", patch.size);
    versions.bench.assert_cached(&cache, &versions.new);
    assert_eq!(cache.disk_use().unwrap().parts, 0);
}

fn a_killed_push_leaves_nothing_half() {
    let (mut bench, server, _) = published(1, 10, 1);
    let images = text(bench.path("images"));
    let registry = text(bench.path("registry"));
    let mut dice = Dice::new();
    for round in 0..30 {
        let content = |i| noise(&format!("{round} {i}"), 400_000);
        let version = format!("r{round}");
        let manifest = bench.package(
            "A",
            &version,
            &[("x", content(0)), ("y", content(1)), ("z", content(2))],
        );
        let path = bench.path("manifest.json");
        std::fs::write(&path, manifest.to_json()).unwrap();
        let mut child = process(&["push", &registry, &text(path), &images]);
        std::thread::sleep(Duration::from_micros(dice.below(40_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever became visible is whole; then the same push succeeds.
        let reader = open(&server.url(), &hasty()).unwrap();
        let index = reader.index(&manifest.name).unwrap().unwrap();
        if index.entry(&manifest.version).is_some() {
            pull(&*reader, &format!("A@{version}"), &bench.cache()).unwrap();
        }
        bench.push(&*bench.registry(), &manifest);
        drop(pull(&*reader, "A", &bench.cache()).unwrap());
        bench.assert_cached(&bench.cache(), &manifest);
    }
    bench.registry();
    assert_eq!(std::fs::read_dir(bench.path("registry/incoming")).unwrap().count(), 0);
}

fn processes_that_want_the_same_fetch_it_once() {
    let (bench, server, manifests) = published(5, 2_000_000, 1);
    let folder = text(bench.path("cache"));
    let children: Vec<Child> =
        (0..12).map(|_| process(&["pull", &server.url(), "A", &folder, "-"])).collect();
    let fetched = children.into_iter().map(|child| output(child).trim().parse::<u64>().unwrap());
    assert_eq!(fetched.sum::<u64>(), manifests[0].size());
    assert_clean(&bench.cache());
}

fn pulling_and_pruning_at_once_under_a_quota() {
    let (bench, server, manifests) = published(3, 300_000, 6);
    let folder = text(bench.path("cache"));
    let quota = (manifests[0].size() * 2).to_string();
    for _ in 0..2 {
        let children: Vec<Child> = (0..50)
            .map(|i| process(&["pull", &server.url(), &format!("A@v{}", i % 6), &folder, &quota]))
            .collect();
        children.into_iter().for_each(|child| drop(output(child)));
        // What was in use to the end may be too much; the next one sees to it.
        drop(output(process(&["pull", &server.url(), "A@v0", &folder, &quota])));
        let cache = bench.cache();
        assert_clean(&cache);
        assert!(cache.disk_use().unwrap().bytes <= manifests[0].size() * 2);
    }
}

/// Kills the server at the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const TLS_SERVER: &str = "
import http.server, ssl
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('../leaf.pem', '../leaf.key')
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
";

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("this test needs openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `leaf.pem` of this machine, signed by `ca.pem`.
fn certificates(folder: &Path) {
    let request = "-newkey rsa:2048 -nodes -subj";
    openssl(
        folder,
        &format!("req -x509 -days 2 {request} /CN=mica-test-ca -keyout ca.key -out ca.pem"),
    );
    openssl(folder, &format!("req {request} /CN=localhost -keyout leaf.key -out leaf.csr"));
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    openssl(
        folder,
        "x509 -req -days 2 -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out leaf.pem",
    );
}

fn https_trusts_the_roots_of_the_machine() {
    let (bench, _server, manifests) = published(2, 100_000, 1);
    certificates(bench.folder.path());
    let mut server = Command::new("python3")
        .args(["-c", TLS_SERVER])
        .current_dir(bench.path("registry"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs python3");
    let mut port = String::new();
    let output = server.stdout.take().unwrap();
    let _server = Killed(server);
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut port).unwrap();
    let url = format!("https://localhost:{}", port.trim());
    let cache = text(bench.path("cache"));
    let pull =
        |trusted: &str| process_with(&["pull", &url, "A", &cache, "-"], &bench.path(trusted));
    let refused = pull("names");
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("UnknownIssuer"), "{message}");
    let trusted = pull("ca.pem");
    assert!(trusted.status.success(), "{}", String::from_utf8_lossy(&trusted.stderr));
    bench.assert_cached(&bench.cache(), &manifests[0]);
}

fn our_server_speaks_tls() {
    let (mut bench, _server, _) = published(2, 100_000, 1);
    certificates(bench.folder.path());
    let load = |cert: &str, key: &str| TlsIdentity::load(&bench.path(cert), &bench.path(key));
    let tls = Some(load("leaf.pem", "leaf.key").unwrap());
    let wrong = chain(&load("ca.pem", "leaf.key").unwrap_err());
    assert!(wrong.contains("ca.pem with the key"), "{wrong}");
    assert!(chain(&load("names", "leaf.key").unwrap_err()).contains("cannot read a certificate"));
    let options = ServeOptions { writers: Writers::Everybody, tls, ..ServeOptions::default() };
    let server = Server::spawn(listen("127.0.0.1:0").unwrap(), &bench.path("registry"), options);
    let server = server.unwrap();
    assert!(server.url().starts_with("https://"));
    // Whoever does not shake hands keeps nobody waiting.
    let silent = std::net::TcpStream::connect(server.address()).unwrap();
    let manifest = bench.package("A", "next", &[("A", noise("next", 3_000_000))]);
    let path = bench.path("manifest.json");
    std::fs::write(&path, manifest.to_json()).unwrap();
    let (images, cache) = (text(bench.path("images")), text(bench.path("cache")));
    for arguments in [
        ["push", &server.url(), &text(path), &images].as_slice(),
        &["pull", &server.url(), "A@next", &cache, "-"],
    ] {
        let done = process_with(arguments, &bench.path("ca.pem"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    bench.assert_cached(&bench.cache(), &manifest);
    let pull = |trusted: &Path| {
        process_with(&["pull", &server.url(), "A", &cache, "-"], trusted).status.success()
    };
    assert!(!pull(&bench.path("names")));
    // Renewed files are taken without a new start; a key that doesn't fit yet leaves the old ones in use.
    let renewed = tempfile::tempdir().unwrap();
    certificates(renewed.path());
    let (old, new) = (bench.path("ca.pem"), renewed.path().join("ca.pem"));
    let renew = |name: &str| std::fs::copy(renewed.path().join(name), bench.path(name)).unwrap();
    renew("leaf.pem");
    assert!(pull(&old) && !pull(&new));
    renew("leaf.key");
    assert!(pull(&new) && !pull(&old));
    server.stop().unwrap();
    drop(silent);
}

/// A process that trusts only these roots, to its end.
fn process_with(arguments: &[&str], trusted: &Path) -> std::process::Output {
    Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap()
}
