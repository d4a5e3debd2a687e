//! Patches: made, found, fetched, applied; and every way in which they cannot be.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::patched::{Versions, pull};
use common::proxy::{Fault, Proxy};
use common::{http, noise};
use mica_fetcher::registry::{OpenOptions, open_writable};
use mica_fetcher::{
    Cache, Outcome, PatchBases, PatchIndex, PatchNote, PruneOptions, ServeOptions, Server, Way,
    Writers, explain, listen,
};

/// A registry that serves two versions and a patch between them, and a cache with the first.
fn served() -> (Versions, Server, Cache) {
    let versions = Versions::new();
    versions.publish(&*versions.bench.registry());
    let cache = versions.bench.cache();
    pull(&*versions.bench.registry(), "A@v1", &cache);
    let listener = listen("127.0.0.1:0").unwrap();
    let folder = versions.bench.path("registry");
    let server = Server::spawn(listener, &folder, ServeOptions::default()).unwrap();
    (versions, server, cache)
}

/// The note of the only patch.
fn note(versions: &Versions) -> PatchNote {
    let notes = versions.bench.registry().patches(&versions.new.layers[0].digest).unwrap();
    assert_eq!(notes.len(), 1);
    notes[0].clone()
}

fn blob_path(versions: &Versions, digest: &mica_graph::Digest) -> PathBuf {
    let hex = digest.hex();
    versions.bench.path("registry/blobs/blake3").join(&hex[..2]).join(hex)
}

/// Where the frames of the pieces start, and the end.
fn pieces(versions: &Versions, note: &PatchNote) -> Vec<usize> {
    let patch = fs::read(blob_path(versions, &note.patch.digest)).unwrap();
    let index = PatchIndex::parse(&patch[..note.index.size as usize]).unwrap();
    let mut at = note.index.size as usize;
    let mut starts = vec![at];
    for piece in index.pieces {
        at += piece.stored as usize;
        starts.push(at);
    }
    assert!(starts.len() > 3, "several pieces");
    starts
}

#[test]
fn a_patch_is_taken_where_it_is_cheapest() {
    let (versions, server, cache) = served();
    let proxy = Proxy::new(server.address(), vec![]);
    let registry = http(&proxy.url());
    let note = note(&versions);
    let size = versions.new.layers[0].size;
    assert!(note.patch.size * 10 < size, "{} of {size}", note.patch.size);

    let explained = explain(&*registry, &"A@v2".parse().unwrap(), &cache).unwrap();
    assert_eq!(explained.layers[0].1, Way::Patch { fetch: note.patch.size, resume: 0 });
    let costs = explained.costs[0].unwrap();
    assert_eq!((costs.whole, costs.chunks, costs.patch), (size, None, Some(note.patch.size)));

    let pulled = pull(&*registry, "A@v2", &cache);
    assert_eq!(pulled.layers[0], Outcome::Patched { bytes: note.patch.size, resumed: 0 });
    versions.bench.assert_cached(&cache, &versions.new);
    assert!(cache.verify(false).unwrap().damage.is_empty());
    assert_eq!(cache.disk_use().unwrap().parts, 0);

    // Who has nothing asks for no patches.
    let before = proxy.log.lock().unwrap().len();
    let empty = Cache::open(versions.bench.path("empty")).unwrap();
    let pulled = pull(&*registry, "A@v2", &empty);
    assert_eq!(pulled.layers[0], Outcome::Fetched { bytes: size, resumed: 0, copied: 0 });
    let log = proxy.log.lock().unwrap()[before..].join("\n");
    assert!(!log.contains("patches"), "{log}");
}

#[test]
fn a_layer_without_patches_costs_one_request_more() {
    let (versions, server, cache) = served();
    let hex = versions.new.layers[0].digest.hex();
    fs::remove_file(versions.bench.path(&format!("registry/patches/{hex}.json"))).unwrap();
    let proxy = Proxy::new(server.address(), vec![]);
    let pulled = pull(&*http(&proxy.url()), "A@v2", &cache);
    assert!(matches!(pulled.layers[0], Outcome::Fetched { .. }));
    let log = proxy.log.lock().unwrap().clone();
    assert_eq!(log.iter().filter(|line| line.contains("patches")).count(), 1, "{log:?}");
}

