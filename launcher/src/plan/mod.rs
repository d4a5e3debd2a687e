//! From a [`Spec`] and the facts to the list of steps: no system calls here.
//!
//! The order matters. Targets are looked up inside the new root, so whatever holds a target is mounted first; what the
//! caller asked for comes after the defaults and may cover them; the root is made read-only last, when every mount point exists.

mod root;

use std::path::{Component, Path, PathBuf};

use crate::caps::{CapabilitySet, UnknownCapability};
use crate::facts::HostFacts;
use crate::ids::{IdMaps, UserError};
use crate::names;
use crate::process::Process;
use crate::rlimits::UnknownResource;
use crate::seccomp::ProfileError;
use crate::spec::{IdMapping, Mount, Namespace, Network, Root, Spec};
use crate::step::{Flags, Step};
pub(crate) use root::mounted_names;
use root::{hands_over, hide, root, targets};

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
    /// Something to be mounted over the root itself.
    #[error("nothing can be mounted at / itself; what the job has there is its stack")]
    AtRoot,
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
    /// Without the program, a private network would lead to the host.
    #[error("a private network needs the program nft, to keep the job off the host")]
    NoFilter,
    /// Ports can only be published from a network of the job's own that leads somewhere.
    #[error("ports can be published only from a private or a bridge network")]
    Ports,
    /// A volume with the ids of a user namespace that the job doesn't have.
    #[error("the job shares the host's users, so there are no ids to map for the volume {}", .0.display())]
    VolumeIds(PathBuf),
    /// A volume from where mica keeps what no job may see.
    #[error("{} is mica's own, and hidden from jobs", .0.display())]
    Hidden(PathBuf),
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
    surroundings(spec, ids.as_ref(), &mut steps);
    if spec.namespaces.network == Network::Private && !spec.host {
        let own = &facts.own_network;
        let program = own.filter.clone().ok_or(PlanError::NoFilter)?;
        steps.insert(0, Step::Filter { program, rules: own.rules() });
    }
    root(spec, facts, &mut steps);
    kernel_filesystems(spec, facts, tty_group, &mut steps);
    check_sources(facts)?;
    requested(spec, facts, &mut steps);
    if !spec.hooks.is_empty() {
        steps.push(Step::Hooks(spec.hooks.clone()));
    }
    if !spec.privileged {
        steps.extend(MASKED.map(|path| Step::Mask(path.into())));
        steps.extend(READ_ONLY.map(|path| Step::ReadOnly(path.into())));
    }
    // A root that was put together is ours, and nobody's to write to.
    let put_together = steps.iter().any(|step| matches!(step, Step::EmptyRoot { .. }));
    if spec.read_only || put_together {
        steps.push(Step::ReadOnlyRoot);
    }
    steps.push(Step::Pivot);
    // Who has this capability may unmount. Nobody can be kept from that who is root of the host itself.
    if own_users && process.capabilities.has("SYS_ADMIN") {
        steps.push(Step::Lock);
    }
    Ok(Plan { steps, hands_over: hands_over(spec), ids, process })
}

const TTY_GROUP: u32 = 5;

/// The highest group that a range of groups can name (`GID_T_MAX`).
pub(crate) const LAST_GROUP: u32 = (1 << 31) - 1;

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
    if targets(spec).any(|path| path.components().count() < 2) {
        return Err(PlanError::AtRoot);
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

/// No volume comes from within a folder that is hidden.
fn check_sources(facts: &HostFacts) -> Result<(), PlanError> {
    for (source, real) in &facts.sources {
        let hidden = facts.hidden.iter().any(|path| real.starts_with(path));
        if hidden && !facts.not_hidden.iter().any(|but| real.starts_with(but)) {
            return Err(PlanError::Hidden(source.clone()));
        }
    }
    Ok(())
}

fn surroundings(spec: &Spec, ids: Option<&IdMaps>, steps: &mut Vec<Step>) {
    if spec.namespaces.cgroup == Namespace::New {
        steps.push(Step::CgroupNamespace);
    }
    if let (Some(name), Namespace::New) = (&spec.hostname, spec.namespaces.uts) {
        steps.push(Step::Hostname(name.clone()));
    }
    if matches!(spec.namespaces.network, Network::None | Network::Bridge) {
        steps.push(Step::Loopback);
    }
    if spec.namespaces.network != Network::Host {
        let (first, last) = ids.map_or((0, LAST_GROUP), IdMaps::all_groups);
        steps.push(Step::Ping { first, last });
    }
    if let Some(link) = &spec.link {
        steps.push(Step::Addresses(link.addresses()));
    }
    steps.push(Step::PrivateMounts);
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
        exact: false,
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

fn requested(spec: &Spec, facts: &HostFacts, steps: &mut Vec<Step>) {
    for mount in &spec.mounts {
        match mount {
            Mount::Bind { source, target, read_only, recursive, follow, ids } => {
                let real = facts.sources.get(source);
                steps.push(Step::Bind {
                    source: real.unwrap_or(source).clone(),
                    target: target.clone(),
                    flags: Flags {
                        no_devices: !spec.privileged,
                        no_suid: true,
                        ..Flags::default()
                    }
                    .read_only(*read_only),
                    recursive: *recursive,
                    follow: *follow || real.is_some_and(|real| facts.mounts_on_demand(real)),
                    exact: real.is_some(),
                    ids: ids.clone(),
                });
                if let Some(real) = real {
                    hide(facts, real, target, steps);
                }
            }
            Mount::Tmpfs { target, size, mode, read_only, exec, options } => {
                let flags = Flags { no_exec: !exec, ..Flags::DATA }.read_only(*read_only);
                let mut step = tmpfs(target, flags, *size, *mode);
                if let Step::Filesystem { options: all, .. } = &mut step {
                    all.extend_from_slice(options);
                }
                steps.push(step);
            }
        }
    }
    for device in &spec.devices {
        steps.push(Step::Bind {
            source: device.source.clone(),
            target: device.target.clone(),
            flags: NODE,
            recursive: true,
            follow: false,
            exact: false,
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
