//! What the launcher needs to know about the host and the tree: read here, so that planning is pure.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet as Held, capabilities};

use crate::cgroup::Layout;
use crate::ids::{Caller, parse_map};
use crate::plan::mounted_names;
use crate::rooted::open_in;
use crate::spec::{Root, Spec};

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
    /// The host has its POSIX message queues mounted at `/dev/mqueue`.
    pub message_queues: bool,
    /// Text of the job's `etc/passwd`; empty if there is none.
    pub passwd: String,
    /// Text of the job's `etc/group`; empty if there is none.
    pub group: String,
    /// The host's cgroups.
    pub cgroups: Layout,
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
        let cgroups = Layout::parse(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
        let message_queues = Path::new("/dev/mqueue").is_dir();
        Ok(Self { caller, message_queues, cgroups, ..Self::default() })
    }

    /// The same with what depends on the tree.
    pub(crate) fn with_tree(self, spec: &Spec) -> Result<Self, FactsError> {
        let (users, root_entries, resolv_conf) = match &spec.root {
            Root::Tree(tree) if is_sparse(tree, spec)? => {
                (tree.as_path(), root_entries(tree)?, None)
            }
            Root::Tree(tree) => (tree.as_path(), Vec::new(), None),
            Root::Host { .. } => {
                (Path::new("/"), root_entries(Path::new("/"))?, linked_resolv_conf())
            }
        };
        let passwd = read_in(users, "etc/passwd")?;
        let group = read_in(users, "etc/group")?;
        Ok(Self { root_entries, resolv_conf, passwd, group, ..self })
    }
}

/// Reads a file of a tree; links in the tree can't lead out of it. Empty if there is no such file.
pub(crate) fn read_in(tree: &Path, file: &str) -> Result<String, FactsError> {
    let error =
        |source: rustix::io::Errno| FactsError { path: tree.join(file), source: source.into() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(tree, flags, Mode::empty())
        .map_err(|source| FactsError { path: tree.to_owned(), source: source.into() })?;
    // Not to block on a FIFO, which an image may well put there.
    match open_in(root, file.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
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
