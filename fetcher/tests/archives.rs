//! Archives that want more than to be loaded. One process, whose memory is measured: its tests run one after the other.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mica_fetcher::{Cache, LoadError, Trust, load};
use serde_json::json;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is passed on to the system's allocator; counting changes nothing about what it gives.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What loading may hold at a time, whatever is loaded.
const MOST: usize = 64 << 20;

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads an archive with little memory in little time; the error.
#[track_caller]
fn refused(archive: &mut File) -> LoadError {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().join("cache")).unwrap();
    let (before, begun) = (NOW.load(Ordering::Relaxed), Instant::now());
    PEAK.store(before, Ordering::Relaxed);
    let error = load(&cache, archive, &Trust::default()).unwrap_err();
    let used = PEAK.load(Ordering::Relaxed) - before;
    assert!(used <= MOST, "{used} bytes for {error}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?} for {error}", begun.elapsed());
    error
}

struct Archive {
    file: File,
}

impl Archive {
    fn new() -> Self {
        Self { file: tempfile::tempfile().unwrap() }
    }

    fn header(&mut self, name: &str, kind: tar::EntryType, size: u64) {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        self.file.write_all(header.as_bytes()).unwrap();
    }

    /// A member whose content begins so; the rest of it is a hole.
    fn add(&mut self, name: &str, kind: tar::EntryType, start: &[u8], size: u64) {
        self.header(name, kind, size);
        let at = self.file.stream_position().unwrap();
        self.file.write_all(start).unwrap();
        let end = at + size.next_multiple_of(512);
        self.file.set_len(end).unwrap();
        self.file.seek(SeekFrom::Start(end)).unwrap();
    }

    fn file(&mut self, name: &str, bytes: &[u8]) {
        self.add(name, tar::EntryType::Regular, bytes, bytes.len() as u64);
    }

    /// A blob by its name.
    fn blob(&mut self, bytes: &[u8]) -> String {
        use sha2::Digest as _;
        let hash: String =
            sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        self.file(&format!("blobs/sha256/{hash}"), bytes);
        format!("sha256:{hash}")
    }

    fn index(&mut self, manifests: &[serde_json::Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.file("index.json", index.to_string().as_bytes());
    }
}

fn descriptor(digest: &str) -> serde_json::Value {
    json!({ "mediaType": "", "digest": digest, "size": 0 })
}

#[test]
fn sparse_members_cost_no_memory() {
    let _alone = alone();
    let mut archive = Archive::new();
    for number in 0..1000 {
        let name = format!("blobs/sha256/{number:064x}");
        archive.add(&name, tar::EntryType::Regular, b"{", 2 << 20);
    }
    assert!(matches!(refused(&mut archive.file), LoadError::NoPackage));
    archive.add("index.json", tar::EntryType::Regular, b"{", 1 << 40);
    assert!(matches!(refused(&mut archive.file), LoadError::Bound(_)));
}

#[test]
fn long_headers_cost_no_memory() {
    let _alone = alone();
    for kind in [tar::EntryType::XHeader, tar::EntryType::GNULongName, tar::EntryType::GNULongLink]
    {
        let mut archive = Archive::new();
        archive.add("long", kind, b"9", 4 << 30);
        archive.file("index.json", b"{}");
        refused(&mut archive.file);
    }
    // A size that leads around the end of numbers.
    let mut archive = Archive::new();
    let size = format!("{} size={}\n", 29, u64::MAX - 512);
    archive.add("long", tar::EntryType::XHeader, size.as_bytes(), size.len() as u64);
    archive.file("index.json", b"{}");
    assert!(matches!(refused(&mut archive.file), LoadError::Read(_)));
    // A map of a sparse file that never ends.
    let mut archive = Archive::new();
    archive.header("s", tar::EntryType::GNUSparse, 0);
    archive.file.write_at(&[1], 482).unwrap();
    refused(&mut archive.file);
}

#[test]
fn many_tiny_members_end() {
    let _alone = alone();
    let mut archive = Archive::new();
    archive.header("tiny", tar::EntryType::Regular, 0);
    let mut block = [0; 512];
    archive.file.read_exact_at(&mut block, 0).unwrap();
    let many = block.repeat(1000);
    for _ in 0..301 {
        archive.file.write_all(&many).unwrap();
    }
    assert!(refused(&mut archive.file).to_string().contains("cannot read"));
    // The same of names that could matter.
    let mut archive = Archive::new();
    for number in 0..201_000_u64 {
        archive.header(&format!("blobs/sha256/{number:064x}"), tar::EntryType::Regular, 0);
    }
    assert!(matches!(refused(&mut archive.file), LoadError::Bound("too many blobs")));
}

#[test]
fn documents_that_swell_are_held_one_at_a_time() {
    let _alone = alone();
    // The smallest descriptors, the shortest annotations: as much memory for a byte as can be.
    let descriptors = |count| vec![descriptor(""); count];
    let annotations: serde_json::Map<_, _> =
        (0..150_000_u32).map(|number| (format!("{number:x}"), json!(""))).collect();
    for layers in [json!(descriptors(50_000)), json!([])] {
        let mut manifest =
            json!({ "schemaVersion": 2, "config": descriptor(""), "layers": layers });
        if layers.as_array().unwrap().is_empty() {
            manifest["annotations"] = annotations.clone().into();
        }
        let mut archive = Archive::new();
        let mut named = Vec::new();
        for number in 0..20 {
            manifest["mediaType"] = json!(number.to_string());
            let text = manifest.to_string();
            assert!(text.len() < 2 << 20 && text.len() > 1 << 20, "{}", text.len());
            named.push(descriptor(&archive.blob(text.as_bytes())));
        }
        archive.index(&named);
        let error = refused(&mut archive.file);
        // The one has too many values to be looked at, the other nothing in it.
        let expected = matches!(error, LoadError::NoPackage | LoadError::Document { .. });
        assert!(expected, "{error:?}");
    }
}

#[test]
fn an_index_that_names_itself_or_everything_again_is_refused() {
    let _alone = alone();
    let mut archive = Archive::new();
    let digest = archive.blob(br#"{"schemaVersion":2,"manifests":[]}"#);
    archive.index(&[descriptor(&digest)]);
    refused(&mut archive.file);
    // Two indexes: another reader may take the other one.
    let mut archive = Archive::new();
    archive.index(&[]);
    archive.index(&[]);
    assert!(matches!(refused(&mut archive.file), LoadError::Bound("two indexes")));
    // One document under many names, and one that is named by many.
    let mut archive = Archive::new();
    let config = archive.blob(&[b" ".repeat(1 << 20), b"{}".to_vec()].concat());
    let digest = format!("blake3:{}", "0".repeat(64));
    let mut named = Vec::new();
    for number in 0..1500 {
        let manifest = json!({
            "schemaVersion": 2,
            "config": descriptor(&config),
            "layers": [],
            "annotations": {
                "dev.mica.package": "a", "dev.mica.version": number.to_string(),
                "dev.mica.digest": digest, "dev.mica.size": "1",
            },
        });
        named.push(descriptor(&archive.blob(manifest.to_string().as_bytes())));
    }
    archive.index(&named);
    refused(&mut archive.file);
}
