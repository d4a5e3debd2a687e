//! Why a job did not start.

use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::LimitError;
use crate::facts::FactsError;
use crate::plan::PlanError;

/// A job, or a further program in a job, did not start. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// `main` doesn't call [`crate::init_main`].
    #[error("this program cannot act as a job's init")]
    NoInit,
    /// The host could not be looked at.
    #[error("cannot look at the host")]
    Facts(#[from] FactsError),
    /// The job makes no sense.
    #[error("the job cannot be planned")]
    Plan(#[from] PlanError),
    /// A limit cannot be enforced.
    #[error("a limit cannot be enforced")]
    Limit(#[from] LimitError),
    /// The kernel refused a namespace.
    #[error("cannot make the job's namespaces")]
    Namespaces(#[source] io::Error),
    /// The users of the job could not be mapped.
    #[error("cannot map the job's users")]
    Ids(#[source] io::Error),
    /// A process could not enter its cgroup.
    #[error("cannot put the job into {}", .path.display())]
    EnterCgroup {
        /// The cgroup's file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The job's private network could not be made.
    #[error("cannot make the job's private network")]
    Network(#[source] io::Error),
    /// A volume's files can't be shown with other owners.
    #[error("cannot map the owners of files in the volume {}", .path.display())]
    MapVolume {
        /// The volume.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The job could not be connected with a bridge.
    #[error("cannot connect the job with the bridge {bridge}")]
    Link {
        /// The bridge.
        bridge: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// This binary could not be started again as the job's init.
    #[error("cannot start the job's init")]
    Init(#[source] io::Error),
    /// The kernel killed it for want of memory before it was there.
    #[error("the job's memory limit is too small to start it")]
    Memory,
    /// The init or the program died before the program started.
    #[error("the job's init ended before the program started")]
    InitDied,
    /// Talking to the init failed.
    #[error("cannot talk to the job's init")]
    Talk(#[source] io::Error),
    /// A part of the job's surroundings could not be made.
    #[error("cannot {what}")]
    Setup {
        /// What could not be done, after "cannot".
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The program could not be executed.
    #[error("cannot {what}")]
    Exec {
        /// What could not be done, after "cannot".
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl LaunchError {
    /// The exit code by which `docker run` and shells tell these cases apart: 127 program not found, 126 found but not
    /// executable, 125 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
            _ => 125,
        }
    }

    /// What the caller could do about it.
    pub fn hint(&self) -> Option<&'static str> {
        let errno = |error: &io::Error| error.raw_os_error();
        Some(match self {
            Self::NoInit => "call mica_launcher::init_main() first thing in main",
            Self::Limit(error) => error.hint(),
            Self::Memory => "6m is enough for a small program",
            Self::Network(source) if source.kind() == io::ErrorKind::NotFound => {
                "install the package passt, which has the program pasta"
            }
            Self::MapVolume { source, .. } => match errno(source) {
                Some(libc::EINVAL) => {
                    "its file system, or one mounted in it, cannot be mounted so (FUSE and network file systems mostly can't), \
                     or is mounted so already"
                }
                Some(libc::EPERM) => "only root may, and not on every file system",
                _ => return None,
            },
            Self::Network(_) => "share the host's network, or run without one",
            Self::Namespaces(source) => match errno(source) {
                Some(libc::ENOSPC | libc::EUSERS) => {
                    "the host allows no more user namespaces: raise the sysctl user.max_user_namespaces"
                }
                Some(libc::EPERM | libc::EACCES) => {
                    "the host forbids user namespaces to this user: see the sysctls kernel.unprivileged_userns_clone and \
                     kernel.apparmor_restrict_unprivileged_userns; in a container, its seccomp profile"
                }
                Some(libc::ENOSYS | libc::EINVAL) => {
                    "the kernel is too old, or was built without a namespace: Linux 5.12 is needed"
                }
                _ => return None,
            },
            Self::Setup { what, source }
                if errno(source) == Some(libc::EPERM) && what.starts_with("mount proc") =>
            {
                "parts of the host's /proc are hidden here, as in most containers, so the kernel grants no fresh one: \
                 share the process namespace, or run the outer container with an unmasked /proc"
            }
            Self::Plan(PlanError::NoFilter) => {
                "install the package nftables, or let the job reach the host: --network private:host"
            }
            Self::Plan(PlanError::Unmapped { .. }) => {
                "the job's user namespace doesn't have this id: an ordinary user has more than one where /etc/subuid and \
                 /etc/subgid grant them and the package uidmap is installed"
            }
            Self::Plan(PlanError::Hidden(_)) => {
                "it holds the sockets of other jobs; named volumes (-v NAME:/path) may be shared between jobs"
            }
            Self::Exec { what, source } | Self::Setup { what, source }
                if errno(source) == Some(libc::ENOENT) && is_on_the_host(what) =>
            {
                "it is there on the host, but not in the job, which sees the host's programs and not its data: \
                 -v PATH:PATH shows it, --host-root all of the host, and the setting host-paths says what is seen usually"
            }
            Self::Setup { source, .. } if errno(source) == Some(libc::EROFS) => {
                "the tree lacks this mount point and cannot be written: add the directory to a layer, or use a writable upper"
            }
            _ => return None,
        })
    }
}

/// Whether what was looked for in the job is on the host: the last word of what failed.
fn is_on_the_host(what: &str) -> bool {
    let paths =
        ["find ", "change to the directory "].iter().find_map(|verb| what.strip_prefix(verb));
    paths.is_some_and(|path| path.starts_with('/') && Path::new(path).exists())
}
