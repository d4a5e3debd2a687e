//! Registries in buckets, judged by moto's S3 server with its signatures checked.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::Read;
use std::sync::Arc;

use common::patched::{Versions, pull};
use common::proxy::{Fault, Proxy};
use common::s3::Store;
use common::{Bench, chain, noise};
use mica_fetcher::registry::{
    AddError, Content, OpenOptions, Published, Registry, RegistryError, WriteRegistry, open,
    open_writable,
};
use mica_fetcher::{Lazy, LazyOptions, Outcome, PushOptions, open_lazy};
use mica_graph::{Blob, Digest, Manifest};
use mica_squashfs::Source;

fn writable(store: &Store, place: &str) -> Box<dyn WriteRegistry> {
    open_writable(&store.address(place), &store.options())
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn readable(store: &Store, place: &str) -> Box<dyn Registry> {
    open(&store.address(place), &store.options()).unwrap()
}

#[test]
fn a_bucket_is_a_registry() {
    let (store, mut bench) = (Store::start(), Bench::new());
    let base = noise("base", 300_000);
    let one = bench.package("A", "953bc1", &[("A", noise("a1", 5000)), ("B", base.clone())]);
    let two = bench.package("A", "a11111", &[("A", noise("a2", 6000)), ("B", base)]);
    let other = bench.package("A", "953bc1", &[("A", noise("a3", 10))]);
    let registry = writable(&store, "bucket/some/where");
    assert_eq!(registry.address(), "s3://bucket/some/where");
    registry.check_writable().unwrap();
    let pushed = bench.push(&*registry, &one);
    assert_eq!((pushed.published, &pushed.sent[..]), (Published::New, &[true, true][..]));
    let pushed = bench.push(&*registry, &two);
    assert_eq!((pushed.bytes, &pushed.sent[..]), (6000, &[true, false][..]));
    assert_eq!(bench.push(&*registry, &two).published, Published::Unchanged);
    let layer = &one.layers[1];
    assert_eq!(registry.layer_by_inputs(&layer.inputs).unwrap().as_ref(), Some(layer));

    let reader = readable(&store, "bucket/some/where/");
    assert_eq!(reader.packages().unwrap(), ["A".parse().unwrap()]);
    let cache = bench.cache();
    // Half of an image is there from a pull that was killed.
    let part = cache.root().join(format!("incoming/{}.part", layer.digest.hex()));
    std::fs::write(part, &noise("base", 300_000)[..200_000]).unwrap();
    let pulled = pull(&*reader, "A", &cache);
    let rest = Outcome::Fetched { bytes: 100_000, resumed: 200_000, copied: 0 };
    assert_eq!((&pulled.manifest, &pulled.layers[1]), (&two, &rest));
    bench.assert_cached(&cache, &pull(&*reader, "A@953", &cache).manifest);

    let stable = "stable".parse().unwrap();
    for version in [&two.version, &one.version] {
        registry.tag(&one.name, &stable, version).unwrap();
        assert_eq!(&reader.resolve(&"A@stable".parse().unwrap()).unwrap().version, version);
    }
    let options = PushOptions::default();
    let error = mica_fetcher::push(&*registry, &other, &|d| bench.image(d), &options, &());
    assert!(chain(&error.unwrap_err()).contains(&one.digest().to_string()));
    let error = reader.resolve(&"B".parse().unwrap()).unwrap_err();
    assert!(matches!(error, RegistryError::UnknownPackage { .. }), "{error}");
    // The files of a folder, under the prefix; beside it there is nothing.
    let beside = readable(&store, "bucket/some").resolve(&"A".parse().unwrap()).unwrap_err();
    assert!(matches!(beside, RegistryError::NotARegistry { .. }), "{beside}");
    let Err(error) = open_writable(&store.address("bucket/some"), &store.options()) else {
        panic!("made a registry around another")
    };
    assert!(matches!(error, RegistryError::NotARegistry { .. }), "{error}");
}

#[test]
fn large_images_go_in_parts_and_are_never_half_there() {
    let (store, bench) = (Store::start(), Bench::new());
    let registry = writable(&store, "bucket");
    let content = noise("large", 21_000_000);
    let path = bench.path("image");
    std::fs::write(&path, &content).unwrap();
    let blob = Blob { digest: Digest::of(&content), size: content.len() as u64 };
    let wrong = Blob { digest: Digest::of(b"other"), size: blob.size };
    let error = registry.put_blob(&wrong, Content::File(&path)).unwrap_err();
    assert!(matches!(error, RegistryError::WrongBytes { .. }), "{error}");
    assert!(!registry.has_blob(&wrong).unwrap());
    assert!(registry.put_blob(&blob, Content::File(&path)).unwrap());
    assert!(!registry.put_blob(&blob, Content::File(&path)).unwrap());
    for range in [0..blob.size, 5..10, 20_999_999..21_000_000, 0..1] {
        let mut stream = registry.blob(&blob, range.clone()).unwrap();
        let mut bytes = Vec::new();
        stream.reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(stream.start, range.start);
        assert!(bytes == content[range.start as usize..range.end as usize]);
    }
    let small = Blob { digest: Digest::of(b"right"), size: 5 };
    let error = registry.put_blob(&small, Content::Bytes(b"wrong")).unwrap_err();
    assert!(matches!(error, RegistryError::WrongBytes { .. }), "{error}");
    assert!(!registry.has_blob(&small).unwrap());
}

#[test]
fn a_large_image_survives_a_fault_at_every_request() {
    let (store, bench) = (Store::start(), Bench::new());
    drop(writable(&store, "bucket"));
    let path = bench.path("image");
    // What there is, the start, the parts, the end; each once without an answer and once with half of one.
    for (i, fault) in (0..6).flat_map(|i| [(i, Fault::Refuse), (i, Fault::Cut(20))]) {
        let content = noise(&format!("{i} {fault:?}"), 17_000_000);
        std::fs::write(&path, &content).unwrap();
        let blob = Blob { digest: Digest::of(&content), size: content.len() as u64 };
        let refused = matches!(fault, Fault::Refuse);
        let faults = (0..i).map(|_| Fault::Pass).chain([fault]).collect();
        let proxy = Proxy::new(store.address, faults);
        let registry =
            open_writable(&store.through(proxy.address, "bucket"), &store.options()).unwrap();
        assert!(registry.put_blob(&blob, Content::File(&path)).unwrap());
        let mut held = Vec::new();
        let direct = readable(&store, "bucket");
        direct.blob(&blob, 0..blob.size).unwrap().reader.read_to_end(&mut held).unwrap();
        assert!(held == content);
        // Half of an answer that says nothing is all of it.
        assert!(proxy.count() >= if refused { 8 } else { 7 }, "{i}");
    }
}

#[test]
fn a_lazy_image_reads_ranges() {
    let (store, mut bench) = (Store::start(), Bench::new());
    let pieces: Vec<Vec<u8>> = (0..10).map(|i| noise(&i.to_string(), 100_000)).collect();
    let layer = bench.chunked("L", "1", &pieces);
    let manifest = Manifest { layers: vec![layer.clone()], ..bench.package("A", "1", &[]) };
    bench.push(&*writable(&store, "bucket"), &manifest);
    let proxy = Proxy::new(store.address, vec![Fault::Pass, Fault::Cut(50), Fault::Flip(9)]);
    let address = store.through(proxy.address, "bucket");
    let reader: Arc<dyn Registry> = Arc::from(open(&address, &store.options()).unwrap());
    let options = LazyOptions { background: false, ..LazyOptions::default() };
    let Lazy::Partial(image) = open_lazy(reader, &bench.cache(), &layer, options).unwrap() else {
        panic!("complete")
    };
    let mut bytes = [0; 10];
    image.read_exact_at(&mut bytes, 300_005).unwrap();
    assert_eq!(bytes, pieces[3][5..15]);
    assert_eq!(image.local().0, 100_000);
    // The table, the chunk, and again after each fault.
    assert_eq!(proxy.count(), 4);
}

#[test]
fn patches_are_found_and_taken() {
    let (store, versions) = (Store::start(), Versions::new());
    versions.publish(&*writable(&store, "bucket/p"));
    let (reader, cache) = (readable(&store, "bucket/p"), versions.bench.cache());
    drop(pull(&*reader, "A@v1", &cache));
    let pulled = pull(&*reader, "A@v2", &cache);
    assert!(matches!(pulled.layers[0], Outcome::Patched { .. }), "{:?}", pulled.layers);
    versions.bench.assert_cached(&cache, &versions.new);
}

#[test]
fn publishers_at_the_same_moment_lose_nothing() {
    let (store, mut bench) = (Store::start(), Bench::new());
    let shared = noise("shared", 1000);
    let manifests: Vec<Manifest> = (0..8)
        .map(|i| {
            let layers = [("top", noise(&format!("{i}"), 500)), ("base", shared.clone())];
            bench.package(["A", "B"][i % 2], &format!("v{i}"), &layers)
        })
        .collect();
    std::thread::scope(|scope| {
        for manifest in &manifests {
            let (bench, store) = (&bench, &store);
            scope.spawn(move || bench.push(&*writable(store, "bucket"), manifest));
        }
    });
    let registry = readable(&store, "bucket");
    assert_eq!(registry.packages().unwrap().len(), 2);
    for manifest in &manifests {
        let index = registry.index(&manifest.name).unwrap().unwrap();
        assert_eq!(index.entry(&manifest.version).unwrap().manifest.digest, manifest.digest());
    }
    // The same version twice at once, with different content: one of them is told.
    let rivals = ["x", "y"].map(|seed| bench.package("A", "same", &[("A", noise(seed, 100))]));
    let results = std::thread::scope(|scope| {
        let push = |manifest| {
            let registry = writable(&store, "bucket");
            let options = PushOptions::default();
            mica_fetcher::push(&*registry, manifest, &|d| bench.image(d), &options, &())
        };
        let pushes = rivals.each_ref().map(|manifest| scope.spawn(move || push(manifest)));
        pushes.map(|push| push.join().unwrap())
    });
    let errors: Vec<String> =
        results.iter().filter_map(|r| Some(chain(r.as_ref().err()?))).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let taken = AddError::Taken {
        package: rivals[0].name.clone(),
        version: rivals[0].version.clone(),
        held: rivals[usize::from(results[0].is_err())].digest(),
    };
    assert!(errors[0].contains(&taken.to_string()), "{errors:?}");
}

#[test]
fn faults_are_ridden_out() {
    let (store, mut bench) = (Store::start(), Bench::new());
    let manifest = bench.package("A", "1", &[("A", noise("a", 500_000))]);
    bench.push(&*writable(&store, "bucket"), &manifest);
    let busy = "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n".to_owned();
    let faults = vec![Fault::Pass, Fault::Refuse, Fault::Answer(busy), Fault::Cut(200_000)];
    let proxy = Proxy::new(store.address, faults);
    let reader = open(&store.through(proxy.address, "bucket"), &store.options()).unwrap();
    let cache = bench.cache();
    let pulled = pull(&*reader, "A", &cache);
    assert_eq!(pulled.fetched_bytes(), 500_000, "each byte once");
    bench.assert_cached(&cache, &manifest);
    // Keys for a while, whose while is over.
    let body = "<Error><Code>ExpiredToken</Code><Message>The token has expired</Message></Error>";
    let answer = format!("HTTP/1.1 400 No\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let proxy = Proxy::new(store.address, vec![Fault::Answer(answer)]);
    let reader = open(&store.through(proxy.address, "bucket"), &store.options()).unwrap();
    let blob = Blob { digest: manifest.layers[0].digest, size: 500_000 };
    let Err(error) = reader.blob(&blob, 0..10) else { panic!("read") };
    assert_eq!(
        error.to_string(),
        "s3://bucket refuses to read: ExpiredToken: The token has expired"
    );
}

#[test]
fn people_are_told_what_is_wrong() {
    let store = Store::start();
    let fails = |address: &str, options: &OpenOptions| match open_writable(address, options) {
        Err(error) => error,
        Ok(_) => panic!("{address} opened"),
    };
    let here = store.address("bucket");
    let error = fails(&here, &store.options_with("AKIANOBODY", store.secret()));
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("InvalidAccessKeyId"), "{error}");
    assert!(error.hint().unwrap().contains("AWS_ACCESS_KEY_ID"));
    let error = fails(&here, &store.options_with(store.key(), "wrong"));
    assert!(error.to_string().contains("SignatureDoesNotMatch"), "{error}");
    assert!(!chain(&error).contains(store.secret()) && !chain(&error).contains("Signature="));
    // Keys of a profile, and of one that isn't there.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let (key, secret) = (store.key(), store.secret());
    let text = format!("[work]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    std::fs::write(&file, text).unwrap();
    let of = |profile| {
        let file = ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap());
        store.options_of(&[file, ("AWS_PROFILE", profile)])
    };
    open_writable(&store.address("bucket/work"), &of("work")).unwrap();
    let error = fails(&here, &of("play"));
    let named = "s3://bucket cannot be used as a registry: no profile `play` in ";
    assert!(error.to_string().starts_with(named), "{error}");
    let error = fails(&store.address("nobodys/x"), &store.options());
    assert_eq!(error.to_string(), "s3://nobodys/x cannot be used: there is no such bucket");
    let reader = readable(&store, "nobodys");
    let error = reader.resolve(&"A".parse().unwrap()).unwrap_err();
    assert!(matches!(error, RegistryError::NoBucket { .. }), "{error}");
    // An empty bucket that is only to be read.
    let error = readable(&store, "bucket").resolve(&"A".parse().unwrap()).unwrap_err();
    assert!(matches!(error, RegistryError::NotARegistry { .. }), "{error}");
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fails(&store.through(nowhere, "bucket"), &store.options());
    assert_eq!(error.to_string(), "cannot reach the registry at s3://bucket");
    assert!(chain(&error).contains("Connection refused"), "{}", chain(&error));
    assert!(!format!("{:?}", store.options().http).contains(store.secret()));
}
