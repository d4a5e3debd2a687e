//! Two versions of a package whose only layer was rebuilt.

use std::path::PathBuf;

use mica_fetcher::registry::{Registry, WriteRegistry};
use mica_fetcher::{Cache, PatchBases, PruneOptions, PullError, PullOptions, Pulled, push_patches};
use mica_graph::Manifest;
use mica_squashfs::write::{Metadata, Node, NodeKind, Tree, WriteOptions, write};

use super::{Bench, hasty_retry, noise};

pub struct Versions {
    pub bench: Bench,
    pub old: Manifest,
    pub new: Manifest,
    /// One that has nothing in common with them.
    pub other: Manifest,
}

/// An image of some files.
pub fn image(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    for (name, content) in files {
        let kind = NodeKind::File(Box::new(content.clone()));
        let node = Node { metadata: Metadata::with_mode(0o644), kind };
        tree.insert(tree.root(), name.as_bytes(), node).unwrap();
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    write(&tree, &WriteOptions::default(), &mut bytes).unwrap();
    bytes.into_inner()
}

impl Versions {
    /// Versions v0, v1 and v2 of A; the last two are of several pieces.
    pub fn new() -> Self {
        let mut bench = Bench::new();
        let before = noise("F", 14_000_000);
        let mut after = before.clone();
        after.iter_mut().step_by(5000).for_each(|byte| *byte ^= 0x55);
        after.splice(3_000_000..3_000_000, noise("more", 1000));
        let file = |content| image(&[("libf.so", content)]);
        let other = bench.package("A", "v0", &[("F", file(noise("other", 300_000)))]);
        let old = bench.package("A", "v1", &[("F", file(before))]);
        let new = bench.package("A", "v2", &[("F", file(after))]);
        Self { bench, old, new, other }
    }

    /// Publishes all of them, and a patch from v1 to v2.
    pub fn publish(&self, registry: &dyn WriteRegistry) {
        for manifest in [&self.other, &self.old, &self.new] {
            self.bench.push(registry, manifest);
        }
        let cache = Cache::open(self.bench.path("publisher")).unwrap();
        let bases = PatchBases { packages: vec!["A@v1".parse().unwrap()], newest: 0 };
        let file = |digest: &_| -> Option<PathBuf> { self.bench.image(digest) };
        let pushed = push_patches(registry, &cache, &self.new, &file, &bases, &()).unwrap();
        assert_eq!((pushed.len(), pushed[0].sent), (1, true), "{pushed:?}");
    }

    pub fn try_pull(
        &self,
        registry: &dyn Registry,
        reference: &str,
        cache: &Cache,
    ) -> Result<Pulled, PullError> {
        let options = PullOptions { retry: hasty_retry(), ..PullOptions::default() };
        mica_fetcher::pull(registry, &reference.parse().unwrap(), cache, &options, &())
    }

    /// Takes the new version out of the cache again.
    pub fn forget_new(&self, cache: &Cache, pulled: Pulled) {
        drop(pulled);
        cache.forget(&"A@v2".parse().unwrap()).unwrap();
        cache.prune(&PruneOptions::default()).unwrap();
        assert!(!cache.blob_path(&self.new.layers[0].digest).exists());
    }
}

pub fn pull(registry: &dyn Registry, reference: &str, cache: &Cache) -> Pulled {
    let options = PullOptions { retry: hasty_retry(), ..PullOptions::default() };
    let pulled = mica_fetcher::pull(registry, &reference.parse().unwrap(), cache, &options, &());
    pulled.unwrap_or_else(|error| panic!("{}", super::chain(&error)))
}
