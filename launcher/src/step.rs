//! The steps by which a job's surroundings are built, as data: printed by a dry run, compared by tests, carried out by the init.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::cdi::Hook;
use crate::os;
use crate::spec::IdMapping;

/// One step of the init, in the namespaces of the job. Targets are paths in the job's root, and links in them never lead out of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Start a cgroup namespace at the group the job is in.
    CgroupNamespace,
    /// Set the host name.
    Hostname(String),
    /// Bring the loopback interface up.
    Loopback,
    /// Set the packet filter of the job's own network.
    Filter {
        /// `nft`, on the host.
        #[serde(with = "os")]
        program: PathBuf,
        /// What it is told.
        rules: String,
    },
    /// Let everybody in the job send echo requests (`ping`) from the job's own network.
    Ping {
        /// The group whose number outside is the lowest.
        first: u32,
        /// The one whose number outside is the highest.
        last: u32,
    },
    /// Give the interface that leads to the bridge its addresses, and bring it up.
    Addresses(
        /// With the length of the network's prefix, and where everything else is found.
        Vec<(IpNet, Option<IpAddr>)>,
    ),
    /// Stop mounts from travelling between the job and the host.
    PrivateMounts,
    /// Take this directory as the new root.
    Root {
        /// The directory.
        #[serde(with = "os")]
        tree: PathBuf,
        /// Where it is attached meanwhile.
        #[serde(with = "os")]
        at: PathBuf,
        /// Device nodes in it have no effect.
        no_devices: bool,
    },
    /// Take an empty memory file system as the new root, put together at this directory.
    EmptyRoot {
        /// Where it is attached meanwhile.
        #[serde(with = "os")]
        at: PathBuf,
    },
    /// Make a symbolic link.
    Symlink {
        /// In the job.
        #[serde(with = "os")]
        target: PathBuf,
        /// What it holds.
        #[serde(with = "os")]
        to: PathBuf,
    },
    /// Make a file or directory of the host appear in the job.
    Bind {
        /// On the host.
        #[serde(with = "os")]
        source: PathBuf,
        /// In the job; made if it is missing.
        #[serde(with = "os")]
        target: PathBuf,
        /// How it is mounted.
        flags: Flags,
        /// The mounts within come along.
        recursive: bool,
        /// Mounts made later on the host appear in the job.
        follow: bool,
        /// The path has no links in it: should one be there now, somebody has put it there meanwhile.
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        exact: bool,
        /// Its files have other owners in the job; the launcher hands over such a mount.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        ids: Option<IdMapping>,
    },
    /// Mount a file system of the kernel's.
    Filesystem {
        /// Its type.
        kind: String,
        /// In the job; made if it is missing.
        #[serde(with = "os")]
        target: PathBuf,
        /// How it is mounted.
        flags: Flags,
        /// Its own options.
        options: Vec<(String, String)>,
    },
    /// Mount the kernel's device tree: a fresh one where the kernel allows it, otherwise the host's. Read-only unless `writable`.
    Sysfs {
        /// Mount a fresh one, which shows the job's own network; otherwise bind the host's.
        fresh: bool,
        /// May be written.
        writable: bool,
    },
    /// Write a small file and mount it over a path of the job, which can read it.
    File {
        /// In the job; made if it is missing and the root can be written.
        #[serde(with = "os")]
        target: PathBuf,
        /// What it holds.
        content: String,
        /// Permission bits.
        mode: u32,
    },
    /// Hide a path, if it exists.
    Mask(#[serde(with = "os")] PathBuf),
    /// Make a path read-only with all below it, if it exists.
    ReadOnly(#[serde(with = "os")] PathBuf),
    /// Run programs of the host's on the new root.
    Hooks(Vec<Hook>),
    /// Make the root itself read-only; what is mounted in it stays as it is.
    ReadOnlyRoot,
    /// Make the new root `/` and let go of the host's.
    Pivot,
    /// Let nobody in the job take off or change what is mounted now, whatever capabilities it has.
    Lock,
}

/// How something is mounted. All false: writable, with programs and set-user-ID bits and devices in effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flags {
    /// Can't be written.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Set-user-ID bits have no effect.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_suid: bool,
    /// Device nodes have no effect.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_devices: bool,
    /// Programs can't be executed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_exec: bool,
}

impl Flags {
    /// Nothing on it is trusted, but programs run.
    pub(crate) const DATA: Self =
        Self { read_only: false, no_suid: true, no_devices: true, no_exec: false };
    /// Nothing but data.
    pub(crate) const STRICT: Self = Self { no_exec: true, ..Self::DATA };

    pub(crate) fn read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.read_only { "ro" } else { "rw" })?;
        for (set, name) in
            [(self.no_suid, "nosuid"), (self.no_devices, "nodev"), (self.no_exec, "noexec")]
        {
            if set {
                write!(f, ",{name}")?;
            }
        }
        Ok(())
    }
}

impl Step {
    /// The path in the job that the step is about.
    pub fn target(&self) -> Option<&Path> {
        match self {
            Self::Symlink { target, .. }
            | Self::Bind { target, .. }
            | Self::Filesystem { target, .. }
            | Self::File { target, .. }
            | Self::Mask(target)
            | Self::ReadOnly(target) => Some(target),
            Self::Sysfs { .. } => Some(Path::new("/sys")),
            _ => None,
        }
    }
}

/// The step as a person would say it, after "cannot".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CgroupNamespace => write!(f, "make a cgroup namespace"),
            Self::Hostname(name) => write!(f, "set the host name {name}"),
            Self::Loopback => write!(f, "bring the loopback interface up"),
            Self::Filter { .. } => write!(f, "set the packet filter of the job's network"),
            Self::Ping { first, last } => write!(f, "let groups {first} to {last} ping"),
            Self::Addresses(addresses) => {
                let words: Vec<_> = addresses.iter().map(|(net, _)| net.to_string()).collect();
                write!(f, "take the address {}", words.join(" and "))
            }
            Self::PrivateMounts => write!(f, "make mounts private"),
            Self::Root { tree, .. } => write!(f, "take {} as the root", tree.display()),
            Self::EmptyRoot { at } => write!(f, "put a root together at {}", at.display()),
            Self::Symlink { target, to } => {
                write!(f, "link {} to {}", target.display(), to.display())
            }
            Self::Bind { source, target, flags, .. } => {
                write!(f, "bind {} to {} ({flags})", source.display(), target.display())
            }
            Self::Filesystem { kind, target, flags, .. } => {
                write!(f, "mount {kind} at {} ({flags})", target.display())
            }
            Self::Sysfs { fresh, .. } => {
                write!(f, "mount {} sysfs at /sys", if *fresh { "a fresh" } else { "the host's" })
            }
            Self::File { target, .. } => write!(f, "write {}", target.display()),
            Self::Mask(path) => write!(f, "hide {}", path.display()),
            Self::ReadOnly(path) => write!(f, "make {} read-only", path.display()),
            Self::Hooks(hooks) => {
                let names: Vec<_> =
                    hooks.iter().map(|hook| hook.path.display().to_string()).collect();
                write!(f, "run hooks: {}", names.join(", "))
            }
            Self::ReadOnlyRoot => write!(f, "make the root read-only"),
            Self::Pivot => write!(f, "change to the new root"),
            Self::Lock => write!(f, "lock what is mounted"),
        }
    }
}