#[test]
fn a_server_takes_patches() {
    let versions = Versions::new();
    let options = ServeOptions { writers: Writers::Everybody, ..ServeOptions::default() };
    let listener = listen("127.0.0.1:0").unwrap();
    let server = Server::spawn(listener, &versions.bench.path("registry"), options).unwrap();
    let registry = open_writable(&server.url(), &OpenOptions::default()).unwrap();
    versions.publish(&*registry);
    let cache = versions.bench.cache();
    pull(&*registry, "A@v1", &cache);
    assert!(matches!(pull(&*registry, "A@v2", &cache).layers[0], Outcome::Patched { .. }));
    // The same again makes nothing.
    let scratch = Cache::open(versions.bench.path("publisher")).unwrap();
    let bases = PatchBases { newest: 3, ..PatchBases::default() };
    let none = |_: &_| None;
    let again = mica_fetcher::push_patches(&*registry, &scratch, &versions.new, &none, &bases, &())
        .unwrap();
    assert!(again.iter().all(|patch| !patch.sent), "{again:?}");
}

#[test]
fn a_cut_at_every_piece_is_resumed() {
    let (versions, server, cache) = served();
    let note = note(&versions);
    let mut cuts: Vec<usize> = pieces(&versions, &note);
    let ends = cuts.clone();
    cuts.extend(ends.iter().map(|end| end / 2));
    cuts.extend([0, 1]);
    for cut in cuts {
        // The manifest comes first.
        let faults = vec![Fault::Pass, Fault::Cut(cut)];
        let proxy = Proxy::new(server.address(), faults);
        let pulled = pull(&*http(&proxy.url()), "A@v2", &cache);
        assert_eq!(pulled.layers[0], Outcome::Patched { bytes: note.patch.size, resumed: 0 });
        versions.forget_new(&cache, pulled);
    }
}

#[test]
fn a_pull_that_failed_goes_on_in_the_next() {
    let (versions, server, cache) = served();
    let note = note(&versions);
    let starts = pieces(&versions, &note);
    let cut = starts[2] - 1;
    let mut faults = vec![Fault::Pass, Fault::Cut(cut)];
    faults.extend(std::iter::repeat_n(Fault::Refuse, 20));
    let proxy = Proxy::new(server.address(), faults);
    let error = versions.try_pull(&*http(&proxy.url()), "A@v2", &cache).unwrap_err();
    assert!(common::chain(&error).contains("//lib:F"), "{}", common::chain(&error));
    let pulled = pull(&*http(&server.url()), "A@v2", &cache);
    let Outcome::Patched { bytes, resumed } = pulled.layers[0] else { panic!("not patched") };
    assert_eq!(bytes + resumed, note.patch.size);
    assert_eq!(resumed, cut as u64);
    versions.bench.assert_cached(&cache, &versions.new);
}

#[test]
fn what_was_left_of_a_patch_is_pruned() {
    let (versions, server, cache) = served();
    let mut faults = vec![Fault::Pass, Fault::Cut(1000)];
    faults.extend(std::iter::repeat_n(Fault::Refuse, 20));
    let proxy = Proxy::new(server.address(), faults);
    versions.try_pull(&*http(&proxy.url()), "A@v2", &cache).unwrap_err();
    assert!(cache.disk_use().unwrap().part_bytes > 0);
    cache.prune(&PruneOptions::default()).unwrap();
    assert_eq!(cache.disk_use().unwrap().part_bytes, 0);
}

#[test]
fn a_flipped_bit_is_fetched_again() {
    let (versions, server, cache) = served();
    let note = note(&versions);
    let starts = pieces(&versions, &note);
    for flip in [0, 100, starts[0], starts[1] + 7, starts[3] - 1] {
        let proxy = Proxy::new(server.address(), vec![Fault::Pass, Fault::Flip(flip)]);
        let pulled = pull(&*http(&proxy.url()), "A@v2", &cache);
        assert!(matches!(pulled.layers[0], Outcome::Patched { .. }), "{:?}", pulled.layers);
        versions.bench.assert_cached(&cache, &versions.new);
        versions.forget_new(&cache, pulled);
    }
}

