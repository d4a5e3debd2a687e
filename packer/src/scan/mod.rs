//! From directories and build outputs to the tree of an image.
//!
//! Every entry is found relative to a directory that is held open (no symlink is ever followed),
//! in byte order, with its mode, extended attributes, hard links and device numbers. What is
//! changed or left out (times, ACLs, the host's own attributes) is a [`Notice`].

mod attributes;
mod compiled;
mod content;
mod details;
mod list;
mod notice;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use mica_squashfs::write::{Attribute, Metadata, Node, NodeId, NodeKind, Tree, TreeError};
use rustix::fs::{FileType, Mode, OFlags};

use crate::ScanCache;
pub(crate) use content::Identity;
use content::{Root, ScannedFile};
use list::{Details, Entry, Failure, Inspected};
pub use notice::{Change, Notice};

/// What the image says about owners and times, instead of what the machine says.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Owner and group of everything; `None` keeps those of the input.
    pub owner: Option<(u32, u32)>,
    /// Later modification times become this one (`SOURCE_DATE_EPOCH`).
    pub mtime: u32,
    /// Which permission bits count.
    pub modes: Modes,
    /// Threads; `None` is one per processor.
    pub jobs: Option<usize>,
    /// What is known from an earlier time.
    pub cache: Option<Arc<ScanCache>>,
}

impl ScanOptions {
    fn jobs(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.unwrap_or_else(processors).clamp(1, 64)
    }
}

/// Which permission bits of files and directories count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Modes {
    /// All, as they are.
    #[default]
    Keep,
    /// Whether a file can be executed, which is all that git keeps: 0755 or 0644, and 0755 for directories. The umask
    /// under which a source tree was checked out then makes no difference.
    Executable,
}

impl Modes {
    fn of(self, mode: u32) -> u16 {
        match (self, FileType::from_raw_mode(mode)) {
            (Self::Executable, FileType::RegularFile) if mode & 0o111 == 0 => 0o644,
            (Self::Executable, FileType::RegularFile | FileType::Directory) => 0o755,
            _ => (mode & 0o7777) as u16,
        }
    }
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self { owner: Some((0, 0)), mtime: 0, modes: Modes::Keep, jobs: None, cache: None }
    }
}

/// An output of a module and its place in the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it goes, `/`-separated, relative to the layer's root; empty for the root itself.
    pub tree_path: PathBuf,
    /// The file or directory on disk. A symlink is packed as a symlink.
    pub source: PathBuf,
}

/// The input of a layer, scanned: names and metadata are in memory, contents are not.
#[derive(Debug)]
pub struct Scan {
    /// What will be written.
    pub tree: Tree,
    /// What differs from the input.
    pub notices: Vec<Notice>,
    /// Bytes of all regular files, hard links counted once.
    pub bytes: u64,
    /// Number of regular files, hard links counted once.
    pub files: u64,
    /// What [`scan_dir_unless`] found; `None` if something is so young that it may change and look
    /// the same.
    pub(crate) fingerprint: Option<[u8; 32]>,
}

impl Scan {
    /// All entries below the root with their paths, hard links under each of their names;
    /// directories before what they hold.
    pub fn entries(&self) -> impl Iterator<Item = (Vec<u8>, NodeId)> {
        let mut stack: Vec<(Vec<u8>, NodeId)> = vec![(Vec::new(), self.tree.root())];
        let next = move || {
            let (path, id) = stack.pop()?;
            let below = self.tree.children(id).rev();
            stack.extend(below.map(|(name, child)| (joined(&path, name), child)));
            Some((path, id))
        };
        std::iter::from_fn(next).skip(1)
    }
}

/// Why an input cannot be packed as it is.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Two outputs want one place, or one is placed below a file.
    #[error("cannot place {} in the layer", path.display())]
    Place {
        /// The input.
        path: PathBuf,
        /// Why not.
        #[source]
        source: TreeError,
    },
    /// A path with `..`.
    #[error("{} leaves the layer", .0.display())]
    Escape(PathBuf),
}

/// Scans the directory `dir` as the root of a layer.
pub fn scan_dir(dir: &Path, options: &ScanOptions) -> Result<Scan, ScanError> {
    // The trailing slash: a symlink to a directory stands for the directory here.
    let output = Output { tree_path: PathBuf::new(), source: dir.join("") };
    let mut builder = Builder { holds: true, ..Builder::new(options) };
    builder.output(&output)?;
    Ok(builder.finish())
}

