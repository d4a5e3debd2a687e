//! The job's cgroup: made below the caller's own, limited, watched, emptied and removed.
//!
//! Three kinds of host. *Unified*: one directory with all controllers. *Version 1*: one directory per hierarchy.
//! *Hybrid*: version 1 with controllers beside a unified hierarchy with few or none; the unified directory is then made
//! as well, because it costs nothing (a process can be born in it) and brings `cgroup.kill` and `cgroup.freeze`.
//! Directories of version 1 are made only for the controllers that a limit needs: entering one takes milliseconds.
//!
//! Where no directory can be made and no limit was asked for, the job runs in its caller's cgroup.

mod layout;
mod settings;
mod usage;

use std::fs;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use serde::{Deserialize, Serialize};

pub(crate) use layout::unescape;
pub use layout::{Hierarchy, Layout};
pub use settings::{Setting, v1 as settings_v1, v2 as settings_v2};
pub use usage::Usage;

use crate::os;
use crate::spec::Limits;

/// Why a limit could not be set.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The host has no such controller where the job could use it.
    #[error("cannot limit {0}: the host has no cgroup controller {1} that this job may use")]
    NoController(&'static str, &'static str),
    /// The controller can't be switched on below the caller's own group.
    #[error("cannot limit {what}: the controller cannot be enabled in {}", .path.display())]
    Enable {
        /// What was to be limited.
        what: &'static str,
        /// The caller's own group.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The group itself could not be made.
    #[error("cannot limit {what}: cannot make the cgroup {}", .path.display())]
    Make {
        /// What was to be limited.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The value was refused.
    #[error("cannot limit {what}: cannot write {value:?} to {}", .path.display())]
    Write {
        /// What was to be limited.
        what: &'static str,
        /// The value.
        value: String,
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl LimitError {
    /// What the caller could do about it.
    pub fn hint(&self) -> &'static str {
        let source = match self {
            Self::NoController(..) => None,
            Self::Enable { source, .. }
            | Self::Make { source, .. }
            | Self::Write { source, .. } => Some(source.kind()),
        };
        match (self, source) {
            (Self::Enable { .. }, Some(io::ErrorKind::ResourceBusy)) => {
                "other processes run in the same cgroup; start this in one of its own: `systemd-run --user --scope -p Delegate=yes …`, \
                 or launch without the limit being enforced (best effort)"
            }
            (_, Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)) => {
                "an ordinary user needs a delegated cgroup: `systemd-run --user --scope -p Delegate=yes …`; \
                 otherwise launch as root, or without the limit being enforced (best effort)"
            }
            _ => "launch without the limit being enforced (best effort)",
        }
    }
}

/// The directories of a job's cgroup. Serializable, so that whoever comes after a crash can [`cleanup`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroup {
    /// In the unified hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v2: Option<Directory>,
    /// In hierarchies of version 1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub v1: Vec<Directory>,
}

/// One directory of a job's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Where it is.
    #[serde(with = "os")]
    pub path: PathBuf,
    /// The controllers of its hierarchy, in version 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<String>,
}

/// Where a launcher moves itself if it has to make room in its own group.
const LEAF: &str = "mica-supervisors";

fn what(controller: &str) -> &'static str {
    match controller {
        "memory" => "memory",
        "pids" => "the number of processes",
        "cpu" => "processor time",
        "cpuset" => "the set of processors",
        _ => "input and output",
    }
}

impl Cgroup {
    /// Makes the group `mica-<id>` below the caller's own and sets the limits.
    ///
    /// Errors are pushed to `unmet` if that is given, and end the work otherwise (then nothing is left behind).
    pub(crate) fn create(
        layout: &Layout,
        id: &str,
        limits: &Limits,
        unmet: Option<&mut Vec<LimitError>>,
    ) -> Result<Self, LimitError> {
        let mut group = Self::default();
        let mut errors = Vec::new();
        let mut layout = layout.clone();
        if let Some(own) = layout.v2.take() {
            // Moved there by an earlier launch: the job belongs beside it.
            let outer = own.parent().filter(|_| own.file_name().is_some_and(|name| name == LEAF));
            layout.v2 = Some(outer.unwrap_or(&own).to_owned());
        }
        group.make(&layout, &format!("mica-{id}"), limits, &mut errors);
        match unmet {
            Some(unmet) => unmet.append(&mut errors),
            None if errors.is_empty() => {}
            None => {
                group.remove();
                return Err(errors.swap_remove(0));
            }
        }
        Ok(group)
    }

