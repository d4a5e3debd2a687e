//! A full disk: said so, and everything stays whole.

use std::path::PathBuf;
use std::process::Command;

use mica_fetcher::registry::{open, open_writable};
use mica_fetcher::{Cache, PushOptions, ServeOptions, Server, Trust, Writers, listen};
use mica_graph::Digest;

use super::common::{self, chain, hasty};
use super::{assert_clean, published, pull, text};

/// A file system of a few megabytes.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "mica-test"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(mounted.success(), "this test needs root, to mount a small tmpfs");
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

pub(crate) fn is_said_so_and_goes_on() {
    let (bench, server, manifests) = published(2, 900_000, 3);
    let disk = SmallDisk::new(bench.path("disk"));
    let cache = Cache::open(disk.0.join("cache")).unwrap();
    let registry = open(&server.url(), &hasty()).unwrap();
    drop(pull(&*registry, "A@v0", &cache).unwrap());
    // What nobody uses makes room.
    let held = pull(&*registry, "A@v1", &cache).unwrap();
    bench.assert_cached(&cache, &manifests[1]);
    // What somebody uses does not.
    let error = pull(&*registry, "A@v2", &cache).unwrap_err();
    let message = chain(&error);
    assert!(message.contains("no room for") && message.contains("No space left"), "{message}");
    assert!(error.hint().unwrap().contains("mica prune"));
    bench.assert_cached(&cache, &manifests[1]);
    assert_clean(&cache);
    drop(held);
    drop(pull(&*registry, "A@v2", &cache).unwrap());
    bench.assert_cached(&cache, &manifests[2]);
    // Filled by somebody else, it still lists, prunes and recovers. The new version is as large as the one that goes for
    // it, so some room is left for its manifest.
    let filler = disk.0.join("filler");
    drop(std::fs::write(&filler, vec![0; 4 << 20]));
    let filled = std::fs::File::options().write(true).open(&filler).unwrap();
    filled.set_len(filled.metadata().unwrap().len() - (64 << 10)).unwrap();
    assert_eq!(cache.packages().unwrap().len(), 3);
    pull(&*registry, "A@v0", &cache).unwrap();
    bench.assert_cached(&cache, &manifests[0]);
    drop(cache);
}

/// Once into a folder, once by a server.
pub(crate) fn of_a_registry() {
    for served in [false, true] {
        let (bench, _server, manifests) = published(2, 900_000, 2);
        let disk = SmallDisk::new(bench.path("disk"));
        let folder = disk.0.join("registry");
        let options = ServeOptions { writers: Writers::Everybody, ..ServeOptions::default() };
        let server = served
            .then(|| Server::spawn(listen("127.0.0.1:0").unwrap(), &folder, options).unwrap());
        let address = server.as_ref().map_or_else(|| text(folder.clone()), Server::url);
        let registry = open_writable(&address, &hasty()).unwrap();
        bench.push(&*registry, &manifests[0]);
        let file = |digest: &Digest| bench.image(digest);
        let options = PushOptions::default();
        let pushed = mica_fetcher::push(&*registry, &manifests[1], &file, &options, &());
        let error = pushed.unwrap_err();
        assert!(chain(&error).contains("No space left"), "{}", chain(&error));
        assert!(error.hint().unwrap().contains("make room"), "{:?}", error.hint());
        let versions = registry.index(&manifests[0].name).unwrap().unwrap().versions;
        assert_eq!(versions.len(), 1, "the version is not there");
        let cache = bench.cache();
        drop(pull(&*registry, "A", &cache).unwrap());
        bench.assert_cached(&cache, &manifests[0]);
        assert_eq!(std::fs::read_dir(folder.join("incoming")).unwrap().count(), 0);
        let grown = Command::new("mount").args(["-o", "remount,size=9m"]).arg(&disk.0).status();
        assert!(grown.unwrap().success());
        bench.push(&*registry, &manifests[1]);
        drop(pull(&*registry, "A", &cache).unwrap());
        bench.assert_cached(&cache, &manifests[1]);
        drop(server);
    }
}

pub(crate) fn of_a_load() {
    let (bench, _server, _) = published(1, 10, 1);
    let mut bench = bench;
    let mut saved = |version: &str| {
        let layers = [("x", common::oci::image(version, 1_700_000))];
        let manifest = bench.package("A", version, &layers);
        bench.push(&*bench.registry(), &manifest);
        let reference = format!("A@{version}");
        drop(pull(&*bench.registry(), &reference, &bench.cache()).unwrap());
        let mut archive = tempfile::tempfile().unwrap();
        let references = [reference.parse().unwrap()];
        mica_fetcher::save(&bench.cache(), &references, &[], &mut archive).unwrap();
        (manifest, archive)
    };
    let ((one, mut first), (two, mut second)) = (saved("one"), saved("two"));
    let disk = SmallDisk::new(bench.path("disk"));
    let cache = Cache::open(disk.0.join("cache")).unwrap();
    let load = |archive: &mut std::fs::File| mica_fetcher::load(&cache, archive, &Trust::default());
    load(&mut first).unwrap();
    let held = cache.lease_package(&one).unwrap();
    let error = load(&mut second).unwrap_err();
    assert!(chain(&error).contains("No space left"), "{}", chain(&error));
    assert!(error.hint().unwrap().contains("mica prune"));
    bench.assert_cached(&cache, &one);
    assert_clean(&cache);
    assert!(cache.lookup(&"A@two".parse().unwrap()).is_err(), "it is not known");
    // What nobody uses any more makes room.
    drop(held);
    load(&mut second).unwrap();
    bench.assert_cached(&cache, &two);
    assert_clean(&cache);
}
