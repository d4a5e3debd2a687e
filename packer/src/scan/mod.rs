//! From directories and build outputs to the tree of an image.
//!
//! Every entry is found relative to a directory that is held open (no symlink is ever followed),
//! in byte order, with its mode, extended attributes, hard links and device numbers. What an
//! image cannot hold is an error that names the entry; what is changed on purpose (times,
//! host-specific labels) is a [`Notice`].

mod attributes;
mod content;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use mica_squashfs::write::{Attribute, Metadata, Node, NodeId, NodeKind, Tree, TreeError};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use attributes::AttributeReader;
use content::{Identity, Root, ScannedFile};

/// What the image says about owners and times, instead of what the machine says.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Owner and group of everything; `None` keeps those of the input.
    pub owner: Option<(u32, u32)>,
    /// Later modification times become this one (`SOURCE_DATE_EPOCH`).
    pub mtime: u32,
    /// Which permission bits count.
    pub modes: Modes,
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
    fn of(self, stat: &Stat) -> u16 {
        match (self, FileType::from_raw_mode(stat.st_mode)) {
            (Self::Executable, FileType::RegularFile) if stat.st_mode & 0o111 == 0 => 0o644,
            (Self::Executable, FileType::RegularFile | FileType::Directory) => 0o755,
            _ => (stat.st_mode & 0o7777) as u16,
        }
    }
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self { owner: Some((0, 0)), mtime: 0, modes: Modes::Keep }
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

/// Something the image does not say as the input does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The entry, relative to the layer's root.
    pub path: PathBuf,
    /// What was done to it.
    pub change: Change,
}

/// What a [`Notice`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A time before 1970 became 1970: the format has none earlier.
    TimeBeforeEpoch,
    /// A SELinux label was left out: it belongs to the host's policy, not to the content.
    SelinuxLabel,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = match self.change {
            Change::TimeBeforeEpoch => "a time before 1970 becomes 1970",
            Change::SelinuxLabel => "the host's SELinux label is left out",
        };
        write!(f, "{}: {change}", self.path.display())
    }
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
    /// The format has no place for this extended attribute.
    #[error("{} has the extended attribute {name}, which squashfs cannot hold", path.display())]
    Attribute {
        /// The entry.
        path: PathBuf,
        /// The attribute.
        name: String,
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
    scan_outputs(&[output], options)
}

/// Scans outputs, each at its place in the layer; missing parents are made with mode 0755.
pub fn scan_outputs(outputs: &[Output], options: &ScanOptions) -> Result<Scan, ScanError> {
    let mut scanner = Scanner::new(options);
    for output in outputs {
        scanner.output(output)?;
    }
    Ok(scanner.scan)
}

/// A directory whose entries are still to be read.
struct Pending {
    root: Arc<Root>,
    /// Below `root`.
    path: Vec<u8>,
    node: NodeId,
    /// `root` itself, for messages.
    source: Arc<Path>,
}

impl Pending {
    fn shown(&self, name: &[u8]) -> PathBuf {
        self.source.join(OsStr::from_bytes(&joined(&self.path, name)))
    }
}

struct Scanner<'a> {
    options: &'a ScanOptions,
    scan: Scan,
    attributes: AttributeReader,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
    started: SystemTime,
}

impl<'a> Scanner<'a> {
    fn new(options: &'a ScanOptions) -> Self {
        let tree = Tree::new(Metadata::with_mode(0o755));
        let scan = Scan { tree, notices: Vec::new(), bytes: 0, files: 0 };
        Self {
            options,
            scan,
            attributes: AttributeReader::new(),
            linked: HashMap::new(),
            started: SystemTime::now(),
        }
    }