    fn make(&mut self, layout: &Layout, name: &str, limits: &Limits, errors: &mut Vec<LimitError>) {
        let unified: Vec<String> =
            layout.v2.as_deref().map(|own| words(own, "cgroup.controllers")).unwrap_or_default();
        let wanted_v2: Vec<Setting> = settings::v2(limits)
            .into_iter()
            .filter(|s| unified.iter().any(|c| c == s.controller))
            .collect();
        if let Some(own) = &layout.v2 {
            self.make_v2(own, name, &unified, &wanted_v2, errors);
        }
        for setting in settings::v1(limits) {
            if unified.iter().any(|c| c == setting.controller) {
                continue;
            }
            if let Err(error) = self.set_v1(layout, name, &setting) {
                errors.push(error);
            }
        }
    }

    fn make_v2(
        &mut self,
        own: &Path,
        name: &str,
        unified: &[String],
        wanted: &[Setting],
        errors: &mut Vec<LimitError>,
    ) {
        let path = own.join(name);
        if let Err(source) = fs::create_dir(&path) {
            if let Some(first) = wanted.first() {
                errors.push(LimitError::Make { what: what(first.controller), path, source });
            }
            return;
        }
        self.v2 = Some(Directory { path: path.clone(), controllers: Vec::new() });
        // Counting is worth having even where nothing is limited; failing to get it is no error.
        let counted = ["memory", "pids", "cpu", "io"];
        let mut names: Vec<&str> = wanted.iter().map(|s| s.controller).collect();
        names.extend(counted.into_iter().filter(|c| unified.iter().any(|u| u == c)));
        for controller in names {
            let result = enable(own, controller);
            if let (Err(source), true) = (result, wanted.iter().any(|s| s.controller == controller))
            {
                errors.push(LimitError::Enable {
                    what: what(controller),
                    path: own.to_owned(),
                    source,
                });
            }
        }
        for setting in wanted {
            let already_said = |e: &LimitError| matches!(e, LimitError::Enable { what: w, .. } if *w == what(setting.controller));
            if errors.iter().any(already_said) {
                continue;
            }
            if let Err(error) = write_setting(&path, setting) {
                errors.push(error);
            }
        }
    }

