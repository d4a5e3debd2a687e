//! `mica mount`: mounts on the host, each served by a process of its own.
//!
//! ```text
//! mounts/<id>/config.json   what is mounted where
//!             lock          held (flock) while the server lives
//!             served.json   which device it has, and which process serves it; there when it can be used
//!             server.log    what it had to say
//!             tree/         the mount point, where none was given
//!        .<id>/             one that is being removed
//! ```
//!
//! A mount whose lock is free lost its server: [`Mounts::reconcile`] takes it down. It cannot be said of these mounts
//! that they end with their namespace, because they are the host's. What is found at a path is told by its device, which is
//! the mount's in every namespace: several may lie on one folder.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mica_durable::{Folder, Named, remove_tree};
use mica_mounter::UnmountError as KernelError;
use rustix::fs::AtFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::client::{StartError, hand_over};
use crate::config::StackConfig;
use crate::files::{
    FileError, Lock, PATIENCE, create_private_dir, read_json, refuse_shared, write_json,
};
use crate::holders::{Holders, holders};
use crate::mountinfo;
use crate::report::MountReport;
use crate::state::new_id;

/// The word that makes the binary a mount's server; the command line hands it to [`crate::serve_mount`].
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

/// What its server says of a mount that can be used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) pid: u32,
}

/// What became of a mount that was to be taken down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakenDown {
    /// It is gone, and so is its server.
    Gone,
    /// It is out of the tree, and served until those who use it, as far as they can be told, are gone.
    Held(Holders),
}

/// How long an unmount waits for the server of a mount that nobody seems to use.
const LEAVING: Duration = Duration::from_secs(3);

