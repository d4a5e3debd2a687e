//! What every kind of registry must do, on the real ones: a folder, our server over it, a server of static files.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use common::{Bench, chain, hasty, http, noise};
use mica_fetcher::registry::{
    Access, AddError, Content, Published, RegistryError, SelectError, open, open_writable,
};
use mica_fetcher::{
    Outcome, PullOptions, PushOptions, ServeError, ServeOptions, Server, Writers, listen,
};
use mica_graph::{Blob, Digest};

fn serve(bench: &Bench, writers: Writers) -> Server {
    let options = ServeOptions { writers, ..ServeOptions::default() };
    Server::spawn(listen("127.0.0.1:0").unwrap(), &bench.path("registry"), options).unwrap()
}

fn writable(server: &Server, access: Access) -> Box<dyn mica_fetcher::registry::WriteRegistry> {
    let mut options = hasty();
    options.http.access = access;
    open_writable(&server.url(), &options).unwrap()
}

#[test]
fn a_second_version_moves_one_layer_through_every_registry() {
    for kind in ["folder", "server"] {
        let mut bench = Bench::new();
        let base = noise("base", 300_000);
        let one = bench.package("A", "953bc1", &[("A", noise("a1", 5000)), ("B", base.clone())]);
        let two = bench.package("A", "a11111", &[("A", noise("a2", 6000)), ("B", base)]);
        let server = (kind == "server").then(|| serve(&bench, Writers::Everybody));
        let registry = match &server {
            Some(server) => writable(server, Access::Anonymous),
            None => bench.registry(),
        };
        let pushed = bench.push(&*registry, &one);
        assert_eq!((pushed.published, &pushed.sent[..]), (Published::New, &[true, true][..]));
        assert_eq!(
            registry.layer_by_inputs(&one.layers[1].inputs).unwrap(),
            Some(one.layers[1].clone())
        );
        assert_eq!(registry.layer_by_inputs(&Digest::of(b"other")).unwrap(), None);
        let cache = bench.cache();
        let pull = |reference: &str| {
            let reference = reference.parse().unwrap();
            mica_fetcher::pull(&*registry, &reference, &cache, &PullOptions::default(), &())
                .unwrap()
        };
        let pulled = pull("A");
        assert_eq!((pulled.fetched_layers(), pulled.fetched_bytes()), (2, 305_000));
        let pushed = bench.push(&*registry, &two);
        assert_eq!((pushed.bytes, &pushed.sent[..]), (6000, &[true, false][..]));
        assert_eq!(bench.push(&*registry, &two).published, Published::Unchanged);
        let pulled = pull("A@a1");
        assert_eq!(pulled.layers[1], Outcome::Cached);
        assert_eq!(pulled.fetched_bytes(), 6000);
        bench.assert_cached(&cache, &two);
        bench.assert_cached(&cache, &pull("A@953").manifest);
        assert_eq!(registry.packages().unwrap(), ["A".parse().unwrap()]);
    }
}

#[test]
fn a_version_never_changes_and_names_are_helpful() {
    let mut bench = Bench::new();
    let server = serve(&bench, Writers::Everybody);
    let one = bench.package("trainer", "953bc1", &[("A", noise("1", 100))]);
    let other = bench.package("trainer", "953bc1", &[("A", noise("2", 100))]);
    let next = bench.package("trainer", "953bd2", &[("A", noise("2", 100))]);
    let folder = bench.registry();
    bench.push(&*folder, &one);
    let remote = writable(&server, Access::Anonymous);
    for registry in [&folder, &remote] {
        let file = |d: &Digest| bench.image(d);
        let error = mica_fetcher::push(&**registry, &other, &file, &PushOptions::default(), &());
        let error = error.unwrap_err();
        assert!(chain(&error).contains(&one.digest().to_string()), "{}", chain(&error));
        // Also when the two race past the first check.
        let json = other.to_json();
        let manifest = Blob { digest: Digest::of(&json), size: json.len() as u64 };
        registry.put_blob(&manifest, Content::Bytes(&json)).unwrap();
        let layer = &other.layers[0];
        let image = layer.image();
        registry.put_blob(&image, Content::File(&file(&layer.digest).unwrap())).unwrap();
        let (name, version, tags) = (other.name.clone(), other.version.clone(), vec![]);
        let publication = mica_fetcher::registry::Publication { name, version, manifest, tags };
        let Err(RegistryError::Add { source: AddError::Taken { held, .. }, .. }) =
            registry.publish(&publication)
        else {
            panic!("published");
        };
        assert_eq!(held, one.digest());
    }
    bench.push(&*remote, &next);
    for registry in [&folder, &remote] {
        let resolve = |text: &str| registry.resolve(&text.parse().unwrap());
        assert_eq!(resolve("trainer").unwrap().version, next.version);
        let error = resolve("trainer@953b").unwrap_err();
        assert!(matches!(
            &error,
            RegistryError::Select { source: SelectError::Ambiguous { .. }, .. }
        ));
        assert_eq!(error.hint().unwrap(), "give more of it; it may be 953bd2, 953bc1");
        let error = resolve("trainer@zzz").unwrap_err();
        assert_eq!(error.hint().unwrap(), "versions there: 953bd2, 953bc1");
        let error = resolve("trainr").unwrap_err();
        assert!(error.to_string().ends_with("has no package trainr"));
        assert_eq!(error.hint().unwrap(), "similar names there: trainer");
        registry.tag(&one.name, &"stable".parse().unwrap(), &one.version).unwrap();
        assert_eq!(resolve("trainer@stable").unwrap().version, one.version);
        let error = registry.tag(&one.name, &"x".parse().unwrap(), &"nope".parse().unwrap());
        assert!(chain(&error.unwrap_err()).contains("no version `nope`"));
        let error = registry.tag(&"nobody".parse().unwrap(), &"x".parse().unwrap(), &one.version);
        assert!(matches!(error.unwrap_err(), RegistryError::UnknownPackage { .. }));
    }
}

