//! What the launcher needs to know about the host and the tree: read here, so that planning is pure.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet as Held, capabilities};

use crate::cgroup::Layout;
use crate::closed::OwnNetwork;
use crate::hidden;
use crate::ids::{Caller, parse_map};
use crate::plan::mounted_names;
use crate::rooted::open_in;
use crate::spec::{Mount, Network, Root, Spec};
use crate::view::{HostView, Shown, shown};

/// Facts about the host, the caller and the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Who launches.
    pub caller: Caller,
    /// Entries of the directory from which the job's root is put together: the host's root for [`Root::Host`]; the tree,
    /// where that is read-only and lacks a directory that something has to be mounted on; otherwise none.
    pub root_entries: Vec<RootEntry>,
    /// The host's `/etc/resolv.conf`, if that is a link into a directory which the job gets afresh.
    pub resolv_conf: Option<(PathBuf, String)>,
    /// What the job sees of the host, for [`crate::HostView::Paths`].
    pub shown: Vec<Shown>,
    /// Where the sources of volumes really are, for those that are there.
    pub sources: BTreeMap<PathBuf, PathBuf>,
    /// Every path of what no job may see.
    pub hidden: Vec<PathBuf>,
    /// Where volumes may come from nevertheless.
    pub not_hidden: Vec<PathBuf>,
    /// Where the host mounts something when it is asked for.
    pub automounts: Vec<PathBuf>,
    /// The host has its POSIX message queues mounted at `/dev/mqueue`.
    pub message_queues: bool,
    /// What a job with a private network is kept off.
    pub own_network: OwnNetwork,
    /// Text of the job's `etc/passwd`; empty if there is none.
    pub passwd: String,
    /// Text of the job's `etc/group`; empty if there is none.
    pub group: String,
    /// The host's cgroups.
    pub cgroups: Layout,
    /// The host's mounts, as the kernel tells them.
    pub mountinfo: String,
}

/// An entry of a root directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootEntry {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry of a root directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory or a file, to be bound.
    Bind,
    /// A symbolic link, to be copied.
    Symlink(PathBuf),
}

/// A fact could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", .path.display())]
pub struct FactsError {
    /// Of what.
    pub path: PathBuf,
    /// The reason.
    pub source: io::Error,
}

fn read(path: &str) -> Result<String, FactsError> {
    fs::read_to_string(path).map_err(|source| FactsError { path: path.into(), source })
}

impl HostFacts {
    /// Reads what launching this job needs.
    ///
    /// # Errors
    /// `/proc` or the tree can't be read.
    pub fn read(spec: &Spec) -> Result<Self, FactsError> {
        Self::of_host()?.with_tree(spec)
    }

    /// What doesn't depend on the job's tree.
    pub(crate) fn of_host() -> Result<Self, FactsError> {
        let held = capabilities(None).map(|sets| sets.effective).unwrap_or(Held::empty());
        let caller = Caller {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            maps_freely: held.contains(Held::SETUID | Held::SETGID),
            uid_map: parse_map(&read("/proc/self/uid_map")?),
            gid_map: parse_map(&read("/proc/self/gid_map")?),
        };
        let mountinfo = read("/proc/self/mountinfo")?;
        let cgroups = Layout::parse(&read("/proc/self/cgroup")?, &mountinfo);
        let message_queues = Path::new("/dev/mqueue").is_dir();
        Ok(Self { caller, message_queues, cgroups, mountinfo, ..Self::default() })
    }

    /// The same with what depends on the job.
    pub(crate) fn with_tree(mut self, spec: &Spec) -> Result<Self, FactsError> {
        let users = match &spec.root {
            Root::Tree(tree) => {
                if is_sparse(tree, spec)? {
                    self.root_entries = root_entries(tree)?;
                }
                tree.as_path()
            }
            Root::Host { view: HostView::Whole, .. } => {
                self.root_entries = root_entries(Path::new("/"))?;
                self.resolv_conf = linked_resolv_conf();
                Path::new("/")
            }
            Root::Host { view: HostView::Paths(paths), .. } => {
                let error = |source| FactsError { path: "/".into(), source };
                self.shown = shown(paths).map_err(error)?;
                Path::new("/")
            }
        };
        if spec.namespaces.network == Network::Private && !spec.host {
            self.own_network = OwnNetwork::read();
        }
        self.passwd = account_file(users, "etc/passwd", spec)?;
        self.group = account_file(users, "etc/group", spec)?;
        for mount in &spec.mounts {
            if let Mount::Bind { source, .. } = mount
                && let Ok(real) = fs::canonicalize(source)
            {
                self.sources.insert(source.clone(), real);
            }
        }
        if matches!(spec.root, Root::Host { .. }) || !self.sources.is_empty() {
            self.look_at_mounts(spec);
        }
        Ok(self)
    }