/// A mount that cannot be taken down.
#[derive(Debug, thiserror::Error)]
pub enum UmountError {
    /// Nothing of ours.
    #[error("{} is not a mount of mica's", .0.display())]
    Unknown(PathBuf),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Another mount namespace has it, and its server does not take it down.
    #[error("{} is mounted in another mount namespace, and its server does not answer", .0.display())]
    Elsewhere(PathBuf),
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
    ///
    /// # Errors
    /// Their folder can't be read.
    pub fn list(&self) -> Result<Vec<MountDir>, FileError> {
        let folder = Folder::open(&self.root)?;
        let mut mounts = Vec::new();
        for name in folder.names()? {
            let path = folder.path().join(&name);
            // With a point first: one that is being removed.
            if !name.as_encoded_bytes().starts_with(b".") && path.is_dir() {
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

    /// Takes down the mounts whose server died, and removes what is left of others.
    ///
    /// # Errors
    /// The folder of all mounts can't be read or changed.
    pub fn reconcile(&self) -> Result<(), FileError> {
        // Without mounts there is nothing to lock.
        let folder = Folder::open(&self.root)?;
        let names = folder.names()?;
        if names.iter().all(|name| name == "lock") {
            return Ok(());
        }
        let Some(_making) = Lock::try_exclusive(&self.making())? else { return Ok(()) };
        for mount in self.list()? {
            // Asked before it is taken: most are served, and nobody is to wait for a question.
            if Lock::is_held(&mount.lock_path()).unwrap_or(true) {
                continue;
            }
            let Ok(Some(lock)) = Lock::try_exclusive(&mount.lock_path()) else { continue };
            let cleaned = mount.take_down_dead().and_then(|()| Ok(mount.remove(&lock)?));
            if let Err(error) = cleaned {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot clean up a dead mount");
            }
        }
        for name in names.iter().filter(|name| name.as_encoded_bytes().starts_with(b".")) {
            remove_tree(&folder.path().join(name))?;
        }
        Ok(())
    }

    /// Takes down the mount that is seen at `mountpoint`, whoever of ours serves it or has served it, and waits a little for
    /// its server's end. One that somebody uses, or that another mount namespace has a copy of, is out of the tree at once.
    ///
    /// # Errors
    /// It is none of mica's; the kernel refuses.
    pub fn unmount(&self, mountpoint: &Path) -> Result<TakenDown, UmountError> {
        let unknown = || UmountError::Unknown(mountpoint.to_owned());
        let wanted = std::path::absolute(mountpoint).map_err(|_| unknown())?;
        // A dead server's mount point can't be looked at: its folder is, which need not be there.
        let above = wanted.parent().and_then(|above| above.canonicalize().ok());
        let above = above.zip(wanted.file_name()).map(|(above, name)| above.join(name));
        let resolved = mountpoint.canonicalize().ok();
        let places: Vec<PathBuf> = [Some(wanted), above, resolved].into_iter().flatten().collect();
        let seen = places.iter().find_map(|place| mountinfo::topmost(place));
        match seen.filter(|seen| seen.ours) {
            Some(seen) => self.unmount_here(seen),
            None => self.unmount_elsewhere(&places).unwrap_or_else(|| Err(unknown())),
        }
    }

    fn unmount_here(&self, seen: mountinfo::Entry) -> Result<TakenDown, UmountError> {
        let mount = self.list()?.into_iter().find(|mount| mount.device() == Some(seen.device));
        mica_mounter::unmount_at(&seen.point)?;
        // One of another user's, or of another state: its server sees for itself that it is gone.
        let Some(mount) = mount else { return Ok(TakenDown::Gone) };
        mount.wait_for_end(seen.device, &seen.point)
    }

    /// One that is not seen at any of these places here: its server is in its namespace, and takes it down.
    fn unmount_elsewhere(&self, places: &[PathBuf]) -> Option<Result<TakenDown, UmountError>> {
        let is_it =
            |mount: &MountDir| mount.mountpoint().is_ok_and(|point| places.contains(&point));
        let mount = self.list().ok()?.into_iter().find(is_it)?;
        let point = mount.mountpoint().ok()?;
        let device = mount.device();
        let asked = mount.ask_server();
        let dead = || UmountError::Elsewhere(point.clone());
        Some(match (asked, device) {
            (true, Some(device)) => mount.wait_for_end(device, &point),
            _ if !Lock::is_held(&mount.lock_path()).unwrap_or(true) => {
                // What a dead server left here was looked for; elsewhere it goes with its namespace.
                self.reconcile().map_err(UmountError::from).map(|()| TakenDown::Gone)
            }
            _ => Err(dead()),
        })
    }
}

impl MountDir {
    /// Opens the folder a server was told.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The mount's folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn write_served(&self, served: &Served) -> Result<(), FileError> {
        write_json(&self.path.join("served.json"), served)
    }

    fn served(&self) -> Option<Served> {
        read_json(&self.path.join("served.json")).ok()
    }

    /// The device of its file system, once it can be used.
    fn device(&self) -> Option<(u32, u32)> {
        self.served()?.device
    }

    /// Waits for the server of a mount that is out of the tree here. If it doesn't end, somebody has the mount.
    fn wait_for_end(&self, device: (u32, u32), point: &Path) -> Result<TakenDown, UmountError> {
        let deadline = Instant::now() + LEAVING;
        loop {
            // It goes with its folder.
            if !Lock::is_held(&self.lock_path())? {
                return Ok(TakenDown::Gone);
            }
            let held = holders(device, point);
            if !held.users.is_empty() || Instant::now() > deadline {
                return Ok(TakenDown::Held(held));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Tells the server to take the mount down; whether there is one. What the record says is believed of a process that has
    /// the mount's lock open: no other one has.
    fn ask_server(&self) -> bool {
        let Some(pid) = self.served().and_then(|served| Pid::from_raw(served.pid.try_into().ok()?))
        else {
            return false;
        };
        let Ok(server) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        let Ok(lock) = fs::metadata(self.lock_path()) else { return false };
        let is_lock = |entry: fs::DirEntry| {
            let open = fs::metadata(entry.path());
            open.is_ok_and(|open| (open.dev(), open.ino()) == (lock.dev(), lock.ino()))
        };
        let open = fs::read_dir(format!("/proc/{pid}/fd"));
        open.into_iter().flatten().flatten().any(is_lock)
            && pidfd_send_signal(&server, Signal::TERM).is_ok()
    }

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

    /// Unmounts what a dead server left, if it is still there and nothing else lies on it.
    fn take_down_dead(&self) -> Result<(), UmountError> {
        let Ok(mountpoint) = self.mountpoint() else { return Ok(()) };
        let seen = mountinfo::topmost(&mountpoint).filter(|seen| seen.ours);
        let device = self.device();
        if seen.is_some_and(|seen| device.is_none_or(|device| device == seen.device)) {
            mica_mounter::unmount_at(&mountpoint)?;
        }
        Ok(())
    }

    /// Removes the folder, in one step for whoever looks: it is renamed away first. The caller holds the lock.
    ///
    /// # Errors
    /// Something is mounted in it.
    pub fn remove(&self, _lock: &Lock) -> Result<(), FileError> {
        let above = Folder::open(self.path.parent().unwrap_or(Path::new("/")))?;
        let name = self.path.file_name().unwrap_or_default();
        let Some(folder) = above.folder(name)? else { return Ok(()) };
        // What is mounted there is not ours to remove.
        let tree = rustix::fs::unlinkat(&folder, "tree", AtFlags::REMOVEDIR);
        mica_durable::found(tree).named("remove", &self.tree())?;
        let mut away = std::ffi::OsString::from(".");
        away.push(name);
        rustix::fs::renameat(&above, name, &above, &away).named("rename", &self.path)?;
        remove_tree(&above.path().join(&away)).map(drop)
    }
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
