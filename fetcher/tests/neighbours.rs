//! Other accounts of the machine: what they may open, and what they put where we look.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use common::{Bench, chain, noise};
use mica_fetcher::registry::{OpenOptions, open};
use mica_fetcher::{Cache, Lease, PullOptions};
use mica_graph::{Digest, PackageRef};
use rustix::fs::{FlockOperation, flock};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

/// Everything below a folder, itself too.
fn all(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in path.read_dir().unwrap() {
            found.extend(all(&entry.unwrap().path()));
        }
    }
    found
}

/// Fails if the work is not done in ten seconds.
#[track_caller]
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    wait.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| panic!("{what} hangs"))
}

fn fifo(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::fs::remove_file(path));
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

/// A package of two versions, much of whose layer is the same.
fn published(bench: &mut Bench) -> Vec<mica_graph::Manifest> {
    let piece = |seed: &str| noise(seed, 128 << 10);
    let mut shared: Vec<Vec<u8>> = (0..16).map(|i| piece(&format!("s{i}"))).collect();
    let mut versions = Vec::new();
    for version in ["1", "2"] {
        shared[3] = piece(version);
        let layer = bench.chunked("A", version, &shared);
        let mut manifest = bench.package("A", version, &[]);
        manifest.layers = vec![layer];
        for digest in
            [manifest.layers[0].digest, manifest.layers[0].chunks.as_ref().unwrap().digest]
        {
            assert!(bench.image(&digest).is_some());
        }
        bench.push(&*bench.registry(), &manifest);
        versions.push(manifest);
    }
    versions
}

fn pull(bench: &Bench, reference: &str, cache: &Cache) -> Result<(), String> {
    let address = bench.path("registry");
    let registry =
        open(address.to_str().unwrap(), &OpenOptions::default()).map_err(|e| chain(&e))?;
    let reference: PackageRef = reference.parse().unwrap();
    mica_fetcher::pull(&*registry, &reference, cache, &PullOptions::default(), &())
        .map(drop)
        .map_err(|e| chain(&e))
}

#[test]
fn nobody_else_can_open_what_is_locked() {
    let mut bench = Bench::new();
    let versions = published(&mut bench);
    let cache = bench.cache();
    pull(&bench, "A@1", &cache).unwrap();
    let _lease: Lease = cache.lease_package(&versions[0]).unwrap();
    // A fetch that was cut off.
    let part =
        bench.path("cache/incoming").join(format!("{}.part", versions[1].layers[0].digest.hex()));
    std::fs::write(&part, b"x").unwrap();
    chmod(&part, 0o666);
    pull(&bench, "A@2", &cache).unwrap();
    for folder in
        ["cache/locks", "cache/leases", "cache/incoming", "registry/locks", "registry/incoming"]
    {
        assert_eq!(mode(&bench.path(folder)), 0o700, "{folder}");
        for file in all(&bench.path(folder)).iter().skip(1) {
            assert_eq!(mode(file) & 0o077, 0, "{}", file.display());
        }
    }
    for folder in ["cache", "cache/blobs", "cache/manifests", "cache/packages", "registry/packages"]
    {
        assert_eq!(mode(&bench.path(folder)), 0o755, "{folder}");
    }
}