/// Scans outputs, each at its place in the layer; missing parents are made with mode 0755. However many there are, the scan
/// holds no descriptor of theirs.
pub fn scan_outputs(outputs: &[Output], options: &ScanOptions) -> Result<Scan, ScanError> {
    let mut builder = Builder::new(options);
    for output in outputs {
        builder.output(output)?;
    }
    Ok(builder.finish())
}

/// The same as [`scan_dir`] but where `is_known` says of what names and `stat`s of everything in the
/// directory hash to that nothing has changed. `cache` is asked for if something has.
pub(crate) fn scan_dir_unless(
    dir: &Path,
    options: &ScanOptions,
    is_known: impl FnOnce(&[u8; 32]) -> bool,
    cache: impl FnOnce() -> ScanCache,
) -> Result<Option<Scan>, ScanError> {
    let dir = dir.join("");
    let root = Arc::new(Root::held(open_parent(&dir)?.dir));
    let listings = list::list(&root, options.jobs()).map_err(|failure| failure.below(&dir))?;
    let fingerprint = listings.fingerprint(&root);
    if fingerprint.as_ref().is_some_and(is_known) {
        return Ok(None);
    }
    let options = ScanOptions { cache: Some(Arc::new(cache())), ..options.clone() };
    let mut builder = Builder::new(&options);
    builder.scan.fingerprint = fingerprint;
    let node = builder.scan.tree.root();
    builder.directory(&root, &dir, listings, node, Vec::new())?;
    Ok(Some(builder.finish()))
}

/// Makes the tree of what was listed.
struct Builder<'a> {
    options: &'a ScanOptions,
    scan: Scan,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
    /// Python sources that get another time.
    sources: HashMap<NodeId, compiled::Source>,
    /// The directories of outputs that are files.
    parents: HashMap<PathBuf, Arc<Root>>,
    /// What is scanned is held open.
    holds: bool,
}

/// Where an entry is and where it goes.
struct Place<'a> {
    root: &'a Arc<Root>,
    /// `root` itself, for messages.
    source: &'a Path,
    /// Its directory below `root` and its name there.
    dir: &'a Arc<[u8]>,
    source_name: &'a [u8],
    /// The directory in the tree and the name in it.
    parent: NodeId,
    name: &'a [u8],
    /// The directory's path in the tree, for notices.
    tree_dir: &'a [u8],
}

impl Place<'_> {
    fn shown(&self) -> PathBuf {
        self.source.join(OsStr::from_bytes(&joined(self.dir, self.source_name)))
    }

    fn tree_path(&self) -> PathBuf {
        OsStr::from_bytes(&joined(self.tree_dir, self.name)).into()
    }

    fn refused(&self, source: TreeError) -> ScanError {
        ScanError::Place { path: self.shown(), source }
    }
}

impl<'a> Builder<'a> {
    fn new(options: &'a ScanOptions) -> Self {
        let tree = Tree::new(Metadata::with_mode(0o755));
        let scan = Scan { tree, notices: Vec::new(), bytes: 0, files: 0, fingerprint: None };
        let (linked, sources, parents) = Default::default();
        Self { options, scan, linked, sources, parents, holds: false }
    }

    fn finish(mut self) -> Scan {
        compiled::keep_times(&mut self.scan.tree, &self.sources);
        self.scan
    }

    fn output(&mut self, output: &Output) -> Result<(), ScanError> {
        let place = output.tree_path.as_os_str().as_bytes();
        if place.split(|&b| b == b'/').any(|part| part == b"..") {
            return Err(ScanError::Escape(output.tree_path.clone()));
        }
        let place = normal(place);
        let placed = |source| ScanError::Place { path: output.source.clone(), source };
        let Parent { dir, path, name: source_name } = open_parent(&output.source)?;
        let root = match self.parents.get(path) {
            Some(root) if source_name.is_some() => Arc::clone(root),
            _ if self.holds => Arc::new(Root::held(dir)),
            _ => {
                let root = Arc::new(Root::named(&dir, path).map_err(io_error("inspect", path))?);
                self.parents.insert(path.to_owned(), Arc::clone(&root));
                root
            }
        };
        // A directory: its content goes to `place`.
        let Some(source_name) = source_name.map(OsStr::as_bytes) else {
            let node = self.scan.tree.make_directories(&place).map_err(placed)?;
            let listings = list::list(&root, self.options.jobs());
            let listings = listings.map_err(|failure| failure.below(&output.source))?;
            return self.directory(&root, &output.source, listings, node, place);
        };
        let (above, name) = match place.iter().rposition(|&b| b == b'/') {
            Some(at) => (&place[..at], &place[at + 1..]),
            None => (&[][..], &*place),
        };
        let source = output.source.parent().unwrap_or(Path::new(""));
        let found = list::inspect(&root, source_name).and_then(|stat| {
            let details = details::of_entry(&root, source_name, &stat)?;
            let cache = self.options.cache.as_deref();
            let known = cache.and_then(|cache| cache.find(&stat.identity.to_bytes()));
            Ok(Entry { name: source_name.into(), stat, details, known, below: None })
        });
        let entry = found.map_err(|failure| failure.below(source))?;
        let parent = self.scan.tree.make_directories(above).map_err(placed)?;
        let (root, dir, tree_dir) = (&root, &Arc::default(), above);
        let place = Place { root, source, dir, source_name, parent, name, tree_dir };
        self.entry(&place, entry).map(drop)
    }

