//! OCI registries: Debian's docker-registry with and without passwords, behind tokens, as a cache of another one.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::oci::{Distribution, image, read_head};
use common::patched::{self, Versions};
use common::{Bench, chain, hasty, noise};
use mica_fetcher::registry::{
    Credentials, OpenOptions, Published, Registry, RegistryError, WriteRegistry, open,
    open_writable,
};
use mica_fetcher::{Outcome, PatchBases, PullOptions, PushOptions, push_patches};
use mica_graph::{Manifest, PackageRef};

fn options() -> OpenOptions {
    let mut options = hasty();
    options.http.idle_timeout = std::time::Duration::from_secs(30);
    options
}

fn writable(address: &str) -> Box<dyn WriteRegistry> {
    open_writable(address, &options()).unwrap()
}

fn readable(address: &str) -> Box<dyn Registry> {
    open(address, &options()).unwrap()
}

/// Pulls into an empty cache and compares every byte.
fn assert_pulls(bench: &Bench, registry: &dyn Registry, manifest: &Manifest) {
    let folder = tempfile::tempdir().unwrap();
    let cache = mica_fetcher::Cache::open(folder.path()).unwrap();
    let (name, selector) = (manifest.name.clone(), Some(manifest.version.clone()));
    let reference = PackageRef { name, selector };
    let pulled =
        mica_fetcher::pull(registry, &reference, &cache, &PullOptions::default(), &()).unwrap();
    assert_eq!(pulled.manifest, *manifest);
    bench.assert_cached(&cache, manifest);
}

fn push(bench: &Bench, registry: &dyn WriteRegistry, manifest: &Manifest) -> mica_fetcher::Pushed {
    let options = PushOptions::default();
    mica_fetcher::push(registry, manifest, &|d| bench.image(d), &options, &()).unwrap()
}

#[test]
fn versions_tags_prefixes_and_memos() {
    let mut bench = Bench::new();
    let server = Distribution::start(&bench.path("oci"), "");
    let address = server.address("team/x");
    let base = image("base", 300_000);
    let one = bench.package("Trainer", "953bc1", &[("A", image("a1", 5000)), ("B", base.clone())]);
    let two = bench.package("Trainer", "a1+1111", &[("A", image("a2", 6000)), ("B", base.clone())]);
    let pushed = push(&bench, &*writable(&address), &one);
    assert_eq!((pushed.published, &pushed.sent[..]), (Published::New, &[true, true][..]));
    // Another process: it learns from the registry what is there.
    let registry = writable(&address);
    let pushed = push(&bench, &*registry, &two);
    assert_eq!(&pushed.sent[..], &[true, false]);
    assert_eq!(push(&bench, &*writable(&address), &two).published, Published::Unchanged);
    // A package that has the layer for another reason mounts it.
    let other = bench.package("other", "1", &[("C", image("c", 100)), ("B", base)]);
    assert_eq!(&push(&bench, &*writable(&address), &other).sent[..], &[true, false]);
    assert_pulls(&bench, &*readable(&address), &other);
    assert_pulls(&bench, &*readable(&address), &one);
    assert_pulls(&bench, &*readable(&address), &two);

    let fresh = readable(&address);
    let resolve = |text: &str| fresh.resolve(&text.parse().unwrap());
    assert_eq!(resolve("Trainer").unwrap().version, two.version);
    assert_eq!(resolve("Trainer@953").unwrap().version, one.version);
    assert!(chain(&resolve("Trainer@zz").unwrap_err()).contains("no version or tag `zz`"));
    assert_eq!(resolve("trainer").unwrap_err().hint().unwrap(), "similar names there: Trainer");
    assert!(matches!(resolve("nobody"), Err(RegistryError::UnknownPackage { .. })));
    assert_eq!(fresh.packages().unwrap().len(), 2);
    let inputs = &one.layers[1].inputs;
    assert_eq!(fresh.layer_by_inputs(inputs).unwrap(), Some(one.layers[1].clone()));

    let tag = |tag: &str, version: &str| {
        registry.tag(&one.name, &tag.parse().unwrap(), &version.parse().unwrap())
    };
    tag("stable", "953bc1").unwrap();
    let found = resolve("Trainer@stable").unwrap();
    assert_eq!((found.version, found.tag), (one.version.clone(), "stable".parse().ok()));
    tag("stable", "a1+1111").unwrap();
    assert_eq!(resolve("Trainer@stable").unwrap().version, two.version);
    assert!(chain(&tag("a1+1111", "953bc1").unwrap_err()).contains("one of its versions"));
    assert!(chain(&tag("t", "nope").unwrap_err()).contains("no version `nope`"));

    let history = mica_fetcher::history(&*fresh, &one.name, usize::MAX).unwrap();
    assert_eq!(history.iter().map(|entry| entry.changed).sum::<usize>(), 3);
    // The same version with other content, from a process that has not seen it.
    let clash = bench.package("Trainer", "953bc1", &[("A", image("a3", 100))]);
    let file = |d: &_| bench.image(d);
    let taken =
        mica_fetcher::push(&*writable(&address), &clash, &file, &PushOptions::default(), &());
    assert!(chain(&taken.unwrap_err()).contains(&one.digest().to_string()));
}

