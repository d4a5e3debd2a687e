//! From a [`Spec`] and the facts to the list of steps: no system calls here.
//!
//! The order matters. Targets are looked up inside the new root, so whatever holds a target is mounted first; what the
//! caller asked for comes after the defaults and may cover them; the root is made read-only last, when every mount point exists.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::caps::{CapabilitySet, UnknownCapability};
use crate::facts::{EntryKind, HostFacts};
use crate::ids::{IdMaps, UserError};
use crate::names;
use crate::process::Process;
use crate::rlimits::UnknownResource;
use crate::seccomp::ProfileError;
use crate::spec::{IdMapping, Mount, Namespace, Network, Root, Spec};
use crate::step::{Flags, Step};

/// What a launch will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Carried out in the job's namespaces before its program starts.
    pub steps: Vec<Step>,
    /// The launcher opens all that is to be mounted, as the init may not.
    pub hands_over: bool,
    /// The maps of the job's user namespace, if it gets one.
    pub ids: Option<IdMaps>,
    /// The program and the rights it starts with.
    pub process: Process,
}

/// A job that makes no sense, found before anything was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing to run.
    #[error("no program to run")]
    NoProgram,
    /// Names a cgroup, so it can't be just anything.
    #[error("{0:?} cannot name a job")]
    Id(String),
    /// Names end up in files of lines and on terminals.
    #[error("{0:?} cannot name a machine")]
    HostName(String),
    /// Files written for a job are small ones.
    #[error("the files to write for the job hold {0} bytes, more than they may")]
    Files(u64),
    /// A path in the job that isn't absolute, or climbs.
    #[error("{} is not an absolute path without ..", .0.display())]
    Path(PathBuf),
    /// [`Root::Host`] at the root itself.
    #[error("the tree cannot be mounted at {} in the host's root", .0.display())]
    TreeAt(PathBuf),
    /// A NUL byte in an argument or a variable.
    #[error("{0} holds a NUL byte")]
    Nul(String),
    /// A variable without a name, or with `=` in it.
    #[error("{0:?} cannot name a variable of the environment")]
    Variable(String),
    /// No such user or group.
    #[error("cannot find the job's user")]
    User(#[from] UserError),
    /// The user has no meaning in the job's user namespace.
    #[error("user {uid} with group {gid} is not mapped in the job's user namespace")]
    Unmapped {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// No such capability.
    #[error("cannot work out the job's capabilities")]
    Capability(#[from] UnknownCapability),
    /// No such resource.
    #[error("cannot work out the job's ulimits")]
    Resource(#[from] UnknownResource),
    /// A seccomp profile that can't be used.
    #[error("cannot use the seccomp profile")]
    Profile(#[from] ProfileError),
    /// Ports can only be published from a network of the job's own that leads somewhere.
    #[error("ports can be published only from a private or a bridge network")]
    Ports,
    /// A volume with the ids of a user namespace that the job doesn't have.
    #[error("the job shares the host's users, so there are no ids to map for the volume {}", .0.display())]
    VolumeIds(PathBuf),
    /// A bridge network without a bridge, or the other way round.
    #[error("a job on a bridge network, and no other, needs a link to the bridge")]
    Link,
    /// A limit without a sensible value.
    #[error("{value} is no sensible limit for {what}")]
    Limit {
        /// What was to be limited.
        what: &'static str,
        /// The value.
        value: String,
    },
}

/// Works out how to launch a job.
///
/// # Errors
/// The job makes no sense.
pub fn plan(spec: &Spec, facts: &HostFacts) -> Result<Plan, PlanError> {
    check(spec)?;
    let process = Process::of_job(spec, facts)?;
    let own_users = spec.namespaces.user == Namespace::New;
    let ids = own_users.then(|| facts.caller.maps(&spec.ids, Some((process.uid, process.gid))));
    if ids.as_ref().is_some_and(|maps| !maps.covers(process.uid, process.gid)) {
        return Err(PlanError::Unmapped { uid: process.uid, gid: process.gid });
    }
    let tty_group = match &ids {
        Some(maps) => maps.covers(process.uid, TTY_GROUP),
        None => facts.caller.has_group(TTY_GROUP),
    };
    let mut steps = Vec::new();
    surroundings(spec, &mut steps);
    root(spec, facts, &mut steps);
    kernel_filesystems(spec, facts, tty_group, &mut steps);
    requested(spec, &mut steps);
    if !spec.hooks.is_empty() {
        steps.push(Step::Hooks(spec.hooks.clone()));
    }
    if !spec.privileged {
        steps.extend(MASKED.map(|path| Step::Mask(path.into())));
        if spec.namespaces.pid == Namespace::New {
            steps.extend(READ_ONLY.map(|path| Step::ReadOnly(path.into())));
        }
    }
    // A root that was put together is ours, and nobody's to write to.
    let put_together = steps.iter().any(|step| matches!(step, Step::EmptyRoot { .. }));
    if spec.read_only || put_together {
        steps.push(Step::ReadOnlyRoot);
    }
    steps.push(Step::Pivot);
    Ok(Plan { steps, hands_over: hands_over(spec), ids, process })
}

const TTY_GROUP: u32 = 5;

/// Hidden from jobs, as runc does by default.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Kept from being written, as runc does by default.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Whether the job makes sense, as far as that doesn't depend on the host.
pub(crate) fn check(spec: &Spec) -> Result<(), PlanError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if spec.id.is_empty() || spec.id.len() > 128 || !spec.id.chars().all(good) {
        return Err(PlanError::Id(spec.id.clone()));
    }
    names::check(spec)?;
    for path in targets(spec).chain([&spec.cwd]) {
        if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
            return Err(PlanError::Path(path.clone()));
        }
    }
    if let Root::Host { at, .. } = &spec.root {
        let plain = at.components().skip(1).all(|c| matches!(c, Component::Normal(_)));
        if !at.is_absolute() || !plain || at.components().count() < 3 {
            return Err(PlanError::TreeAt(at.clone()));
        }
    }
    let network = spec.namespaces.network;
    if !spec.ports.is_empty() && matches!(network, Network::Host | Network::None) {
        return Err(PlanError::Ports);
    }
    if spec.link.is_some() != (network == Network::Bridge) {
        return Err(PlanError::Link);
    }
    for mount in &spec.mounts {
        if let Mount::Bind { source, ids: Some(IdMapping::Auto | IdMapping::Single), .. } = mount
            && spec.namespaces.user == Namespace::Host
        {
            return Err(PlanError::VolumeIds(source.clone()));
        }
    }
    let limits = &spec.limits;
    let zero = |what, value: Option<u64>| match value {
        Some(0) => Err(PlanError::Limit { what, value: "0".into() }),
        _ => Ok(()),
    };
    zero("memory", limits.memory)?;
    zero("the number of processes", limits.pids)?;
    match limits.cpus {
        Some(cpus) if !(cpus.is_finite() && cpus >= 0.01) => {
            Err(PlanError::Limit { what: "processor time", value: cpus.to_string() })
        }
        _ => Ok(()),
    }?;
    match (limits.memory, limits.memory_swap) {
        (memory, Some(both)) if memory.is_none_or(|memory| both < memory) => {
            Err(PlanError::Limit {
                what: "memory with swap, which must be at least that for memory",
                value: both.to_string(),
            })
        }
        _ => Ok(()),
    }
}

fn surroundings(spec: &Spec, steps: &mut Vec<Step>) {
    if spec.namespaces.cgroup == Namespace::New {
        steps.push(Step::CgroupNamespace);
    }
    if let (Some(name), Namespace::New) = (&spec.hostname, spec.namespaces.uts) {
        steps.push(Step::Hostname(name.clone()));
    }
    if matches!(spec.namespaces.network, Network::None | Network::Bridge) {
        steps.push(Step::Loopback);
    }
    if let Some(link) = &spec.link {
        steps.push(Step::Addresses(link.addresses()));
    }
    steps.push(Step::PrivateMounts);
}

fn root(spec: &Spec, facts: &HostFacts, steps: &mut Vec<Step>) {
    match &spec.root {
        Root::Tree(tree) if facts.root_entries.is_empty() => {
            let (tree, at) = (tree.clone(), staging(spec, tree));
            steps.push(Step::Root { tree, at, no_devices: !spec.privileged });
        }
        Root::Tree(tree) => {
            steps.push(Step::EmptyRoot { at: staging(spec, tree) });
            let flags = Flags { no_devices: !spec.privileged, ..Flags::default() };
            entries(facts, tree, flags, |name| KERNEL.iter().any(|own| name == *own), steps);
        }
        Root::Host { tree, at } => {
            steps.push(Step::EmptyRoot { at: staging(spec, tree) });
            let covered = at.components().nth(1).map(Component::as_os_str);
            let fresh =
                |name: &OsStr| FRESH.iter().any(|fresh| name == *fresh) || Some(name) == covered;
            entries(facts, Path::new("/"), Flags::DATA.read_only(true), fresh, steps);
            // What lives in /run talks to daemons of the host: a read-only bind doesn't stop a connect().
            steps.push(tmpfs("/run", Flags::STRICT, None, 0o755));
            steps.push(Step::Bind {
                source: tree.clone(),
                target: at.clone(),
                flags: Flags::DATA.read_only(spec.read_only),
                recursive: true,
                follow: false,
                ids: None,
            });
            if let Some((target, content)) = &facts.resolv_conf {
                steps.push(Step::File {
                    target: target.clone(),
                    content: content.clone(),
                    mode: 0o644,
                });
            }
        }
    }
}

/// Where the new root is attached until it becomes `/`: over the tree itself, unless it may be out of the init's reach.
fn staging(spec: &Spec, tree: &Path) -> PathBuf {
    match hands_over(spec) {
        true => "/tmp".into(),
        false => tree.to_owned(),
    }
}

/// Must the launcher itself open what is mounted? The init of a job with ids of its own is nobody outside.
fn hands_over(spec: &Spec) -> bool {
    spec.namespaces.user == Namespace::New && matches!(spec.ids, IdMapping::Ranges { .. })
}

/// Entries of the host's root that a job gets afresh, or not at all.
const FRESH: [&str; 6] = ["dev", "proc", "run", "sys", "tmp", "lost+found"];

/// Directories of every root on which something is mounted in any case.
const KERNEL: [&str; 4] = ["dev", "proc", "sys", "tmp"];

/// The first components of all paths on which something is mounted.
pub(crate) fn mounted_names(spec: &Spec) -> Vec<&OsStr> {
    let own = KERNEL.iter().map(OsStr::new);
    own.chain(targets(spec).filter_map(|path| path.components().nth(1)).map(Component::as_os_str))
        .collect()
}

fn targets(spec: &Spec) -> impl Iterator<Item = &PathBuf> {
    let mounts = spec.mounts.iter().map(Mount::target);
    mounts.chain(spec.files.iter().map(|f| &f.target)).chain(spec.devices.iter().map(|d| &d.target))
}

/// Shows the entries of a directory in the new root, but for those that the job gets otherwise.
fn entries(
    facts: &HostFacts,
    from: &Path,
    flags: Flags,
    but: impl Fn(&OsStr) -> bool,
    steps: &mut Vec<Step>,
) {
    for entry in facts.root_entries.iter().filter(|entry| !but(&entry.name)) {
        let target = Path::new("/").join(&entry.name);
        steps.push(match &entry.kind {
            EntryKind::Symlink(to) => Step::Symlink { target, to: to.clone() },
            EntryKind::Bind => Step::Bind {
                source: from.join(&entry.name),
                target,
                flags,
                recursive: true,
                follow: false,
                ids: None,
            },
        });
    }
}

fn tmpfs(target: impl Into<PathBuf>, flags: Flags, size: Option<u64>, mode: u32) -> Step {
    let mut options = vec![("mode".to_owned(), format!("{mode:o}"))];
    options.extend(size.map(|size| ("size".to_owned(), size.to_string())));
    Step::Filesystem { kind: "tmpfs".into(), target: target.into(), flags, options }
}

/// A file system of the kernel's.
fn kernel(kind: &str, target: &str, flags: Flags, options: &[(&str, &str)]) -> Step {
    Step::Filesystem {
        kind: kind.into(),
        target: target.into(),
        flags,
        options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    }
}

/// The same path of the host.
fn host(path: &str, flags: Flags) -> Step {
    Step::Bind {
        source: path.into(),
        target: path.into(),
        flags,
        recursive: true,
        follow: false,
        ids: None,
    }
}

fn kernel_filesystems(spec: &Spec, facts: &HostFacts, tty_group: bool, steps: &mut Vec<Step>) {
    let strict = Flags::STRICT;
    let own = |namespace| namespace == Namespace::New;
    steps.push(if own(spec.namespaces.pid) {
        kernel("proc", "/proc", strict, &[])
    } else {
        host("/proc", strict)
    });
    let fresh = spec.namespaces.network != Network::Host;
    steps.push(Step::Sysfs { fresh, writable: spec.privileged });
    if own(spec.namespaces.cgroup) {
        cgroup_filesystems(spec, facts, steps);
    }
    device_filesystems(spec, tty_group, steps);
    steps.push(tmpfs("/dev/shm", strict, Some(spec.shm_size), 0o1777));
    if own(spec.namespaces.ipc) {
        steps.push(kernel("mqueue", "/dev/mqueue", strict, &[]));
    } else if facts.message_queues {
        steps.push(host("/dev/mqueue", strict));
    }
    steps.push(tmpfs("/tmp", Flags::DATA, spec.tmp_size, 0o1777));
}

/// A node of the host's: what is read-only is its mode, owner and times, which would change for everybody. What is written
/// to it reaches the device all the same.
const NODE: Flags = Flags { read_only: true, no_suid: true, no_devices: false, no_exec: true };

fn device_filesystems(spec: &Spec, tty_group: bool, steps: &mut Vec<Step>) {
    let device = Flags { no_suid: true, no_exec: true, ..Flags::default() };
    // The nodes are mounts of their own; a node that the job makes beside them has no effect.
    let directory = Flags { no_suid: true, no_devices: !spec.privileged, ..Flags::default() };
    steps.push(tmpfs("/dev", directory, Some(64 << 10), 0o755));
    for node in ["null", "zero", "full", "random", "urandom", "tty"] {
        steps.push(host(&format!("/dev/{node}"), NODE));
    }
    let mut terminals = vec![("ptmxmode", "0666"), ("mode", "0620")];
    if tty_group {
        terminals.push(("gid", "5"));
    }
    steps.push(kernel("devpts", "/dev/pts", device, &terminals));
    for (link, to) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
    ] {
        steps.push(Step::Symlink { target: Path::new("/dev").join(link), to: to.into() });
    }
}

/// `/sys/fs/cgroup` as seen from the job's own group: where runtimes of languages look their limits up.
fn cgroup_filesystems(spec: &Spec, facts: &HostFacts, steps: &mut Vec<Step>) {
    let flags = Flags::STRICT.read_only(!spec.privileged);
    let mount = |kind: &str, target: PathBuf, options| Step::Filesystem {
        kind: kind.into(),
        target,
        flags,
        options,
    };
    let at = Path::new("/sys/fs/cgroup");
    if facts.cgroups.v1.is_empty() {
        if facts.cgroups.v2.is_some() {
            steps.push(mount("cgroup2", at.to_owned(), Vec::new()));
        }
        return;
    }
    steps.push(tmpfs(at, Flags::STRICT, Some(64 << 10), 0o755));
    for hierarchy in &facts.cgroups.v1 {
        if hierarchy
            .controllers
            .iter()
            .any(|c| ["memory", "cpu", "cpuacct", "cpuset", "pids"].contains(&c.as_str()))
        {
            let options =
                hierarchy.controllers.iter().map(|c| (c.clone(), String::new())).collect();
            steps.push(mount("cgroup", at.join(hierarchy.controllers.join(",")), options));
        }
    }
    steps.push(Step::ReadOnly(at.to_owned()));
}

fn requested(spec: &Spec, steps: &mut Vec<Step>) {
    for mount in &spec.mounts {
        steps.push(match mount {
            Mount::Bind { source, target, read_only, recursive, follow, ids } => Step::Bind {
                source: source.clone(),
                target: target.clone(),
                flags: Flags { no_devices: !spec.privileged, no_suid: true, ..Flags::default() }
                    .read_only(*read_only),
                recursive: *recursive,
                follow: *follow,
                ids: ids.clone(),
            },
            Mount::Tmpfs { target, size, mode, read_only, exec } => tmpfs(
                target,
                Flags { no_exec: !exec, ..Flags::DATA }.read_only(*read_only),
                *size,
                *mode,
            ),
        });
    }
    for device in &spec.devices {
        steps.push(Step::Bind {
            source: device.source.clone(),
            target: device.target.clone(),
            flags: NODE,
            recursive: true,
            follow: false,
            ids: None,
        });
    }
    for file in &spec.files {
        steps.push(Step::File {
            target: file.target.clone(),
            content: file.content.clone(),
            mode: file.mode,
        });
    }
}

/// The capabilities of the job's program.
pub(crate) fn capabilities(spec: &Spec) -> Result<CapabilitySet, UnknownCapability> {
    CapabilitySet::of(&spec.capabilities, spec.privileged)
}