#[test]
fn a_lock_that_is_held_is_waited_for_until_a_deadline_and_its_holder_named() {
    let mut bench = Bench::new();
    let versions = published(&mut bench);
    let cache = bench.cache().with_patience(Duration::from_millis(200));
    pull(&bench, "A@1", &cache).unwrap();
    let held = std::fs::File::open(bench.path("cache/locks/gc")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let own = format!("process {}", std::process::id());
    let (other, manifest) = (cache.clone(), versions[0].clone());
    let error = in_time("a lease", move || other.lease_package(&manifest).unwrap_err());
    assert!(chain(&error).contains(&own), "{}", chain(&error));
    drop(held);
    // The same of an image that somebody brings in and never ends.
    let digest = versions[1].layers[0].digest;
    let part = bench.path("cache/incoming").join(format!("{}.part", digest.hex()));
    std::fs::write(&part, b"").unwrap();
    let held = std::fs::File::open(&part).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let (image, blob) = (bench.image(&digest).unwrap(), versions[1].layers[0].image());
    let error = in_time("an insert", move || cache.insert(&blob, &image).unwrap_err());
    assert!(chain(&error).contains(&own), "{}", chain(&error));
}

#[test]
fn a_cache_that_others_can_write_is_put_right() {
    let mut bench = Bench::new();
    published(&mut bench);
    let cache = bench.cache();
    pull(&bench, "A@1", &cache).unwrap();
    for path in all(&bench.path("cache")).iter().filter(|path| path.is_dir()) {
        chmod(path, 0o777);
    }
    let planted = bench.path("cache/blobs").join(Digest::of(b"planted").hex());
    std::fs::write(&planted, b"planted").unwrap();
    if is_root() {
        chown(&planted, Some(12_345), Some(12_345)).unwrap();
    }
    let cache = bench.cache();
    for path in all(&bench.path("cache")) {
        assert_eq!(mode(&path) & 0o022, 0, "{}", path.display());
    }
    assert_eq!(planted.exists(), !is_root(), "what others left goes");
    pull(&bench, "A@1", &cache).unwrap();
}

#[test]
fn a_folder_of_another_account_is_no_cache() {
    let bench = Bench::new();
    let folder = bench.path("theirs");
    if is_root() {
        std::fs::create_dir(&folder).unwrap();
        chown(&folder, Some(12_345), Some(12_345)).unwrap();
        let error = Cache::open(&folder).unwrap_err();
        assert!(chain(&error).contains("belongs to user 12345"), "{}", chain(&error));
        assert_eq!(folder.read_dir().unwrap().count(), 0);
        // In theirs another one can come into the place of ours while we use it, and so behind a link of theirs.
        let (below, link) = (folder.join("ours"), bench.path("link"));
        let error = Cache::open(&below).unwrap_err();
        assert!(chain(&error).contains("belongs to user 12345"), "{}", chain(&error));
        drop(Cache::open(bench.path("ours")).unwrap());
        std::os::unix::fs::symlink(bench.path("ours"), &link).unwrap();
        drop(Cache::open(&link).unwrap());
        std::os::unix::fs::lchown(&link, Some(12_345), Some(12_345)).unwrap();
        let error = Cache::open(&link).unwrap_err();
        assert!(chain(&error).contains("belongs to user 12345"), "{}", chain(&error));
    }
    // A folder that is somebody's for other things keeps its mode.
    let busy = bench.path("busy");
    std::fs::create_dir(&busy).unwrap();
    std::fs::write(busy.join("file"), "").unwrap();
    chmod(&busy, 0o1777);
    Cache::open(&busy).unwrap_err();
    assert_eq!(mode(&busy), 0o1777);
    assert_eq!(busy.read_dir().unwrap().count(), 1);
}

/// Whatever lies where a file is looked for, in a cache or registry that others may write, nobody waits for it or follows it.
#[test]
fn what_is_no_file_holds_nobody_up() {
    let mut bench = Bench::new();
    let versions = published(&mut bench);
    let layer = &versions[1].layers[0];
    let (image, table) = (layer.digest.hex(), layer.chunks.as_ref().unwrap().digest.hex());
    let manifest = versions[1].digest().hex();
    let shared = bench.path("shared");
    drop(Cache::open(&shared).unwrap());
    let names = [
        format!("borrowed/{image}.{table}"),
        format!("blobs/{image}"),
        format!("blobs/{table}"),
        format!("manifests/{manifest}"),
        format!("signatures/{manifest}"),
        format!("touched/{image}"),
        format!("checked/{image}.{table}"),
        "packages/A".to_owned(),
        "version".to_owned(),
    ];
    for name in &names {
        fifo(&shared.join(name));
    }
    let bench = std::sync::Arc::new(bench);
    for linked in [false, true] {
        if linked {
            for name in &names {
                std::fs::rename(shared.join(name), shared.join("away")).unwrap();
                fifo(&shared.join("away"));
                symlink(shared.join("away"), shared.join(name)).unwrap();
            }
        }
        let cache =
            Cache::open(bench.path(&format!("cache-{linked}"))).unwrap().with_shared(&shared);
        let here = std::sync::Arc::clone(&bench);
        in_time("a pull over a shared cache", move || {
            pull(&here, "A@1", &cache).unwrap();
            pull(&here, "A@2", &cache).unwrap();
            let manifest = cache.lookup(&"A@2".parse().unwrap()).unwrap();
            assert!(cache.sources(&manifest).is_ok());
        });
    }
    // A registry's own files.
    let documents = [
        "mica-registry.json".to_owned(),
        "packages.json".to_owned(),
        "packages/A/index.json".to_owned(),
        format!("blobs/blake3/{}/{image}", &image[..2]),
        format!("blobs/blake3/{}/{manifest}", &manifest[..2]),
        format!("signatures/{manifest}.minisig"),
        format!("layers/{}.json", layer.inputs.hex()),
        format!("patches/{image}.json"),
    ];
    for document in documents {
        let path = bench.path("registry").join(&document);
        let kept = std::fs::read(&path).ok();
        fifo(&path);
        let cache = Cache::open(bench.path(&document.replace('/', "-"))).unwrap();
        let here = std::sync::Arc::clone(&bench);
        // Whether it works without or says what is wrong: it ends.
        drop(in_time(&document, move || pull(&here, "A@2", &cache)));
        std::fs::remove_file(&path).unwrap();
        if let Some(kept) = kept {
            std::fs::write(&path, kept).unwrap();
        }
    }
}

/// Of a registry that a group shares, what is made in it is the group's, and no link in it leads anywhere.
#[test]
fn a_registry_of_a_group_stays_the_groups() {
    let mut bench = Bench::new();
    let root = bench.path("registry");
    std::fs::create_dir(&root).unwrap();
    chmod(&root, 0o2775);
    published(&mut bench);
    for folder in ["packages", "packages/A", "blobs/blake3"] {
        assert_eq!(mode(&root.join(folder)), 0o2775, "{folder}");
    }
    assert_eq!(mode(&root.join("locks")), 0o2770);
    assert_eq!(mode(&root.join("locks/package-A")) & 0o777, 0o660);
    if is_root() {
        // The group has other members than root here.
        chown(&root, None, Some(12_345)).unwrap();
        let outside = bench.path("outside");
        std::fs::rename(root.join("packages/A"), &outside).unwrap();
        symlink(&outside, root.join("packages/A")).unwrap();
        let before = std::fs::read(outside.join("index.json")).unwrap();
        let third = bench.package("A", "3", &[("A", noise("third", 100))]);
        let options = mica_fetcher::PushOptions::default();
        let registry = bench.registry();
        mica_fetcher::push(&*registry, &third, &|d| bench.image(d), &options, &()).unwrap_err();
        assert_eq!(std::fs::read(outside.join("index.json")).unwrap(), before);
    }
}