    /// Everything in a directory, which becomes `node`.
    fn directory(
        &mut self,
        root: &Arc<Root>,
        source: &Path,
        mut listings: list::Listings,
        node: NodeId,
        tree_path: Vec<u8>,
    ) -> Result<(), ScanError> {
        let failed = |failure: Failure| failure.below(source);
        let (known, jobs) = (self.options.cache.as_deref(), self.options.jobs());
        details::complete(&mut listings, root, known, jobs).map_err(failed)?;
        let (dir, name, tree_dir) = (&Arc::default(), &b""[..], &*tree_path);
        let place = Place { root, source, dir, source_name: name, parent: node, name, tree_dir };
        let details = details::of_entry(root, b".", &listings.root).map_err(failed)?;
        *self.scan.tree.metadata_mut(node) = self.metadata(&place, &listings.root, details);
        let mut stack = vec![(0, node, tree_path)];
        while let Some((index, parent, tree_path)) = stack.pop() {
            let listing = std::mem::take(&mut listings.all[index]);
            let (dir, tree_dir) = (&Arc::clone(&listing.path), &*tree_path);
            for mut entry in listing.into_entries() {
                let (name, below) = (std::mem::take(&mut entry.name), entry.below);
                let (source_name, name) = (&*name, &*name);
                let place = Place { root, source, dir, source_name, parent, name, tree_dir };
                let node = self.entry(&place, entry)?;
                stack.extend(below.map(|below| (below, node, joined(tree_dir, name))));
            }
        }
        Ok(())
    }

    /// Adds one entry.
    fn entry(&mut self, place: &Place<'_>, entry: Entry) -> Result<NodeId, ScanError> {
        let identity = entry.stat.identity;
        let (links, names) = ((identity.dev, identity.ino), entry.stat.nlink);
        let kind = match entry.stat.kind() {
            FileType::Directory => return self.subdirectory(place, entry),
            _ if names > 1 && self.linked.contains_key(&links) => {
                let node = self.linked[&links];
                let linked = self.scan.tree.link(place.parent, place.name, node);
                return linked.map(|()| node).map_err(|source| place.refused(source));
            }
            FileType::RegularFile => {
                self.scan.bytes += identity.size;
                self.scan.files += 1;
                NodeKind::File(Box::new(self.file(place, &entry)))
            }
            FileType::Symlink => NodeKind::Symlink(entry.details.target.clone()),
            FileType::BlockDevice => NodeKind::BlockDevice(device(entry.stat.rdev)),
            FileType::CharacterDevice => NodeKind::CharDevice(device(entry.stat.rdev)),
            FileType::Fifo => NodeKind::Fifo,
            FileType::Socket => NodeKind::Socket,
            FileType::Unknown => {
                let (action, path) = ("tell the kind of", place.shown());
                let source = io::ErrorKind::Unsupported.into();
                return Err(ScanError::Io { action, path, source });
            }
        };
        let metadata = self.metadata(place, &entry.stat, entry.details);
        let node = self.scan.tree.insert(place.parent, place.name, Node { metadata, kind });
        let node = node.map_err(|source| place.refused(source))?;
        if names > 1 {
            self.linked.insert(links, node);
        }
        if let Ok(mtime) = u32::try_from(identity.mtime.0)
            && mtime > self.options.mtime
            && place.name.ends_with(b".py")
        {
            self.sources.insert(node, compiled::Source { mtime, size: identity.size as u32 });
        }
        Ok(node)
    }