#[test]
fn tables_are_found_by_the_referrers_tag() {
    let mut bench = Bench::new();
    let server = Distribution::start(&bench.path("oci"), "");
    let address = server.address("t");
    let pieces = |change: usize| -> Vec<Vec<u8>> {
        // Chunks need not be a squashfs's blocks; an image may have anything behind its end.
        let mut pieces = vec![image("base", 1000)];
        pieces.extend((0..6).map(|i| noise(&format!("{i}-{}", i == change), 200_000)));
        pieces
    };
    let mut one = bench.package("A", "1", &[]);
    one.layers = vec![bench.chunked("A", "1", &pieces(9))];
    let mut two = bench.package("A", "2", &[]);
    two.layers = vec![bench.chunked("A", "2", &pieces(3))];
    push(&bench, &*writable(&address), &one);
    push(&bench, &*writable(&address), &two);
    let cache = bench.cache();
    let pull = |reference: &str| {
        let (registry, reference) = (readable(&address), reference.parse().unwrap());
        mica_fetcher::pull(&*registry, &reference, &cache, &PullOptions::default(), &()).unwrap()
    };
    assert_eq!(pull("A@1").fetched_bytes(), one.layers[0].size);
    assert_eq!(pull("A@2").fetched_bytes(), 200_000);
    bench.assert_cached(&cache, &two);
}

#[test]
fn patches_are_found_by_the_digest_of_the_image() {
    let versions = Versions::new();
    let server = Distribution::start(&versions.bench.path("oci"), "");
    let address = server.address("t");
    versions.publish(&*writable(&address));
    let cache = versions.bench.cache();
    patched::pull(&*readable(&address), "A@v1", &cache);
    let pulled = patched::pull(&*readable(&address), "A@v2", &cache);
    assert!(matches!(pulled.layers[0], Outcome::Patched { .. }), "{:?}", pulled.layers);
    versions.bench.assert_cached(&cache, &versions.new);
    // A further one leaves the first where it is.
    let bases = PatchBases { newest: 3, ..PatchBases::default() };
    let (registry, none) = (writable(&address), |_: &_| None);
    push_patches(&*registry, &cache, &versions.new, &none, &bases, &()).unwrap();
    assert_eq!(readable(&address).patches(&versions.new.layers[0].digest).unwrap().len(), 1);
}

#[test]
fn passwords_come_from_files_and_helpers() {
    let mut bench = Bench::new();
    let htpasswd = bench.path("htpasswd");
    let hash = Command::new("htpasswd").args(["-Bbn", "user", "secret"]).output();
    std::fs::write(&htpasswd, hash.expect("htpasswd is needed by the tests").stdout).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", htpasswd.display());
    let server = Distribution::start(&bench.path("oci"), &auth);
    let address = server.address("x");
    let package = bench.package("A", "1", &[("A", image("a", 100))]);
    let file = |d: &_| bench.image(d);
    let denied =
        mica_fetcher::push(&*writable(&address), &package, &file, &PushOptions::default(), &());
    let denied = chain(&denied.unwrap_err());
    assert!(denied.contains("refuses"), "{denied}");

    let authfile = bench.path("auth.json");
    let credentials = Credentials::usual(Some(authfile.clone()));
    let mut with = options();
    with.http.credentials = credentials.clone();
    credentials.store(&server.address.to_string(), "user", "wrong").unwrap();
    let wrong = mica_fetcher::registry::check_login(&address, &with).unwrap_err();
    assert!(matches!(wrong, RegistryError::Denied { .. }), "{wrong}");
    credentials.store(&format!("{}/x", server.address), "user", "secret").unwrap();
    mica_fetcher::registry::check_login(&address, &with).unwrap();
    let registry = open_writable(&address, &with).unwrap();
    push(&bench, &*registry, &package);
    assert_pulls(&bench, &*open(&address, &with).unwrap(), &package);
}

