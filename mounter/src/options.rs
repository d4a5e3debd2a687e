//! How to mount.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::trace::Trace;

/// A writable directory above the layers, in overlayfs's on-disk form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// Holds what is changed; made if it is missing.
    pub upper: PathBuf,
    /// For files that are not finished, on the same file system; made if it is missing.
    pub work: PathBuf,
    /// Don't wait for the disk when files are copied up: right for an upper that is thrown away
    /// with its job, since after a crash of the machine copied files may be empty.
    pub volatile: bool,
    /// Nobody looks at the upper once the mount has ended: files that were copied up in part stay so.
    pub thrown_away: bool,
}

impl Upper {
    /// An upper at `upper` with its work folder beside it: `upper.work`.
    pub fn new(upper: impl Into<PathBuf>) -> Upper {
        let upper = upper.into();
        let mut work = upper.clone().into_os_string();
        work.push(".work");
        Upper { upper, work: work.into(), volatile: false, thrown_away: false }
    }
}

/// Which attributes mark whiteouts, opaque directories and redirects in the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Marks {
    /// `trusted.overlay.*` where they can be set, else `user.overlay.*`.
    #[default]
    Auto,
    /// `trusted.overlay.*`, overlayfs's usual form; only root can set them.
    Trusted,
    /// `user.overlay.*`, overlayfs's `userxattr` form.
    User,
}

/// Whom the files of the layers belong to for jobs whose root is another user outside: runs of `[first id in the layers, first
/// id shown, how many]`. Those of no run are shown as the root's. Files of the upper belong to those whom the map shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    /// Users.
    pub uids: Vec<[u32; 3]>,
    /// Groups.
    pub gids: Vec<[u32; 3]>,
}

/// How to mount a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Where changes go; without one the mount is read-only.
    pub upper: Option<Upper>,
    /// The form of the upper's marks.
    pub marks: Marks,
    /// Bytes of decoded blocks kept.
    pub block_cache_bytes: usize,
    /// Let users other than the server's use the mount. `None`: wherever the system allows it, that is
    /// unless the mount goes through `fusermount3`, where `/etc/fuse.conf` has to allow it.
    pub allow_other: Option<bool>,
    /// Honour set-user-id and set-group-id bits of the mount's files.
    pub suid: bool,
    /// Let device nodes of the mount be opened.
    pub dev: bool,
    /// Show the layers' files as belonging to others.
    pub owners: Option<Owners>,
    /// Unmount when nothing was asked for so long and nothing is in use.
    pub idle_timeout: Option<Duration>,
    /// Threads that answer requests; at least 1. More than a few lose more than they win.
    pub threads: usize,
    /// Readahead in KiB, where this process may set it (root); `None` leaves the kernel's 128. More helps those
    /// who read large files from end to end, and costs those who touch many in places.
    pub readahead_kib: Option<u32>,
    /// Let the kernel read and write the upper's files by itself, where it does: only root may ask it to. Not together
    /// with `suid`: a file that is made set-user-id while it is open would keep that when it is written.
    pub passthrough: bool,
    /// Hand small files to the kernel before it asks for them, to those who read many. Not good where a read may take long,
    /// such as of images that are still being fetched.
    pub push: bool,
    /// How long after a file was copied up in part the rest follows in the background, unless the upper is thrown away.
    pub complete_after: Duration,
    /// Note which blocks are read in which order: see [`crate::Mount::trace`].
    pub record_trace: bool,
    /// Blocks to decode before they are asked for: what an earlier mount of these images noted.
    pub trace: Option<Arc<Trace>>,
    /// The device name in `/proc/self/mounts`.
    pub name: String,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            upper: None,
            marks: Marks::Auto,
            block_cache_bytes: 32 << 20,
            allow_other: None,
            suid: false,
            dev: false,
            owners: None,
            idle_timeout: None,
            threads: 2,
            readahead_kib: None,
            passthrough: true,
            push: true,
            complete_after: Duration::from_secs(5),
            record_trace: false,
            trace: None,
            name: "mica".to_owned(),
        }
    }
}
