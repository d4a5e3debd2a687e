//! Mounting, and taking mounts down.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{MountError, UnmountError};
use crate::ids::Ids;
use crate::lower::Lower;
use crate::options::{Marks, MountOptions, Upper};
use crate::server::{Server, Shared};
use crate::stack::Stack;
use crate::stats::{Counters, Stats};
use crate::trace::{Recorder, Trace};
use crate::tree::Tree;
use crate::upper::{MarkSpace, UpperDir};

/// A mounted stack. Dropping it takes the mount down, lazily if it is in use.
#[derive(Debug)]
pub struct Mount {
    point: Point,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<io::Result<()>>>,
    /// Disconnected when the server ends.
    ended: Receiver<()>,
}

/// How long an unmount waits for the server of a mount that nobody uses.
const LEAVING: Duration = Duration::from_secs(2);

/// How a mount was taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody used it: it is gone, and so is the server.
    Clean,
    /// Somebody does: it is out of the tree, and served until the last user is gone.
    Lazy,
}

/// The place of a mount in the tree of mounts.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    path: PathBuf,
    /// Tells our mount from one that was put over it or took its place.
    id: u64,
    /// Mounted by `fusermount3`, which is needed for the other direction too.
    helper: bool,
}

/// Mounts a stack on a directory; returns when the kernel can use it.
///
/// The caller is root, or in a user and mount namespace of its own (then the mount ends with the namespace, and
/// processes in descendant namespaces can use it), or an ordinary user on a host with `fusermount3`.
pub fn mount(stack: Stack, mountpoint: &Path, options: &MountOptions) -> Result<Mount, MountError> {
    if stack.layers.is_empty() && options.upper.is_none() {
        return Err(MountError::Empty);
    }
    crate::descriptors::raise_descriptor_limit();
    let bad_point = |source: io::Error| MountError::MountPoint { path: mountpoint.into(), source };
    detach_dead(mountpoint).map_err(bad_point)?;
    #[allow(clippy::disallowed_methods)]
    let path = mountpoint.canonicalize().map_err(bad_point)?;
    if !path.is_dir() {
        return Err(bad_point(io::ErrorKind::NotADirectory.into()));
    }
    let shared = Arc::new(Shared::new(tree(stack, options)?));
    let failed = |source| MountError::Session { path: path.clone(), source };
    let threads = crate::threads::available(options.threads).map_err(failed)?;
    let (session, helper) = start(&path, &shared, options, threads)?;
    shared.backings.start(session.notifier());
    // A trace is to have every file that is read.
    if options.push && threads > 1 && !options.record_trace {
        shared.pusher.start(session.notifier());
    }
    let id = mount_id(&path).map_err(|errno| failed(errno.into()));
    let (alive, ended): (Sender<()>, _) = channel();
    let served = Arc::clone(&shared);
    let kept = options.upper.as_ref().is_some_and(|upper| !upper.thrown_away);
    let completer = if kept { complete(&shared, options.complete_after) } else { None };
    let serving = std::thread::Builder::new()
        .name("mica-mount".to_owned())
        .spawn(move || {
            let result = session.run();
            drop(alive);
            served.tree.lower.end();
            served.tree.end_background();
            if completer.is_some_and(|completer| completer.join().is_err()) {
                tracing::error!("bug: completing files in the background panicked");
            }
            if kept {
                served.tree.complete_all();
            }
            result
        })
        .map_err(failed);
    let (id, serving) = match (id, serving) {
        (Ok(id), Ok(serving)) => (id, serving),
        (Err(error), _) | (_, Err(error)) => {
            shared.tree.end_background();
            take_down(&path, helper, true).ok();
            return Err(error);
        }
    };
    if let Some(trace) = options.trace.clone() {
        follow(Arc::clone(&shared), trace);
    }
    if let Some(kib) = options.readahead_kib {
        raise_readahead(&path, kib);
    }
    let point = Point { path, id, helper };
    if let Some(timeout) = options.idle_timeout {
        crate::idle::watch(point.clone(), Arc::clone(&shared), timeout);
    }
    Ok(Mount { point, shared, serving: Some(serving), ended })
}

fn tree(stack: Stack, options: &MountOptions) -> Result<Tree, MountError> {
    let lower = Lower::new(
        stack,
        Ids::of(options.owners.as_ref()),
        options.block_cache_bytes,
        options.record_trace,
    );
    let Some(upper) = &options.upper else { return Ok(Tree::new(lower, None)?) };
    let marks = match options.marks {
        Marks::Auto => None,
        Marks::Trusted => Some(MarkSpace::Trusted),
        Marks::User => Some(MarkSpace::User),
    };
    let (dir, new) = UpperDir::open(&upper.upper, &upper.work, marks, upper.volatile)
        .map_err(MountError::Upper)?;
    let tree = Tree::new(lower, Some(dir))?;
    if new {
        tree.copy_root().map_err(|errno| {
            let (path, source) = (upper.upper.clone(), errno.into());
            MountError::Upper(crate::upper::UpperError::Folder { path, source })
        })?;
    }
    Ok(tree)
}

