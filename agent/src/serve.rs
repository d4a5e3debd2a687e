//! The process that serves a mount of `mica mount`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mica_mounter::{Mount, Unmounted, Watch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::files::FileError;
use crate::handover::Handover;
use crate::holders::holders;
use crate::mountinfo;
use crate::mounts::{MountConfig, MountDir, Served};
use crate::report::{MountReport, Reporter};
use crate::stack::MountStackError;
use crate::status::Failure;

/// Why a mount is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeMountError {
    /// Its folder cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It cannot be mounted.
    #[error(transparent)]
    Stack(#[from] MountStackError),
    /// Signals cannot be caught, or there are no threads.
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

/// The command line of a mount's server, written by [`crate::start_mount`].
#[derive(Debug)]
pub struct MountInvocation {
    mount: MountDir,
    handover: Handover,
}

impl MountInvocation {
    /// Takes over what the starting command left open; `None` if a person typed the word.
    pub fn parse(words: &[OsString]) -> Option<Self> {
        let [dir, lock, pipe] = words else { return None };
        Some(Self { mount: MountDir::at(dir.into()), handover: Handover::adopt(lock, pipe)? })
    }

    /// Where the server's own log belongs.
    pub fn log_path(&self) -> PathBuf {
        self.mount.path().join("server.log")
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
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "cannot remove the mount's folder"
        );
    }
}

fn serve(dir: &MountDir, reporter: &mut Reporter) -> Result<(), ServeMountError> {
    serve_config(&dir.config()?, &dir.mountpoint()?, |mountpoint| {
        let device = mountinfo::topmost(mountpoint).map(|entry| entry.device);
        let served = Served { device, pid: std::process::id() };
        if let Err(error) = dir.write_served(&served) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot record the mount");
        }
        reporter.send(&MountReport::Ready(mountpoint.to_owned()));
    })
}

/// How often a server looks whether its mount is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// The longest pause between two looks for those who use a mount that is out of the tree.
const LONGEST_PAUSE: u32 = 16;

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
    let device = mountinfo::topmost(&point).map(|entry| entry.device);
    ready(&point);
    let handle = signals.handle();
    let watch = mount.watch();
    let counters = watch.clone();
    let place = point.clone();
    let unmounter = std::thread::Builder::new()
        .name("mica-signals".to_owned())
        .spawn(move || on_signals(&mut signals, &place, device, &counters))
        .map_err(ServeMountError::Signals)?;
    wait(mount, &point, device);
    if let Some(file) = &stack.trace {
        file.save(watch.trace());
    }
    handle.close();
    if unmounter.join().is_err() {
        tracing::error!("the thread that waits for signals has panicked");
    }
    Ok(())
}

/// Waits until the mount is gone, or is out of the tree and used by nobody: copies of it that other mount namespaces have
/// inherited don't keep its upper, and answer with an error from then on.
fn wait(mount: Mount, point: &Path, device: Option<(u32, u32)>) {
    let Some(device) = device else { return mount.wait() };
    let mut table = Table::new();
    let private = is_private();
    let (mut ticks, mut pause) = (0_u32, 1);
    let mut there = true;
    while !mount.wait_for(LOOK) {
        ticks += 1;
        if table.has_changed() {
            there = is_mounted(device);
            (ticks, pause) = (0, 1);
        }
        // Nobody but this process is left in the namespace of the mount.
        let alone = there && private && ticks.is_multiple_of(5) && is_alone();
        if !(alone || !there && ticks.is_multiple_of(pause)) {
            continue;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        if !holders(device, point).users.is_empty() {
            continue;
        }
        if alone {
            mica_mounter::unmount_at(point).ok();
        }
        // What is in the upper in part only would be lost to its next user.
        mount.complete();
        return;
    }
    mount.wait();
}

/// The table of mounts, which tells when it changes.
struct Table(Option<File>);

impl Table {
    fn new() -> Self {
        Self(File::open("/proc/self/mountinfo").ok())
    }

    /// Whether it has changed since it was last asked; without a table that is so each time.
    fn has_changed(&mut self) -> bool {
        let Some(file) = &self.0 else { return true };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(file, PollFlags::PRI)], Some(&now)) != Ok(0)
    }
}

/// Whether the file system is mounted somewhere in this namespace.
fn is_mounted(device: (u32, u32)) -> bool {
    let Ok(text) = fs::read_to_string("/proc/self/mountinfo") else { return true };
    mountinfo::parse(&text).iter().any(|entry| entry.device == device)
}

fn namespace(pid: &str) -> Option<u64> {
    Some(rustix::fs::stat(format!("/proc/{pid}/ns/mnt")).ok()?.st_ino)
}

/// Whether this process may be in a mount namespace that can end before the machine does. Only root sees enough to tell.
fn is_private() -> bool {
    let own = namespace("self");
    rustix::process::geteuid().is_root() && own.is_some() && namespace("1") != own
}

/// Whether no other process is in this process's mount namespace, as far as it may look.
fn is_alone() -> bool {
    let Some(own) = namespace("self") else { return false };
    let me = std::process::id().to_string();
    fs::read_dir("/proc").into_iter().flatten().flatten().all(|entry| {
        let name = entry.file_name();
        match name.to_str().filter(|name| name.parse::<u32>().is_ok() && **name != me) {
            Some(pid) => namespace(pid) != Some(own),
            None => true,
        }
    })
}

/// SIGUSR1 asks for the counters, the others for the end.
fn on_signals(signals: &mut Signals, point: &Path, device: Option<(u32, u32)>, watch: &Watch) {
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
        // What lies there may be another mount by now.
        let seen = mountinfo::topmost(point).map(|seen| seen.device);
        if device.is_some() && seen != device {
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