/// A registry that wants tokens: what it lets through goes to another one. It forgets a token after so many uses.
fn token_server(upstream: SocketAddr, uses: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let given = Arc::new(AtomicUsize::new(0));
    let (count, state) = (Arc::clone(&given), Arc::new(Mutex::new(vec![0])));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (count, state) = (Arc::clone(&count), Arc::clone(&state));
            std::thread::spawn(move || {
                drop(serve_token(client, upstream, address, uses, &count, &state))
            });
        }
    });
    (address, given)
}

fn serve_token(
    mut client: TcpStream,
    upstream: SocketAddr,
    own: SocketAddr,
    uses: usize,
    count: &AtomicUsize,
    state: &Mutex<Vec<usize>>,
) -> std::io::Result<()> {
    let head = read_head(&mut client)?;
    let lower = head.to_lowercase();
    let answer = |status: &str, headers: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
            body.len()
        )
    };
    if head.starts_with("GET /token?") {
        // The password goes here, and only here.
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        state.lock().unwrap().push(0); // the first is number 1
        let known = lower.contains("authorization: basic dxnlcjpzzwnyzxq=");
        let text = match known && head.contains("scope=repository") {
            true => answer("200 OK", "", &format!("{{\"token\":\"t{number}\"}}")),
            false => answer("401 Unauthorized", "", "no"),
        };
        return client.write_all(text.as_bytes());
    }
    let allowed = {
        let mut used = state.lock().unwrap();
        let token = lower.split_once("authorization: bearer t").map(|(_, rest)| rest);
        let number = token.and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
        number.and_then(|number| used.get_mut(number)).is_some_and(|used| {
            *used += 1;
            *used <= uses
        })
    };
    if !allowed {
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"s\",scope=\"ignored\"\r\n"
        );
        // What the client sends must be taken, or it sees a reset instead of the answer.
        client.write_all(answer("401 Unauthorized", &challenge, "").as_bytes())?;
        client.shutdown(Shutdown::Write)?;
        return client.read_to_end(&mut Vec::new()).map(drop);
    }
    let mut server = TcpStream::connect(upstream)?;
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(head.as_bytes())?;
    relay(client, server)
}

/// Passes on what both sides say until the server has nothing more.
fn relay(mut client: TcpStream, mut server: TcpStream) -> std::io::Result<()> {
    let (mut up, mut down) = (client.try_clone()?, server.try_clone()?);
    let sending = std::thread::spawn(move || drop(std::io::copy(&mut up, &mut down)));
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)?;
    drop(sending.join());
    Ok(())
}

#[test]
fn tokens_are_asked_for_and_again_when_they_expire() {
    let mut bench = Bench::new();
    let server = Distribution::start(&bench.path("oci"), "");
    let (address, given) = token_server(server.address, 7);
    let credentials = Credentials::usual(Some(bench.path("auth.json")));
    credentials.store(&address.to_string(), "user", "secret").unwrap();
    let mut with = options();
    with.http.credentials = credentials;
    let place = format!("oci://{address}/x");
    let package = bench.package("A", "1", &[("A", image("a", 100_000)), ("B", image("b", 10))]);
    let registry = open_writable(&place, &with).unwrap();
    push(&bench, &*registry, &package);
    assert_pulls(&bench, &*open(&place, &with).unwrap(), &package);
    assert!(given.load(Ordering::Relaxed) > 2, "tokens did not expire");
}