    fn set_v1(&mut self, layout: &Layout, name: &str, setting: &Setting) -> Result<(), LimitError> {
        let what = what(setting.controller);
        let hierarchy = layout
            .hierarchy(setting.controller)
            .ok_or(LimitError::NoController(what, setting.controller))?;
        let path = hierarchy.path.join(name);
        if !self.v1.iter().any(|d| d.path == path) {
            fs::create_dir(&path).map_err(|source| LimitError::Make {
                what,
                path: path.clone(),
                source,
            })?;
            self.v1
                .push(Directory { path: path.clone(), controllers: hierarchy.controllers.clone() });
            if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                inherit_cpuset(&hierarchy.path, &path);
            }
        }
        write_setting(&path, setting)
    }

    /// Changes limits of a running job; what is `None` stays as it is. A limit can be changed whose controller the job was
    /// started with.
    ///
    /// # Errors
    /// The first limit that can't be set. Those before it are set.
    pub fn update(&self, limits: &Limits) -> Result<(), LimitError> {
        let v1 = settings::v1(limits);
        let of = |setting: &Setting| {
            let has = |d: &&Directory| d.controllers.iter().any(|c| c == setting.controller);
            self.v1.iter().find(has).map(|directory| &directory.path)
        };
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            v1.iter().partition(|setting| of(setting).is_some());
        for setting in here {
            if let Some(path) = of(setting) {
                write_setting(path, setting)?;
            }
        }
        for setting in settings::v2(limits) {
            if !elsewhere.iter().any(|known| what(known.controller) == what(setting.controller)) {
                continue;
            }
            let missing = LimitError::NoController(what(setting.controller), setting.controller);
            let own = self.v2.as_ref().filter(|own| own.path.join(setting.file).exists());
            write_setting(&own.ok_or(missing)?.path, &setting)?;
        }
        Ok(())
    }

    /// A descriptor for `CLONE_INTO_CGROUP`.
    pub(crate) fn birthplace(&self) -> Option<OwnedFd> {
        let path = &self.v2.as_ref()?.path;
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .ok()
    }

    /// The files of version 1 by which a thread moves itself in, in the order of the directories.
    pub(crate) fn entrances(&self) -> Result<Vec<fs::File>, (PathBuf, io::Error)> {
        let open = |directory: &Directory| {
            let path = directory.path.join("tasks");
            fs::OpenOptions::new().write(true).open(&path).map_err(|source| (path, source))
        };
        self.v1.iter().map(open).collect()
    }

    /// What the job has used up to now.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        let read = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).ok();
        for directory in &self.v1 {
            usage.read_v1(&directory.controllers, |file| read(&directory.path, file));
        }
        if let Some(directory) = &self.v2 {
            usage.read_v2(|file| read(&directory.path, file));
        }
        usage
    }

    /// Stops all processes of the job where they are, or lets them go on.
    ///
    /// # Errors
    /// No cgroup of the job has a freezer.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        let directory = self.v2.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let mut events = fs::File::open(directory.path.join("cgroup.events"))?;
        write(&directory.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if text.lines().any(|line| line == wanted) {
                return Ok(());
            }
            // The kernel wakes us when the file has changed since we read it.
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            if retry_on_intr(|| poll(&mut fds, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Kills every process in the group.
    pub fn kill(&self) {
        if let Some(directory) = &self.v2
            && write(&directory.path.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for directory in self.v2.iter().chain(&self.v1) {
            for pid in words(&directory.path, "cgroup.procs") {
                if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                    // One that is gone by now is what we want.
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
                }
            }
        }
    }

    /// Removes the directories; processes that are still dying are waited for, up to a second. True if all are gone.
    pub fn remove(&self) -> bool {
        self.remove_within(Duration::from_secs(1))
    }

    fn remove_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        self.v2.iter().chain(&self.v1).all(|directory| remove_tree(&directory.path, deadline))
    }
}

/// Kills and removes what a job left behind whose supervisor was killed. True if nothing is left.
pub fn cleanup(group: &Cgroup) -> bool {
    // Two rounds: between reading the list of processes and killing them, one may fork.
    [100, 500].into_iter().any(|ms| {
        group.kill();
        group.remove_within(Duration::from_millis(ms))
    })
}

/// Removes a group with the groups that the job itself made in it.
fn remove_tree(path: &Path, deadline: Instant) -> bool {
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
            Err(_) if Instant::now() > deadline => return false,
            Err(_) => {}
        }
        let children = fs::read_dir(path).into_iter().flatten().flatten();
        for child in children.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())) {
            remove_tree(&child.path(), deadline);
        }
        if fs::remove_dir(path).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Version 1 gives a new cpuset no processors and no memory at all.
fn inherit_cpuset(parent: &Path, child: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read_to_string(parent.join(file)) {
            // A failure shows up when the process enters the group, with its own message.
            write(&child.join(file), value.trim()).ok();
        }
    }
}

/// Switches a controller on for the children of `own`.
fn enable(own: &Path, controller: &str) -> io::Result<()> {
    if words(own, "cgroup.subtree_control").iter().any(|c| c == controller) {
        return Ok(());
    }
    let file = own.join("cgroup.subtree_control");
    match write(&file, &format!("+{controller}")) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy && make_room(own)? => {
            write(&file, &format!("+{controller}"))
        }
        result => result,
    }
}

/// A group with processes can't hand controllers down. If all its processes are ours, they move into a leaf;
/// true if so.
fn make_room(own: &Path) -> io::Result<bool> {
    let processes = words(own, "cgroup.procs");
    let me = std::process::id().to_string();
    if !delegated(own) && processes.iter().any(|pid| *pid != me) {
        return Ok(false);
    }
    let leaf = own.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for pid in processes {
        match write(&leaf.join("cgroup.procs"), &pid) {
            // It ended meanwhile.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            result => result?,
        }
    }
    Ok(true)
}

/// Is everything in this group ours to arrange? systemd marks the groups that it hands over. To an ordinary user, whatever
/// that user may write was handed over; the machine's root may write everything.
fn delegated(own: &Path) -> bool {
    let marked = ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0u8; 1];
        rustix::fs::getxattr(own, *name, &mut value)
            .is_ok_and(|length| length == 1 && value == *b"1")
    });
    let host_root = rustix::process::geteuid().is_root()
        && fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    marked || !host_root
}

fn write_setting(directory: &Path, setting: &Setting) -> Result<(), LimitError> {
    let path = directory.join(setting.file);
    write(&path, &setting.value).map_err(|source| LimitError::Write {
        what: what(setting.controller),
        value: setting.value.clone(),
        path,
        source,
    })
}

/// Writes in one call, as the kernel's files want it, and never creates a file.
fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn words(directory: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}