/// Pulls what cannot come by patch: it comes whole.
fn assert_falls_back(versions: &Versions, server: &Server, cache: &Cache) {
    let pulled = pull(&*http(&server.url()), "A@v2", cache);
    assert!(matches!(pulled.layers[0], Outcome::Fetched { .. }), "{:?}", pulled.layers);
    versions.bench.assert_cached(cache, &versions.new);
    let parts = cache.disk_use().unwrap().parts;
    assert_eq!(parts, 0);
    versions.forget_new(cache, pulled);
}

#[test]
fn what_differs_makes_it_fall_back() {
    let (versions, server, cache) = served();
    let note = note(&versions);
    let patch = blob_path(&versions, &note.patch.digest);
    let good = fs::read(&patch).unwrap();

    // Wrong bytes wherever they are asked for, in a piece and in the index.
    for at in [good.len() - 1, 20] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        overwrite(&patch, &bad);
        assert_falls_back(&versions, &server, &cache);
    }
    overwrite(&patch, &good[..good.len() / 2]);
    assert_falls_back(&versions, &server, &cache);
    fs::remove_file(&patch).unwrap();
    assert_falls_back(&versions, &server, &cache);
    overwrite(&patch, &good);

    // A note that lies: of another library, of another old image, of a longer index.
    let hex = versions.new.layers[0].digest.hex();
    let document = versions.bench.path(&format!("registry/patches/{hex}.json"));
    let json = fs::read_to_string(&document).unwrap();
    let index = format!("\"size\":{}}},\"library\"", note.index.size);
    for (from, to) in [
        (note.library.clone(), "zstd-0.0.1".to_owned()),
        (index, format!("\"size\":{}}},\"library\"", note.index.size + 1)),
        ("{\"schema\":1".to_owned(), "{\"schema\":7".to_owned()),
        ("{".to_owned(), "no JSON".to_owned()),
    ] {
        assert!(json.contains(&from), "{json}");
        fs::write(&document, json.replacen(&from, &to, 1)).unwrap();
        assert_falls_back(&versions, &server, &cache);
    }
    fs::write(&document, &json).unwrap();

    // The old image is another than it was, here.
    let old = cache.blob_path(&versions.old.layers[0].digest);
    let mut bytes = fs::read(&old).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 4;
    overwrite(&old, &bytes);
    assert_falls_back(&versions, &server, &cache);
    bytes[middle] ^= 4;
    overwrite(&old, &bytes);

    let pulled = pull(&*http(&server.url()), "A@v2", &cache);
    assert!(matches!(pulled.layers[0], Outcome::Patched { .. }), "as it was");
}

#[test]
fn a_patch_of_another_old_image_is_refused() {
    let (versions, server, cache) = served();
    let note = note(&versions);
    let other = versions.other.layers[0].digest;
    // The note says that it is one of the image that is here.
    pull(&*versions.bench.registry(), "A@v0", &cache);
    let lie = PatchNote { old: other, ..note };
    let image = versions.new.layers[0].digest;
    versions.bench.registry().add_patches(&image, &[lie]).unwrap();
    let path = cache.blob_path(&versions.old.layers[0].digest);
    fs::remove_file(path).unwrap();
    assert_falls_back(&versions, &server, &cache);
}

#[test]
fn a_patch_that_saves_nothing_is_not_sent() {
    let mut versions = Versions::new();
    let unlike = common::patched::image(&[("f", noise("unlike", 600_000))]);
    let unlike = versions.bench.package("A", "v3", &[("F", unlike)]);
    let registry = versions.bench.registry();
    versions.bench.push(&*registry, &versions.old);
    versions.bench.push(&*registry, &unlike);
    let cache = Cache::open(versions.bench.path("publisher")).unwrap();
    let bases = PatchBases { packages: vec!["A@v1".parse().unwrap()], newest: 0 };
    let file = |digest: &_| versions.bench.image(digest);
    let pushed =
        mica_fetcher::push_patches(&*registry, &cache, &unlike, &file, &bases, &()).unwrap();
    assert_eq!((pushed.len(), pushed[0].sent), (1, false), "{pushed:?}");
    assert!(registry.patches(&unlike.layers[0].digest).unwrap().is_empty());
}

fn overwrite(path: &std::path::Path, bytes: &[u8]) {
    if path.exists() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    fs::write(path, bytes).unwrap();
}
