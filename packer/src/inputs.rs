//! The digest of a layer's inputs: what was packed before need not be packed again.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use mica_graph::Digest;
use mica_squashfs::write::{
    Content, ContentDigest, ContentDigestError, NodeId, NodeKind, Tree, content_digest,
};

use crate::{PackOptions, Scan};

/// Why the inputs of a layer have no digest.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file, in the layer.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file changed since it was scanned.
    #[error("{path} changed while it was read")]
    Changed {
        /// The file, in the layer.
        path: String,
    },
}

/// A digest of everything that shapes the image: names, kinds, metadata, contents, hard links, and
/// how it is packed. Contents that are known are not read, the others are told what they are.
pub fn inputs_digest(scan: &Scan, options: &PackOptions) -> Result<Digest, InputsError> {
    let mut hasher = Fields(blake3::Hasher::new());
    hasher.bytes(b"mica inputs 1");
    hasher.bytes(options.description().as_bytes());
    hasher.bytes(&options.mtime.to_le_bytes());
    hasher.bytes(match &options.header {
        None => b"plain",
        Some(_) => b"xar",
    });
    let target = options.header.as_ref().and_then(|header| header.target.as_deref());
    hasher.bytes(target.unwrap_or("").as_bytes());
    let contents = content_digests(scan, options.jobs)?;
    let mut walk = Walk { tree: &scan.tree, contents: &contents, hasher, seen: Vec::new() };
    walk.seen.resize(scan.tree.len(), None);
    walk.all();
    Ok(walk.hasher.0.finalize().into())
}

/// Hashes fields so that no two lists of fields give the same bytes.
struct Fields(blake3::Hasher);

impl Fields {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

struct Walk<'a> {
    tree: &'a Tree,
    contents: &'a [Option<blake3::Hash>],
    hasher: Fields,
    /// Order in which nodes were met, to tell hard links from copies.
    seen: Vec<Option<u64>>,
}

impl Walk<'_> {
    fn all(&mut self) {
        let mut count = 0;
        let mut stack = vec![(Vec::new(), self.tree.root())];
        while let Some((path, id)) = stack.pop() {
            self.hasher.bytes(&path);
            if let Some(earlier) = self.seen[id.index()] {
                self.hasher.bytes(b"link");
                self.hasher.bytes(&earlier.to_le_bytes());
                continue;
            }
            self.seen[id.index()] = Some(count);
            count += 1;
            self.node(id);
            for (name, child) in self.tree.children(id).rev() {
                let path = [&path, &b"/"[..], name].concat();
                stack.push((path, child));
            }
        }
    }

    fn node(&mut self, id: NodeId) {
        let node = self.tree.node(id);
        let metadata = &node.metadata;
        let numbers = [metadata.mode.into(), metadata.uid, metadata.gid, metadata.mtime];
        self.hasher.bytes(&numbers.map(u32::to_le_bytes).concat());
        self.hasher.bytes(&(metadata.xattrs.len() as u64).to_le_bytes());
        for xattr in &metadata.xattrs {
            self.hasher.bytes(&xattr.name);
            self.hasher.bytes(&xattr.value);
        }
        match &node.kind {
            NodeKind::Directory => self.hasher.bytes(b"directory"),
            NodeKind::File(content) => {
                self.hasher.bytes(b"file");
                self.hasher.bytes(&content.size().to_le_bytes());
                let digest = self.contents[id.index()];
                self.hasher.bytes(digest.as_ref().map_or(b"", |digest| digest.as_bytes()));
            }
            NodeKind::Symlink(target) => {
                self.hasher.bytes(b"symlink");
                self.hasher.bytes(target);
            }
            NodeKind::BlockDevice(rdev) => {
                self.hasher.bytes(b"block");
                self.hasher.bytes(&rdev.to_le_bytes());
            }
            NodeKind::CharDevice(rdev) => {
                self.hasher.bytes(b"char");
                self.hasher.bytes(&rdev.to_le_bytes());
            }
            NodeKind::Fifo => self.hasher.bytes(b"fifo"),
            NodeKind::Socket => self.hasher.bytes(b"socket"),
        }
    }
}

type Digests = Vec<Option<blake3::Hash>>;

/// Digests of all files' contents, by node.
fn content_digests(scan: &Scan, jobs: Option<usize>) -> Result<Digests, InputsError> {
    let mut digests: Digests = vec![None; scan.tree.len()];
    let mut unknown = Vec::new();
    for (id, content) in files_with_content(&scan.tree) {
        match content.known_digest() {
            Some(digest) => digests[id.index()] = Some(digest.hash()),
            None => unknown.push((id, content)),
        }
    }
    for (index, digest) in read_all(&unknown, jobs) {
        let (id, content) = unknown[index];
        let digest = digest.map_err(|error| {
            let path = path_of(&scan.tree, id);
            match error {
                ContentDigestError::Read(source) => InputsError::Read { path, source },
                ContentDigestError::Changed => InputsError::Changed { path },
            }
        })?;
        digests[id.index()] = Some(digest.hash());
        content.remember_digest(digest);
    }
    Ok(digests)
}

type Read = (usize, Result<ContentDigest, ContentDigestError>);

/// Digests by index, read on several threads; stops after the first failure.
fn read_all(files: &[(NodeId, &dyn Content)], jobs: Option<usize>) -> Vec<Read> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(files.len()));
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let some = || {
        let (mut buffer, mut mine) = (Vec::new(), Vec::new());
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, content)) = files.get(index) else { break };
            let digest = content_digest(*content, &mut buffer);
            if digest.is_err() {
                next.store(files.len(), Ordering::Relaxed);
            }
            mine.push((index, digest));
        }
        results.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.unwrap_or_else(processors).clamp(1, 64) {
            // Where there can be no more threads, those there are do the work.
            if std::thread::Builder::new().spawn_scoped(scope, some).is_err() {
                break;
            }
        }
        some();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn files_with_content(tree: &Tree) -> Vec<(NodeId, &dyn Content)> {
    let content = |id| match &tree.node(id).kind {
        NodeKind::File(content) if content.size() > 0 => Some((id, &**content)),
        _ => None,
    };
    tree.ids().filter_map(content).collect()
}

/// The first path of a node; only for messages, it walks the tree.
fn path_of(tree: &Tree, wanted: NodeId) -> String {
    let mut stack = vec![(Vec::new(), tree.root())];
    while let Some((path, id)) = stack.pop() {
        if id == wanted {
            return String::from_utf8_lossy(&path).into_owned();
        }
        let below = |name: &[u8]| {
            if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() }
        };
        stack.extend(tree.children(id).map(|(name, child)| (below(name), child)));
    }
    String::new()
}
