//! `mica mount`: mounts on the host, each served by a process of its own.
//!
//! ```text
//! mounts/<id>/config.json   what is mounted where
//!             lock          held (flock) while the server lives
//!             server.log    what it had to say
//!             tree/         the mount point, where none was given
//! ```
//!
//! A mount whose lock is free lost its server: [`Mounts::reconcile`] takes it down. It cannot be said of these mounts
//! that they end with their namespace, because they are the host's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mica_durable::Folder;
use mica_mounter::{UnmountError as KernelError, Unmounted, Watch};
use serde::{Deserialize, Serialize};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::client::{StartError, hand_over};
use crate::config::StackConfig;
use crate::files::{
    FileError, Lock, PATIENCE, at, create_private_dir, read_json, refuse_shared, write_json,
};
use crate::handover::Handover;
use crate::report::{MountReport, Reporter};
use crate::stack::MountStackError;
use crate::state::new_id;
use crate::status::Failure;

/// The word that makes the binary a mount's server; the command line hands it to [`serve_mount`].
pub const SERVE_MOUNT: &str = "serve-mount";

/// What is mounted, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountConfig {
    /// The stack.
    #[serde(flatten)]
    pub stack: StackConfig,
    /// Where; `None` is the mount's own folder.
    pub mountpoint: Option<PathBuf>,
    /// Unmount when nothing was asked for so many seconds and nothing is in use.
    pub idle_timeout: Option<u64>,
}

/// Why a mount is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeMountError {
    /// Its folder cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It cannot be mounted.
    #[error(transparent)]
    Stack(#[from] MountStackError),
    /// Signals cannot be caught.
    #[error("cannot catch signals")]
    Signals(#[source] std::io::Error),
}

impl ServeMountError {
    /// The error that this one passes on as it is.
    pub fn inner(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Self::File(error) => error,
            Self::Stack(error) => error,
            Self::Signals(_) => self,
        }
    }
}

/// A mount that cannot be taken down.
#[derive(Debug, thiserror::Error)]
pub enum UmountError {
    /// Nothing of ours.
    #[error("{} is not a mount of mica's", .0.display())]
    Unknown(PathBuf),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its folder cannot be read or removed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// All mounts of one user.
#[derive(Clone, Debug)]
pub struct Mounts {
    root: PathBuf,
}

/// One mount's folder.
#[derive(Clone, Debug)]
pub struct MountDir {
    path: PathBuf,
}

impl Mounts {
    /// The mounts below `root`, which is made if need be.
    pub fn open(root: &Path) -> Result<Self, FileError> {
        let folder = Folder::create(root, 0o700)?;
        refuse_shared(&folder)?;
        let root = folder.create_folder("mounts", 0o700)?.path().to_owned();
        Ok(Self { root })
    }

    /// All of them.
    pub fn list(&self) -> Result<Vec<MountDir>, FileError> {
        let mut mounts = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(at("list", &self.root))? {
            let path = entry.map_err(at("list", &self.root))?.path();
            if path.is_dir() {
                mounts.push(MountDir { path });
            }
        }
        Ok(mounts)
    }

    /// Makes the folder of a new mount and takes its lock.
    pub fn create(&self, config: &MountConfig) -> Result<(MountDir, Lock), FileError> {
        let _making = Lock::exclusive(&self.making(), PATIENCE)?;
        let mount = MountDir { path: self.root.join(new_id()) };
        create_private_dir(&mount.path)?;
        let lock = Lock::exclusive(&mount.lock_path(), PATIENCE)?;
        if config.mountpoint.is_none() {
            create_private_dir(&mount.tree())?;
        }
        write_json(&mount.path.join("config.json"), config)?;
        Ok((mount, lock))
    }

    fn making(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Takes down the mounts whose server died.
    pub fn reconcile(&self) -> Result<(), FileError> {
        let Some(_making) = Lock::try_exclusive(&self.making())? else { return Ok(()) };
        for mount in self.list()? {
            let Ok(Some(lock)) = Lock::try_exclusive(&mount.lock_path()) else { continue };
            if let Err(error) = mount.take_down_dead() {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot clean up a dead mount"
                );
                continue;
            }
            mount.remove(&lock)?;
        }
        Ok(())
    }