/// Copies into an upper that isn't mounted what is still in the layers of files that were copied up in part: what a
/// killed server left. Afterwards it can be used without them.
pub fn complete_upper(stack: Stack, upper: Upper) -> Result<(), MountError> {
    let options = MountOptions { upper: Some(upper), ..MountOptions::default() };
    tree(stack, &options)?.complete_all();
    Ok(())
}

/// Mounts, and answers the kernel's first request. Also says whether the helper mounted.
fn start(
    path: &Path,
    shared: &Arc<Shared>,
    options: &MountOptions,
    threads: usize,
) -> Result<(Session<Server>, bool), MountError> {
    let server = || Server::new(Arc::clone(shared), options.passthrough && !options.suid);
    let config = |acl, mount_options| {
        let mut config = Config::default();
        config.mount_options = mount_options;
        config.acl = acl;
        config.n_threads = Some(threads);
        config
    };
    match mount_directly(path, options)? {
        Some(device) => {
            // With access limited to one user the kernel does the limiting.
            let config = config(SessionACL::All, Vec::new());
            let session = Session::from_fd(server(), device, SessionACL::All, config);
            let session = session.map_err(|source| {
                take_down(path, false, true).ok();
                MountError::Session { path: path.into(), source }
            })?;
            Ok((session, false))
        }
        None => {
            let installed = Command::new("fusermount3")
                .arg("--version")
                .output()
                .is_ok_and(|o| o.status.success());
            if !installed {
                return Err(MountError::NotPermitted { path: path.into() });
            }
            let other = options.allow_other.unwrap_or(false);
            let acl = if other { SessionACL::All } else { SessionACL::Owner };
            let session = Session::new(server(), path, &config(acl, helper_options(options)));
            let session =
                session.map_err(|source| MountError::Helper { path: path.into(), source })?;
            Ok((session, true))
        }
    }
}

fn helper_options(options: &MountOptions) -> Vec<MountOption> {
    let access = if options.upper.is_some() { MountOption::RW } else { MountOption::RO };
    vec![
        MountOption::FSName(options.name.clone()),
        MountOption::Subtype("mica".to_owned()),
        MountOption::DefaultPermissions,
        access,
    ]
}

/// Opens /dev/fuse and mounts it; `None` if this process may not mount.
fn mount_directly(path: &Path, options: &MountOptions) -> Result<Option<OwnedFd>, MountError> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        // fuser wants the standard descriptors for themselves.
        .and_then(|fd| rustix::io::fcntl_dupfd_cloexec(&fd, 3))
        .map_err(|errno| MountError::Device(errno.into()))?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    if options.allow_other.unwrap_or(true) {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::RDONLY, options.upper.is_none());
    let failed = |source: io::Error| MountError::Mount { path: path.into(), source };
    let data = std::ffi::CString::new(data).map_err(|error| failed(error.into()))?;
    let name = options.name.as_str();
    match rustix::mount::mount(name, path, "fuse.mica", flags, data.as_c_str()) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// The id of the mount that is seen at `path`, without asking the file system.
fn mount_id(path: &Path) -> rustix::io::Result<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID)?;
    Ok(stat.stx_mnt_id)
}

/// Takes down what a server that was killed left on `mountpoint`; says whether there was anything.
/// [`mount`] does so itself.
pub fn detach_dead(mountpoint: &Path) -> io::Result<bool> {
    // Without its server a mount answers with ENOTCONN; stat(2) the kernel still answers by itself.
    match rustix::fs::statfs(mountpoint) {
        Err(Errno::NOTCONN) => {
            take_down(mountpoint, true, true)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Starts to complete in the background what is copied up in part, until the mount ends.
fn complete(shared: &Arc<Shared>, delay: Duration) -> Option<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let work = move || shared.tree.complete_in_background(delay);
    match std::thread::Builder::new().name("mica-complete".to_owned()).spawn(work) {
        Ok(thread) => Some(thread),
        Err(error) => {
            tracing::warn!(%error, "no thread to complete files: they are when the mount ends");
            None
        }
    }
}

/// Reads ahead what an earlier mount read, until the mount ends.
fn follow(shared: Arc<Shared>, trace: Arc<Trace>) {
    let work = move || shared.tree.lower.follow(&trace);
    if let Err(error) = std::thread::Builder::new().name("mica-trace".to_owned()).spawn(work) {
        tracing::warn!(%error, "no thread to read ahead");
    }
}

/// The server can't ask for more than the kernel's 128 KiB; root can set it from outside.
#[allow(clippy::disallowed_methods)]
fn raise_readahead(path: &Path, kib: u32) {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let raised = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty())
        .map_err(io::Error::from)
        .and_then(|stat| {
            let device = format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
            std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kib.to_string())
        });
    if let Err(error) = raised {
        tracing::debug!(%error, "readahead stays as the kernel has it");
    }
}