    /// Two directories at one place are merged, the later one's mode counts.
    fn subdirectory(&mut self, place: &Place<'_>, entry: Entry) -> Result<NodeId, ScanError> {
        let metadata = self.metadata(place, &entry.stat, entry.details);
        let tree = &mut self.scan.tree;
        if let Some(node) = tree.child(place.parent, place.name)
            && matches!(tree.node(node).kind, NodeKind::Directory)
        {
            *tree.metadata_mut(node) = metadata;
            return Ok(node);
        }
        let node = Node { metadata, kind: NodeKind::Directory };
        tree.insert(place.parent, place.name, node).map_err(|source| place.refused(source))
    }

    fn file(&self, place: &Place<'_>, entry: &Entry) -> ScannedFile {
        let identity = entry.stat.identity;
        let cache = self.options.cache.as_deref();
        let known = cache.zip(entry.known).and_then(|(cache, at)| cache.digest(at));
        ScannedFile {
            root: Arc::clone(place.root),
            dir: Arc::clone(place.dir),
            name: place.source_name.into(),
            identity,
            sparse: entry.stat.blocks.saturating_mul(512) < identity.size,
            digest: known.map_or_else(OnceLock::new, OnceLock::from),
        }
    }

    fn metadata(&mut self, place: &Place<'_>, stat: &Inspected, details: Details) -> Metadata {
        let (mode, xattrs) = self.kept(stat.mode, details.xattrs, place);
        let (uid, gid) = self.options.owner.unwrap_or((stat.uid, stat.gid));
        let mtime = self.time(stat.identity.mtime.0, place);
        Metadata { mode: self.options.modes.of(mode), uid, gid, mtime, xattrs }
    }

    /// The mode and the attributes that the image can hold.
    fn kept(
        &mut self,
        mut mode: u32,
        mut xattrs: Vec<Attribute>,
        place: &Place<'_>,
    ) -> (u32, Vec<Attribute>) {
        xattrs.retain(|xattr| match Change::of_attribute(&xattr.name) {
            None => true,
            Some(change) => {
                if change == Change::AccessControlList
                    && let Some(group) = attributes::group_permissions(&xattr.value)
                {
                    mode = mode & !0o070 | group << 3;
                }
                self.notice(place, change);
                false
            }
        });
        (mode, xattrs)
    }

    fn time(&mut self, mtime: i64, place: &Place<'_>) -> u32 {
        if mtime < 0 && self.options.mtime > 0 {
            self.notice(place, Change::TimeBeforeEpoch);
        }
        mtime.clamp(0, self.options.mtime.into()) as u32
    }

    fn notice(&mut self, place: &Place<'_>, change: Change) {
        let once = matches!(change, Change::HostAttribute(_));
        if once && self.scan.notices.iter().any(|notice| notice.change == change) {
            return;
        }
        self.scan.notices.push(Notice { path: place.tree_path(), change });
    }
}

impl Failure {
    fn below(self, root: &Path) -> ScanError {
        let path = root.join(OsStr::from_bytes(&self.path));
        ScanError::Io { action: self.action, path, source: self.source.into() }
    }
}

/// A directory of the input, or the one that something else lies in.
struct Parent<'s> {
    dir: OwnedFd,
    path: &'s Path,
    /// What lies in it; `None`: the directory itself is meant.
    name: Option<&'s OsStr>,
}

fn open_parent(source: &Path) -> Result<Parent<'_>, ScanError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let whole = rustix::fs::lstat(source).map_err(io_error("inspect", source))?;
    let trailing = source.as_os_str().as_bytes().ends_with(b"/");
    let kind = FileType::from_raw_mode(whole.st_mode);
    let itself = kind == FileType::Directory || trailing || source.file_name().is_none();
    let path = match source.parent() {
        _ if itself => source,
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(io_error("open", path))?;
    Ok(Parent { dir, path, name: source.file_name().filter(|_| !itself) })
}

/// Linux's 32-bit encoding, which the format uses.
fn device(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(path.len() + 1 + name.len());
    whole.extend_from_slice(path);
    if !path.is_empty() && !name.is_empty() {
        whole.push(b'/');
    }
    whole.extend_from_slice(name);
    whole
}

/// Without empty and `.` components.
fn normal(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.collect::<Vec<_>>().join(&b'/')
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(rustix::io::Errno) -> ScanError {
    move |source| ScanError::Io { action, path: path.to_owned(), source: source.into() }
}