    fn look_at_mounts(&mut self, spec: &Spec) {
        let mounts = hidden::mounts(&self.mountinfo);
        self.automounts = hidden::automounts(&mounts);
        let real = |path: &PathBuf| fs::canonicalize(path).ok();
        self.not_hidden = spec.hidden.but.iter().filter_map(real).collect();
        for folder in spec.hidden.folders.iter().filter_map(|path| fs::canonicalize(path).ok()) {
            for path in hidden::paths_of(&folder, &mounts) {
                if !self.hidden.contains(&path) {
                    self.hidden.push(path);
                }
            }
        }
    }

    /// Does the host mount something below this path when it is asked for? Then it has to appear in jobs, too.
    pub(crate) fn mounts_on_demand(&self, path: &Path) -> bool {
        self.automounts.iter().any(|point| point.starts_with(path))
    }
}

/// The text of a file of accounts as the job will see it: of the tree, unless something is mounted over it.
fn account_file(tree: &Path, file: &str, spec: &Spec) -> Result<String, FactsError> {
    let full = Path::new("/").join(file);
    let covers = |mount: &&Mount| full.starts_with(mount.target());
    match spec.mounts.iter().rev().find(covers) {
        None => read_in(tree, file),
        Some(Mount::Tmpfs { .. }) => Ok(String::new()),
        Some(Mount::Bind { source, target, .. }) => {
            match (full.strip_prefix(target), source.parent(), source.file_name()) {
                (Ok(below), _, _) if !below.as_os_str().is_empty() => read_in(source, below),
                // The file itself.
                (_, Some(parent), Some(name)) => read_in(parent, Path::new(name)),
                _ => Ok(String::new()),
            }
        }
    }
}

/// Reads a file of a tree; links in the tree can't lead out of it. Empty if there is no such file.
pub(crate) fn read_in(tree: &Path, file: impl AsRef<Path>) -> Result<String, FactsError> {
    let file = file.as_ref();
    let error =
        |source: rustix::io::Errno| FactsError { path: tree.join(file), source: source.into() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(tree, flags, Mode::empty())
        .map_err(|source| FactsError { path: tree.to_owned(), source: source.into() })?;
    // Not to block on a FIFO, which an image may well put there.
    match open_in(root, file, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
        Ok(fd) => {
            let mut text = Vec::new();
            // A passwd file of more than a few megabytes is somebody's joke.
            let mut file = io::Read::take(fs::File::from(fd), 4 << 20);
            io::Read::read_to_end(&mut file, &mut text)
                .map_err(|source| FactsError { path: tree.to_owned(), source })?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            Ok(String::new())
        }
        Err(source) => Err(error(source)),
    }
}

/// Is the tree read-only without a directory for everything that is to be mounted?
fn is_sparse(tree: &Path, spec: &Spec) -> Result<bool, FactsError> {
    let error =
        |source: rustix::io::Errno| FactsError { path: tree.to_owned(), source: source.into() };
    let flags = rustix::fs::statvfs(tree).map_err(error)?.f_flag;
    let missing = |name: &std::ffi::OsStr| tree.join(name).symlink_metadata().is_err();
    Ok(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY)
        && mounted_names(spec).into_iter().any(missing))
}

fn root_entries(directory: &Path) -> Result<Vec<RootEntry>, FactsError> {
    let error = |source| FactsError { path: directory.to_owned(), source };
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).map_err(error)? {
        let entry = entry.map_err(error)?;
        let kind = if entry.file_type().map_err(error)?.is_symlink() {
            EntryKind::Symlink(fs::read_link(entry.path()).map_err(error)?)
        } else {
            EntryKind::Bind
        };
        entries.push(RootEntry { name: entry.file_name(), kind });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn linked_resolv_conf() -> Option<(PathBuf, String)> {
    let target = fs::canonicalize("/etc/resolv.conf").ok()?;
    let fresh = ["/run", "/tmp"].iter().any(|dir| target.starts_with(dir));
    let content = fs::read_to_string(&target).ok()?;
    fresh.then_some((target, content))
}