fn take_down(path: &Path, helper: bool, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Err(Errno::PERM) if helper => {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-q"]);
            if lazy {
                command.arg("-z");
            }
            match command.arg("--").arg(path).status()?.success() {
                true => Ok(()),
                false => Err(Errno::BUSY.into()),
            }
        }
        result => Ok(result?),
    }
}

/// Takes down whatever is mounted on a directory, lazily if it is used: for what a dead server left behind, and for
/// asking a live one in another process to end.
pub fn unmount_at(mountpoint: &Path) -> Result<Unmounted, UnmountError> {
    let failed = |source| UnmountError { path: mountpoint.into(), source };
    match take_down(mountpoint, true, false) {
        Ok(()) => Ok(Unmounted::Clean),
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            take_down(mountpoint, true, true).map_err(failed)?;
            Ok(Unmounted::Lazy)
        }
        Err(error) => Err(failed(error)),
    }
}

impl Point {
    /// Whether our mount is still what is seen at its mount point.
    fn is_there(&self) -> bool {
        mount_id(&self.path) == Ok(self.id)
    }

    /// Takes the mount down if nobody uses it; says whether it is gone.
    pub(crate) fn release(&self) -> bool {
        !self.is_there() || take_down(&self.path, self.helper, false).is_ok()
    }
}

impl Mount {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point.path
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Copies into the upper what is still in the layers of files that were copied up in part, as the end of the mount
    /// does: afterwards, and as long as nobody writes, the upper can be used without the layers.
    pub fn complete(&self) {
        self.shared.tree.complete_all();
    }

    /// Which blocks were read so far, in which order, if that was to be recorded.
    pub fn trace(&self) -> Option<Trace> {
        self.watch().trace()
    }

    /// A handle for reading the counters, also after the mount is gone.
    pub fn watch(&self) -> Watch {
        let shared = Arc::downgrade(&self.shared);
        let recorder = self.shared.tree.lower.recorder();
        Watch { counters: Arc::clone(&self.shared.counters), recorder, shared }
    }

    /// Takes the mount down: at once if nobody uses it, else lazily.
    pub fn unmount(mut self) -> Result<Unmounted, UnmountError> {
        let mut result = self.detach();
        if let (Ok(Unmounted::Clean), Some(serving)) = (&result, self.serving.take()) {
            // Another mount namespace may hold a copy of the mount, which then is served on.
            match self.ended.recv_timeout(LEAVING) {
                Err(RecvTimeoutError::Timeout) => result = Ok(Unmounted::Lazy),
                Ok(()) | Err(RecvTimeoutError::Disconnected) => finish(serving),
            }
        }
        self.serving = None;
        let path = self.point.path.clone();
        result.map_err(|source| UnmountError { path, source })
    }

    fn detach(&self) -> io::Result<Unmounted> {
        if !self.point.is_there() {
            return Ok(Unmounted::Clean); // somebody else took it down
        }
        match take_down(&self.point.path, self.point.helper, false) {
            Ok(()) => Ok(Unmounted::Clean),
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                take_down(&self.point.path, self.point.helper, true)?;
                Ok(Unmounted::Lazy)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the mount is gone: taken down by somebody, or with its namespace.
    pub fn wait(mut self) {
        if let Some(serving) = self.serving.take() {
            finish(serving);
        }
    }

    /// Waits so long for the mount to be gone; whether it is. Then [`Mount::wait`] returns at once.
    pub fn wait_for(&self, time: Duration) -> bool {
        !matches!(self.ended.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    /// Whether the mount is still served.
    pub fn is_serving(&self) -> bool {
        self.serving.as_ref().is_some_and(|serving| !serving.is_finished())
    }
}

/// Reads the counters of a mount, for whoever doesn't own it.
#[derive(Debug, Clone)]
pub struct Watch {
    counters: Arc<Counters>,
    recorder: Option<Arc<Recorder>>,
    /// Weak: the upper stays locked for as long as the mount lives, not its spectators.
    shared: Weak<Shared>,
}

impl Watch {
    /// What the mount has done so far.
    pub fn stats(&self) -> Stats {
        let nodes = self.shared.upgrade().map_or(0, |shared| shared.stats().nodes);
        Stats { requests: self.counters.requests(), nodes }
    }

    /// [`Mount::trace`], also after the mount is gone.
    pub fn trace(&self) -> Option<Trace> {
        self.recorder.as_deref().map(Recorder::trace)
    }
}

fn finish(serving: JoinHandle<io::Result<()>>) {
    match serving.join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the connection to the kernel broke"),
        Err(_) => tracing::error!("bug: the server panicked"),
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_serving()
            && let Err(error) = self.detach()
        {
            let path = self.point.path.display();
            tracing::warn!(%path, %error, "cannot unmount");
        }
    }
}