    /// Takes down the mount at `mountpoint`, and waits for its server's end unless somebody still uses it.
    pub fn unmount(&self, mountpoint: &Path) -> Result<Unmounted, UmountError> {
        let unknown = || UmountError::Unknown(mountpoint.to_owned());
        let wanted = std::path::absolute(mountpoint).map_err(|_| unknown())?;
        // A dead server's mount point can't be looked at, so it is not resolved unless need be.
        let resolved = fs::canonicalize(mountpoint).ok();
        let is_it = |mount: &MountDir| {
            mount
                .mountpoint()
                .is_ok_and(|point| point == wanted || Some(&point) == resolved.as_ref())
        };
        let mount = self.list()?.into_iter().find(is_it).ok_or_else(unknown)?;
        if mica_mounter::unmount_at(&mount.mountpoint()?)? == Unmounted::Lazy {
            return Ok(Unmounted::Lazy);
        }
        let lock = Lock::exclusive(&mount.lock_path(), PATIENCE);
        match lock {
            Ok(lock) => mount.remove(&lock)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Unmounted::Clean)
    }
}

impl MountDir {
    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// What is mounted.
    pub fn config(&self) -> Result<MountConfig, FileError> {
        read_json(&self.path.join("config.json"))
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> Result<PathBuf, FileError> {
        Ok(self.config()?.mountpoint.unwrap_or_else(|| self.tree()))
    }

    /// Unmounts what a dead server left, if it is still there.
    fn take_down_dead(&self) -> Result<(), UmountError> {
        let Ok(mountpoint) = self.mountpoint() else { return Ok(()) };
        if is_our_mount(&mountpoint) {
            mica_mounter::unmount_at(&mountpoint)?;
        }
        Ok(())
    }

    /// Removes the folder; the caller holds the lock.
    pub fn remove(&self, _lock: &Lock) -> Result<(), FileError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(at("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the topmost mount there is of our kind: something else may have been mounted there since.
fn is_our_mount(mountpoint: &Path) -> bool {
    let Ok(mountinfo) = fs::read_to_string("/proc/self/mountinfo") else { return false };
    let wanted = mountpoint.to_string_lossy();
    let last = mountinfo.lines().rev().find(|line| {
        let field = line.split(' ').nth(4).unwrap_or_default();
        unescape(field) == wanted
    });
    last.is_some_and(|line| line.contains(" - fuse.mica "))
}

/// mountinfo writes space, tab, line feed and backslash as octal (proc(5)).
fn unescape(field: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.iter().fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// Starts a mount's server and returns when the mount can be used.
pub fn start_mount(
    program: &Path,
    mount: &MountDir,
    lock: Lock,
) -> Result<MountReport, StartError> {
    let mut command = Command::new(program);
    command.arg(SERVE_MOUNT).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut reports = hand_over(command, &mount.path, lock, &[]).map_err(StartError::Spawn)?;
    match reports.next().map_err(StartError::Report)? {
        Some(report) => Ok(report),
        None => Err(StartError::MountDied),
    }
}

/// The command line of a mount's server, written by [`start_mount`].
#[derive(Debug)]
pub struct MountInvocation {
    mount: MountDir,
    handover: Handover,
}

impl MountInvocation {
    /// Takes over what the starting command left open; `None` if a person typed the word.
    pub fn parse(words: &[OsString]) -> Option<Self> {
        let [dir, lock, pipe] = words else { return None };
        Some(Self { mount: MountDir { path: dir.into() }, handover: Handover::adopt(lock, pipe)? })
    }

    /// Where the server's own log belongs.
    pub fn log_path(&self) -> PathBuf {
        self.mount.path.join("server.log")
    }
}

/// Serves a mount until it is taken down, by somebody or by SIGTERM. `hint` says what to do about an error.
pub fn serve_mount(invocation: MountInvocation, hint: impl Fn(&ServeMountError) -> Option<String>) {
    let MountInvocation { mount, handover: Handover { lock, pipe } } = invocation;
    // The mount survives the terminal it was made from.
    let _ = rustix::process::setsid();
    let mut reporter = Reporter::new(pipe);
    if let Err(error) = serve(&mount, &mut reporter) {
        reporter.send(&MountReport::Failed(Failure::new(&error, hint(&error), 1)));
    }
    if let Err(error) = mount.remove(&lock) {
        tracing::error!(%error, "cannot remove the mount's folder");
    }
}

fn serve(dir: &MountDir, reporter: &mut Reporter) -> Result<(), ServeMountError> {
    serve_config(&dir.config()?, &dir.mountpoint()?, |mountpoint| {
        reporter.send(&MountReport::Ready(mountpoint.to_owned()));
    })
}

/// Mounts and serves in this process; `ready` is called when the mount can be used.
pub fn serve_config(
    config: &MountConfig,
    mountpoint: &Path,
    ready: impl FnOnce(&Path),
) -> Result<(), ServeMountError> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).map_err(ServeMountError::Signals)?;
    let stack = &config.stack;
    let _lease = stack.lease()?;
    let mut options = stack.options();
    options.idle_timeout = config.idle_timeout.map(Duration::from_secs);
    if let Some(trace) = &stack.trace {
        trace.apply(&mut options);
    }
    let mount = stack.mount(mountpoint, &options)?;
    let point = mount.path().to_owned();
    ready(&point);
    let handle = signals.handle();
    let watch = mount.watch();
    let counters = watch.clone();
    let unmounter = std::thread::spawn(move || on_signals(&mut signals, &point, &counters));
    mount.wait();
    if let Some(file) = &stack.trace {
        file.save(watch.trace());
    }
    handle.close();
    if unmounter.join().is_err() {
        tracing::error!("the thread that waits for signals has panicked");
    }
    Ok(())
}

/// SIGUSR1 asks for the counters, the others for the end.
fn on_signals(signals: &mut Signals, point: &Path, watch: &Watch) {
    for signal in signals.forever() {
        if signal == SIGUSR1 {
            let stats = watch.stats();
            // Whoever sent the signal wants to see it, whatever else is logged.
            tracing::warn!(nodes = stats.nodes, requests = stats.total(), "counters");
            for (operation, count) in stats.requests {
                tracing::warn!(operation, count, "requests");
            }
            continue;
        }
        match mica_mounter::unmount_at(point) {
            Ok(Unmounted::Clean) => {}
            Ok(Unmounted::Lazy) => {
                tracing::warn!(
                    mountpoint = %point.display(),
                    "in use: taken out of the tree, and served until the last user is gone"
                );
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot unmount");
            }
        }
    }
}