#[test]
fn a_package_with_a_missing_image_is_not_published() {
    let mut bench = Bench::new();
    let server = serve(&bench, Writers::Everybody);
    let manifest = bench.package("A", "1", &[("A", noise("1", 100))]);
    let json = manifest.to_json();
    let blob = Blob { digest: Digest::of(&json), size: json.len() as u64 };
    for registry in [bench.registry(), writable(&server, Access::Anonymous)] {
        let error =
            mica_fetcher::push(&*registry, &manifest, &|_| None, &PushOptions::default(), &());
        assert!(chain(&error.unwrap_err()).contains("is neither in"));
        registry.put_blob(&blob, Content::Bytes(&json)).unwrap();
        let (name, version) = (manifest.name.clone(), manifest.version.clone());
        let publication = mica_fetcher::registry::Publication {
            name,
            version,
            manifest: blob.clone(),
            tags: vec![],
        };
        let error = registry.publish(&publication).unwrap_err();
        assert!(
            matches!(error, RegistryError::MissingBlob { digest, .. } if digest == manifest.layers[0].digest)
        );
        assert!(registry.index(&manifest.name).unwrap().is_none());
    }
}

#[test]
fn a_blob_must_be_what_its_name_says() {
    let bench = Bench::new();
    let server = serve(&bench, Writers::Everybody);
    let blob = Blob { digest: Digest::of(b"right"), size: 5 };
    for registry in [bench.registry(), writable(&server, Access::Anonymous)] {
        let error = registry.put_blob(&blob, Content::Bytes(b"wrong")).unwrap_err();
        let RegistryError::WrongBytes { expected, found, .. } = error else { panic!("{error}") };
        assert_eq!((expected, found), (blob.digest, Digest::of(b"wrong")));
        assert!(!registry.has_blob(&blob).unwrap());
        let left = std::fs::read_dir(bench.path("registry/incoming")).unwrap().count();
        assert_eq!(left, 0);
    }
}

#[test]
fn writing_needs_the_token() {
    let mut bench = Bench::new();
    let manifest = bench.package("A", "1", &[("A", noise("1", 3_000_000))]);
    let file = |d: &Digest| bench.image(d);
    let push = |server: &Server, access| {
        let registry = writable(server, access);
        mica_fetcher::push(&*registry, &manifest, &file, &PushOptions::default(), &())
    };
    let closed = serve(&bench, Writers::Nobody);
    let error = chain(&push(&closed, Access::Anonymous).unwrap_err());
    assert!(
        error.contains("refuses to write: this registry is served for reading only"),
        "{error}"
    );
    closed.stop().unwrap();
    let server = serve(&bench, Writers::Token("sesame".to_owned()));
    let error = chain(&push(&server, Access::Anonymous).unwrap_err());
    assert!(error.contains("writing needs a token"), "{error}");
    let error = chain(&push(&server, Access::Bearer("open".to_owned())).unwrap_err());
    assert!(error.contains("the token is wrong"), "{error}");
    assert!(bench.registry().index(&manifest.name).unwrap().is_none());
    push(&server, Access::Bearer("sesame".to_owned())).unwrap();
    assert!(http(&server.url()).index(&manifest.name).unwrap().is_some());
}