    fn output(&mut self, output: &Output) -> Result<(), ScanError> {
        let place = output.tree_path.as_os_str().as_bytes();
        if place.split(|&b| b == b'/').any(|part| part == b"..") {
            return Err(ScanError::Escape(output.tree_path.clone()));
        }
        let place = normal(place);
        let (above, name) = match place.iter().rposition(|&b| b == b'/') {
            Some(at) => (&place[..at], &place[at + 1..]),
            None => (&[][..], &*place),
        };
        let placed = |source| ScanError::Place { path: output.source.clone(), source };
        let parent = self.scan.tree.make_directories(above).map_err(placed)?;
        let (root, source_name) = open_parent(&output.source)?;
        let source: Arc<Path> = match source_name {
            Some(_) => output.source.parent().unwrap_or(Path::new("")).into(),
            None => output.source.as_path().into(),
        };
        let mut stack = Vec::new();
        let pending = Pending { root: Arc::new(root), path: Vec::new(), node: parent, source };
        match source_name {
            // A directory: its content goes to `place`.
            None => {
                let node = self.scan.tree.make_directories(&place).map_err(placed)?;
                let stat = rustix::fs::fstat(&pending.root.fd)
                    .map_err(io_error("inspect", &output.source))?;
                let metadata = self.metadata(&pending, b"", &stat, &place)?;
                *self.scan.tree.metadata_mut(node) = metadata;
                stack.push((Pending { node, ..pending }, place));
            }
            Some(source_name) => {
                let fd = &pending.root.fd;
                let stat = rustix::fs::statat(fd, source_name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(io_error("inspect", &output.source))?;
                let dir =
                    rustix::fs::openat(fd, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                        .map_err(io_error("open", &output.source))?;
                self.entry(&pending, &dir, source_name.as_bytes(), name, above, &stat)?;
            }
        }
        while let Some((pending, tree_path)) = stack.pop() {
            self.directory(pending, &tree_path, &mut stack)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        pending: Pending,
        tree_path: &[u8],
        stack: &mut Vec<(Pending, Vec<u8>)>,
    ) -> Result<(), ScanError> {
        let shown = || pending.shown(b"");
        let failed = |action| move |source: rustix::io::Errno| (action, source);
        let opened = pending
            .root
            .open(&pending.path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(failed("open"))
            .and_then(|fd| {
                let names = entry_names(&fd).map_err(failed("list"))?;
                Ok((fd, names))
            });
        let (fd, names) = opened.map_err(|(action, source)| ScanError::Io {
            action,
            path: shown(),
            source: source.into(),
        })?;
        for name in names {
            let stat = rustix::fs::statat(&fd, &*name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| io_error("inspect", &pending.shown(&name))(e))?;
            let Some(node) = self.entry(&pending, &fd, &name, &name, tree_path, &stat)? else {
                continue;
            };
            let below = Pending {
                root: Arc::clone(&pending.root),
                path: joined(&pending.path, &name),
                node,
                source: Arc::clone(&pending.source),
            };
            stack.push((below, joined(tree_path, &name)));
        }
        Ok(())
    }

    /// Adds one entry; returns its node if it is a directory that is still to be read.
    fn entry(
        &mut self,
        parent: &Pending,
        dir: &rustix::fd::OwnedFd,
        name: &[u8],
        tree_name: &[u8],
        tree_dir: &[u8],
        stat: &Stat,
    ) -> Result<Option<NodeId>, ScanError> {
        let shown = || parent.shown(name);
        let placed = |source| ScanError::Place { path: shown(), source };
        let kind_of = FileType::from_raw_mode(stat.st_mode);
        let identity = Identity::of(stat);
        let tree_path = joined(tree_dir, tree_name);
        // Two directories at one place are merged, the later one's mode counts.
        if kind_of == FileType::Directory {
            let metadata = self.metadata_at(dir, name, shown, stat, &tree_path)?;
            if let Some(node) = self.scan.tree.child(parent.node, tree_name)
                && matches!(self.scan.tree.node(node).kind, NodeKind::Directory)
            {
                *self.scan.tree.metadata_mut(node) = metadata;
                return Ok(Some(node));
            }
            let node = Node { metadata, kind: NodeKind::Directory };
            return self.scan.tree.insert(parent.node, tree_name, node).map(Some).map_err(placed);
        }
        let links = (identity.dev, identity.ino);
        if stat.st_nlink > 1
            && let Some(&node) = self.linked.get(&links)
        {
            self.scan.tree.link(parent.node, tree_name, node).map_err(placed)?;
            return Ok(None);
        }
        let kind = match kind_of {
            FileType::RegularFile => NodeKind::File(Box::new(ScannedFile {
                root: Arc::clone(&parent.root),
                path: joined(&parent.path, name).into(),
                identity,
                scanned: self.started,
                sparse: (stat.st_blocks as u64).saturating_mul(512) < identity.size,
            })),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new());
                let target = target.map_err(|e| io_error("read", &shown())(e))?;
                NodeKind::Symlink(target.into_bytes())
            }
            FileType::BlockDevice => NodeKind::BlockDevice(device(stat)),
            FileType::CharacterDevice => NodeKind::CharDevice(device(stat)),
            FileType::Fifo => NodeKind::Fifo,
            FileType::Socket => NodeKind::Socket,
            _ => {
                let source = io::Error::from(io::ErrorKind::Unsupported);
                return Err(ScanError::Io { action: "tell the kind of", path: shown(), source });
            }
        };
        if kind_of == FileType::RegularFile {
            self.scan.bytes += identity.size;
            self.scan.files += 1;
        }
        let metadata = self.metadata_at(dir, name, shown, stat, &tree_path)?;
        let node = self.scan.tree.insert(parent.node, tree_name, Node { metadata, kind });
        let node = node.map_err(placed)?;
        if stat.st_nlink > 1 {
            self.linked.insert(links, node);
        }
        Ok(None)
    }

    fn metadata(
        &mut self,
        pending: &Pending,
        name: &[u8],
        stat: &Stat,
        tree_path: &[u8],
    ) -> Result<Metadata, ScanError> {
        let dir = pending
            .root
            .open(&pending.path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| io_error("open", &pending.shown(b""))(e))?;
        let name = if name.is_empty() { b"." } else { name };
        self.metadata_at(&dir, name, || pending.shown(b""), stat, tree_path)
    }

    fn metadata_at(
        &mut self,
        dir: &rustix::fd::OwnedFd,
        name: &[u8],
        shown: impl Fn() -> PathBuf,
        stat: &Stat,
        tree_path: &[u8],
    ) -> Result<Metadata, ScanError> {
        use std::os::fd::AsFd;
        let xattrs = self.attributes.read(dir.as_fd(), name);
        let xattrs =
            xattrs.map_err(|e| io_error("read the extended attributes of", &shown())(e))?;
        let xattrs = self.kept(xattrs, &shown, tree_path)?;
        let (uid, gid) = self.options.owner.unwrap_or((stat.st_uid, stat.st_gid));
        let mtime = self.time(stat.st_mtime, tree_path);
        let mode = self.options.modes.of(stat);
        Ok(Metadata { mode, uid, gid, mtime, xattrs })
    }

    fn kept(
        &mut self,
        mut xattrs: Vec<Attribute>,
        shown: &impl Fn() -> PathBuf,
        tree_path: &[u8],
    ) -> Result<Vec<Attribute>, ScanError> {
        let before = xattrs.len();
        xattrs.retain(|xattr| xattr.name != b"security.selinux");
        if xattrs.len() < before {
            self.notice(tree_path, Change::SelinuxLabel);
        }
        let known = [&b"user."[..], b"trusted.", b"security."];
        match xattrs.iter().find(|xattr| !known.iter().any(|known| xattr.name.starts_with(known))) {
            Some(xattr) => Err(ScanError::Attribute {
                path: shown(),
                name: String::from_utf8_lossy(&xattr.name).into_owned(),
            }),
            None => Ok(xattrs),
        }
    }

    fn time(&mut self, mtime: i64, tree_path: &[u8]) -> u32 {
        if mtime < 0 && self.options.mtime > 0 {
            self.notice(tree_path, Change::TimeBeforeEpoch);
        }
        mtime.clamp(0, self.options.mtime.into()) as u32
    }

    fn notice(&mut self, tree_path: &[u8], change: Change) {
        let path = OsStr::from_bytes(tree_path).into();
        self.scan.notices.push(Notice { path, change });
    }
}

/// Opens a directory itself (no name returned), or the directory something else lies in.
fn open_parent(source: &Path) -> Result<(Root, Option<&OsStr>), ScanError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let whole = rustix::fs::lstat(source).map_err(io_error("inspect", source))?;
    let trailing = source.as_os_str().as_bytes().ends_with(b"/");
    let kind = FileType::from_raw_mode(whole.st_mode);
    if kind == FileType::Directory || trailing || source.file_name().is_none() {
        let fd =
            rustix::fs::open(source, flags, Mode::empty()).map_err(io_error("open", source))?;
        return Ok((Root { fd }, None));
    }
    let parent = match source.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let fd = rustix::fs::open(parent, flags, Mode::empty()).map_err(io_error("open", parent))?;
    Ok((Root { fd }, source.file_name()))
}

fn entry_names(dir: &rustix::fd::OwnedFd) -> rustix::io::Result<Vec<Box<[u8]>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Linux's 32-bit encoding, which the format uses.
fn device(stat: &Stat) -> u32 {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
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