#[test]
fn a_cache_of_another_registry_is_as_good() {
    let mut bench = Bench::new();
    let origin = Distribution::start(&bench.path("origin"), "");
    let package = bench.package("A", "1", &[("A", image("a", 700_000))]);
    push(&bench, &*writable(&origin.address("x")), &package);
    let proxy = format!("proxy: {{remoteurl: 'http://{}'}}\n", origin.address);
    let near = Distribution::start(&bench.path("near"), &proxy);
    assert_pulls(&bench, &*readable(&near.address("x")), &package);
    // The same as a mirror, found by registries.conf; with the origin's names and the mirror's bytes.
    let conf = bench.path("registries.conf");
    let text = format!(
        "[[registry]]\nlocation = '{}'\n[[registry.mirror]]\nlocation = '{}'\ninsecure = true\n",
        origin.address, near.address
    );
    std::fs::write(&conf, text).unwrap();
    let mut with = options();
    with.registries_conf = Some(conf);
    let mirrored = open(&origin.address("x"), &with).unwrap();
    assert_eq!(mirrored.sources(), 2);
    assert_pulls(&bench, &*mirrored, &package);
    // Half of a blob, as a resumed fetch asks for it: a registry that has to fetch it first sends all of it.
    let image = mica_graph::Blob { digest: package.layers[0].digest, size: package.layers[0].size };
    let registry = readable(&near.address("x"));
    registry.resolve(&"A".parse().unwrap()).unwrap();
    let stream = registry.blob(&image, 1000..image.size).unwrap();
    let mut bytes = Vec::new();
    let mut reader = stream.reader;
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64 + stream.start, image.size);
}

/// Passes connections on; of the first upload only so many bytes.
fn cutting_proxy(upstream: SocketAddr, bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let uploads = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let uploads = Arc::clone(&uploads);
            std::thread::spawn(move || drop(pass_on(client, upstream, bytes, &uploads)));
        }
    });
    address
}

fn pass_on(
    mut client: TcpStream,
    upstream: SocketAddr,
    bytes: usize,
    uploads: &AtomicUsize,
) -> std::io::Result<()> {
    let head = read_head(&mut client)?;
    let mut server = TcpStream::connect(upstream)?;
    server.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    let length = head
        .to_lowercase()
        .split_once("content-length: ")
        .and_then(|(_, rest)| rest.split("\r\n").next()?.parse::<usize>().ok());
    let is_large = head.starts_with("PATCH") && length.is_some_and(|length| length > bytes);
    if is_large && uploads.fetch_add(1, Ordering::Relaxed) == 0 {
        let mut piece = vec![0; bytes];
        client.read_exact(&mut piece)?;
        // Both are closed with the end of this function.
        return server.write_all(&piece);
    }
    relay(client, server)
}

#[test]
fn an_upload_that_is_cut_off_goes_on() {
    let mut bench = Bench::new();
    let server = Distribution::start(&bench.path("oci"), "");
    let package = bench.package("A", "1", &[("A", image("a", 3_000_000))]);
    let through = format!("oci://{}/x", cutting_proxy(server.address, 1_000_000));
    push(&bench, &*writable(&through), &package);
    assert_pulls(&bench, &*readable(&server.address("x")), &package);
}

#[test]
fn other_peoples_images_are_told_apart() {
    let mut bench = Bench::new();
    let server = Distribution::start(&bench.path("oci"), "");
    let package = bench.package("A", "1", &[("A", image("a", 100))]);
    push(&bench, &*writable(&server.address("x")), &package);
    // skopeo copies a package as it is, and makes an image of its own out of a folder.
    let run = |args: &[&str]| {
        let done =
            Command::new("skopeo").args(args).output().expect("skopeo is needed by the tests");
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let place = |path: &str| format!("docker://{}/{path}", server.address);
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let copy = |from: &str, to: &str| {
        run(&["copy", "-q", insecure[0], insecure[1], from, to]);
    };
    copy(&place("x/a:1"), &place("y/a:1"));
    assert_pulls(&bench, &*readable(&server.address("y")), &package);
    let inspected = run(&["inspect", "--tls-verify=false", &place("y/a:1")]);
    assert!(inspected.contains("\"Os\": \"linux\""), "{inspected}");
    let dir = bench.path("dir");
    copy(&place("x/a:1"), &format!("dir:{}", dir.display()));
    let manifest = std::fs::read_to_string(dir.join("manifest.json")).unwrap();
    std::fs::write(dir.join("manifest.json"), manifest.replace("dev.mica.", "dev.other.")).unwrap();
    copy(&format!("dir:{}", dir.display()), &place("z/a:1"));
    let error = readable(&server.address("z")).resolve(&"A@1".parse().unwrap()).unwrap_err();
    assert!(error.to_string().ends_with("is a container image, but no mica package"), "{error}");
}