#[test]
fn concurrent_publishers_lose_nothing() {
    let mut bench = Bench::new();
    let server = serve(&bench, Writers::Everybody);
    let shared = noise("shared", 10_000);
    let manifests: Vec<_> = (0..24)
        .map(|i| {
            let layers = [("top", noise(&format!("{i}"), 500)), ("base", shared.clone())];
            bench.package(if i % 3 == 0 { "A" } else { "B" }, &format!("v{i}"), &layers)
        })
        .collect();
    std::thread::scope(|scope| {
        for (i, manifest) in manifests.iter().enumerate() {
            let (bench, server) = (&bench, &server);
            scope.spawn(move || match i % 2 {
                0 => bench.push(&*bench.registry(), manifest),
                _ => bench.push(&*writable(server, Access::Anonymous), manifest),
            });
        }
    });
    let registry = http(&server.url());
    assert_eq!(registry.packages().unwrap().len(), 2);
    for manifest in &manifests {
        let index = registry.index(&manifest.name).unwrap().unwrap();
        assert_eq!(index.entry(&manifest.version).unwrap().manifest.digest, manifest.digest());
        assert!(index.tags.keys().any(|tag| tag.as_str() == "latest"));
    }
}

struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// `python3 -m http.server` over the registry's folder: no ranges.
fn python(bench: &Bench) -> (Python, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut child = Command::new("python3")
        .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", &port.to_string()])
        .current_dir(bench.path("registry"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs python3");
    // It says when it listens.
    let mut first = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"Serving");
    (Python(child), format!("http://127.0.0.1:{port}"))
}

#[test]
fn a_server_of_static_files_is_a_registry_to_read() {
    let mut bench = Bench::new();
    let manifest =
        bench.package("A", "953bc1", &[("A", noise("1", 100)), ("B", noise("2", 2_000_000))]);
    let folder = bench.registry();
    bench.push(&*folder, &manifest);
    let (_python, url) = python(&bench);
    let registry = http(&url);
    let cache = bench.cache();
    // Half of it is there from before; this server cannot send only the rest.
    let part =
        bench.path("cache/incoming").join(format!("{}.part", manifest.layers[1].digest.hex()));
    std::fs::write(&part, &noise("2", 2_000_000)[..1_234_567]).unwrap();
    let reference = "A@953".parse().unwrap();
    let pulled =
        mica_fetcher::pull(&*registry, &reference, &cache, &PullOptions::default(), &()).unwrap();
    bench.assert_cached(&cache, &pulled.manifest);
    assert_eq!(
        pulled.layers[1],
        Outcome::Fetched { bytes: 2_000_000, resumed: 1_234_567, copied: 0 }
    );
    let error = registry.resolve(&"B".parse().unwrap()).unwrap_err();
    assert!(matches!(error, RegistryError::UnknownPackage { .. }));
    let registry = open_writable(&url, &hasty()).unwrap();
    let error = registry.check_writable().unwrap_err();
    assert!(matches!(error, RegistryError::ReadOnly { .. }), "{error}");
}

#[test]
fn a_registry_that_is_not_there() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = http(&address).resolve(&"A".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot reach the registry at {address}"));
    assert!(chain(&error).contains("Connection refused"), "{}", chain(&error));
    assert!(error.hint().unwrap().contains("is the registry running"));
    let folder = bench.path("nothing");
    let Err(error) = open(folder.to_str().unwrap(), &hasty()) else { panic!("opened") };
    assert!(matches!(error, RegistryError::NotARegistry { .. }));
    // A folder of something else is not made into one.
    let Err(error) = open_writable(bench.folder.path().to_str().unwrap(), &hasty()) else {
        panic!("opened")
    };
    assert!(matches!(error, RegistryError::NotARegistry { .. }));
    for bad in ["", "ftp://x", "http://", "http://h/?q", "s3://", "s3://b/?x=1"] {
        assert!(matches!(open(bad, &hasty()), Err(RegistryError::Address { .. })), "{bad}");
    }
    // A web server that is no registry.
    std::fs::create_dir(bench.path("registry")).unwrap();
    let (_python, url) = python(&bench);
    let error = http(&url).resolve(&"A".parse().unwrap()).unwrap_err();
    assert!(matches!(error, RegistryError::NotARegistry { .. }), "{error}");
}

#[test]
fn a_port_in_use_is_said_so() {
    let bench = Bench::new();
    let server = serve(&bench, Writers::Nobody);
    let error = listen(&server.address().to_string()).unwrap_err();
    assert!(matches!(error, ServeError::InUse(_)));
    assert_eq!(
        error.to_string(),
        format!("the address {} is in use by another program", server.address())
    );
    assert!(matches!(listen("nonsense"), Err(ServeError::Listen { .. })));
}

#[test]
fn credentials_in_a_url_are_not_shown() {
    let Err(error) =
        open("http://user:secret@127.0.0.1:1/x", &hasty()).unwrap().resolve(&"A".parse().unwrap())
    else {
        panic!("resolved")
    };
    assert!(!chain(&error).contains("secret"), "{}", chain(&error));
}
