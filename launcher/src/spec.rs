//! What a caller asks for: a job, in words that say nothing about system calls.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bridge::Link;
use crate::cdi::Hook;
use crate::hidden::Hidden;
use crate::os;
pub(crate) use crate::view::Root;

/// A job: the program, the tree it lives in, and how it is confined.
///
/// [`Spec::new`] gives the defaults; change the fields that matter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Names the job's cgroup (`mica-<id>`); letters, digits, `-`, `_` and `.`.
    pub id: String,
    /// What the job sees as `/`.
    pub root: Root,
    /// Mount the root read-only.
    #[serde(default)]
    pub read_only: bool,
    /// The program and its arguments. A program without a slash is looked up in the job's own `PATH`.
    #[serde(with = "os::list")]
    pub argv: Vec<OsString>,
    /// The whole environment: nothing is inherited, and nothing added but `HOME` where it is missing.
    #[serde(with = "os::pairs", default)]
    pub env: Vec<(OsString, OsString)>,
    /// Working directory, inside the job's root.
    #[serde(with = "os", default = "slash")]
    pub cwd: PathBuf,
    /// `uid[:gid]`, or names from the tree's `etc/passwd` and `etc/group`. `None`: root where ids are mapped, else the caller.
    #[serde(default)]
    pub user: Option<String>,
    /// Further groups, by number or by name.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Name of the machine that the job sees.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Which namespaces are the job's own.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Ports of the host that lead into the job; for a private network. Those of a job on a bridge are the business of
    /// whoever makes the bridge.
    #[serde(default)]
    pub ports: Vec<PortForward>,
    /// A private network leads to the host, too, and to addresses of links and of cloud metadata.
    #[serde(default)]
    pub host: bool,
    /// How the job is connected; for [`Network::Bridge`].
    #[serde(default)]
    pub link: Option<Link>,
    /// How users of the job map to users outside.
    #[serde(default)]
    pub ids: IdMapping,
    /// Volumes and memory file systems, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// What the job sees of the host neither there nor in its root.
    #[serde(default)]
    pub hidden: Hidden,
    /// Files that the launcher writes for the job, such as `/etc/hosts`; the mount points are made where they are missing.
    #[serde(default)]
    pub files: Vec<GeneratedFile>,
    /// Devices beside the usual ones.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Programs of the host's that prepare the job's root; usually added by [`crate::cdi::Registry::inject`].
    #[serde(default)]
    pub hooks: Vec<Hook>,
    /// Resource limits of the whole job.
    #[serde(default)]
    pub limits: Limits,
    /// Launch without a limit that cannot be enforced, with a warning, instead of failing.
    #[serde(default)]
    pub best_effort_limits: bool,
    /// Per-process limits; never raised above what the launcher itself has.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Capabilities.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Filter of system calls.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// Forbid gaining privileges by exec (set-user-ID programs, file capabilities).
    #[serde(default = "yes")]
    pub no_new_privileges: bool,
    /// All capabilities, no filter, nothing masked. Still inside the namespaces that were asked for.
    #[serde(default)]
    pub privileged: bool,
    /// Size of `/dev/shm` in bytes.
    #[serde(default = "shm_size")]
    pub shm_size: u64,
    /// Size of `/tmp` in bytes; `None`: half of the memory, as tmpfs does by itself. `/tmp` is not replaced where `mounts` has one.
    #[serde(default)]
    pub tmp_size: Option<u64>,
    /// Mask of permission bits for new files.
    #[serde(default = "umask")]
    pub umask: u32,
    /// Added to the badness of the job's processes when memory runs out (only ever raised).
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
}

fn slash() -> PathBuf {
    "/".into()
}

fn yes() -> bool {
    true
}

fn shm_size() -> u64 {
    64 << 20
}

fn umask() -> u32 {
    0o022
}

impl Spec {
    /// A job with the default confinement.
    pub fn new(
        id: impl Into<String>,
        root: Root,
        argv: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        Self {
            id: id.into(),
            root,
            read_only: false,
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: slash(),
            user: None,
            groups: Vec::new(),
            hostname: None,
            namespaces: Namespaces::default(),
            ports: Vec::new(),
            host: false,
            link: None,
            ids: IdMapping::default(),
            mounts: Vec::new(),
            hidden: Hidden::default(),
            files: Vec::new(),
            devices: Vec::new(),
            hooks: Vec::new(),
            limits: Limits::default(),
            best_effort_limits: false,
            rlimits: Vec::new(),
            capabilities: Capabilities::default(),
            seccomp: Seccomp::default(),
            no_new_privileges: true,
            privileged: false,
            shm_size: shm_size(),
            tmp_size: None,
            umask: umask(),
            oom_score_adj: None,
        }
    }
}

/// Whether the job gets a namespace of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// Its own.
    #[default]
    New,
    /// The launcher's.
    Host,
}

/// The namespaces of a job. The mount namespace is always its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Users and capabilities.
    pub user: Namespace,
    /// Processes.
    pub pid: Namespace,
    /// System V and POSIX message queues, semaphores, shared memory.
    pub ipc: Namespace,
    /// Host name.
    pub uts: Namespace,
    /// View of the cgroup tree.
    pub cgroup: Namespace,
    /// Monotonic clocks.
    pub time: Namespace,
    /// Network.
    pub network: Network,
}

impl Default for Namespaces {
    fn default() -> Self {
        let new = Namespace::New;
        Self {
            user: new,
            pid: new,
            ipc: new,
            uts: new,
            cgroup: new,
            time: Namespace::Host,
            network: Network::Host,
        }
    }
}

/// The job's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The launcher's.
    #[default]
    Host,
    /// A network of its own with nothing but a loopback interface, which is up.
    None,
    /// A network of its own, connected to the launcher's by `pasta`: outgoing connections work, incoming ones reach the
    /// [`Spec::ports`]. Needs no root. Name servers are found at [`crate::PRIVATE_DNS`].
    Private,
    /// A network of its own, connected by [`Spec::link`] to a bridge of the host's. Needs root.
    Bridge,
}

/// A port of the host that leads to a port of a job with a private network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The host's address to listen on; `None`: all.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// Port of the host.
    pub host: u16,
    /// Port of the job.
    pub job: u16,
}

impl PortForward {
    /// Whether connections to it can be led to an address of this family.
    pub fn is_for(&self, job: IpAddr) -> bool {
        self.address.is_none_or(|address| address.is_ipv6() == job.is_ipv6())
    }
}

/// What is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// How the job's users map to the launcher's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdMapping {
    /// All ids, unchanged, where the launcher may do that; otherwise the caller's own id becomes the job's user.
    #[default]
    Auto,
    /// The caller's own id becomes the job's user, and there is no other.
    Single,
    /// These ranges. The caller needs the right to map them.
    Ranges {
        /// Users.
        uids: Vec<IdRange>,
        /// Groups.
        gids: Vec<IdRange>,
    },
}

/// A run of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id inside the namespace.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Something mounted into the job's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Mount {
    /// A directory or file of the host.
    Bind {
        /// On the host.
        #[serde(with = "os")]
        source: PathBuf,
        /// In the job.
        #[serde(with = "os")]
        target: PathBuf,
        /// Nothing below it can be written, other mounts within it included.
        #[serde(default)]
        read_only: bool,
        /// Mounts within the source come along.
        #[serde(default = "yes")]
        recursive: bool,
        /// Whether mounts made later on the host's side appear in the job (`rslave`). Never the other way round.
        #[serde(default)]
        follow: bool,
        /// Show its files with other owners than they have: those of the job's own user namespace for
        /// [`IdMapping::Auto`], so that its root is root on the volume; otherwise by the ranges, of which `outside` are the
        /// ids on the file system and `inside` those that the job sees. Needs root and a file system that can be mounted so.
        #[serde(default)]
        ids: Option<IdMapping>,
    },
    /// A file system in memory.
    Tmpfs {
        /// In the job.
        #[serde(with = "os")]
        target: PathBuf,
        /// Bytes; `None`: half of the memory.
        #[serde(default)]
        size: Option<u64>,
        /// Permission bits of its root.
        #[serde(default = "tmpfs_mode")]
        mode: u32,
        /// Mount it read-only.
        #[serde(default)]
        read_only: bool,
        /// Allow programs to be executed from it.
        #[serde(default)]
        exec: bool,
        /// Further options of the file system, as tmpfs(5) has them: `uid`, `gid`, `nr_inodes`, a `size` in per cent.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        options: Vec<(String, String)>,
    },
}

impl Mount {
    /// Where the job sees it.
    pub fn target(&self) -> &PathBuf {
        match self {
            Self::Bind { target, .. } | Self::Tmpfs { target, .. } => target,
        }
    }
}

fn tmpfs_mode() -> u32 {
    0o1777
}

/// A small file written for the job and mounted over a path of its tree, read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratedFile {
    /// In the job.
    #[serde(with = "os")]
    pub target: PathBuf,
    /// What it holds.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
}

/// A device node of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// On the host.
    #[serde(with = "os")]
    pub source: PathBuf,
    /// In the job.
    #[serde(with = "os")]
    pub target: PathBuf,
    /// What was asked for. Nothing but the node's own mode keeps the job from writing to the device.
    #[serde(default = "yes")]
    pub writable: bool,
}

/// Resource limits of the whole job; what is `None` is not limited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Memory and swap together, in bytes; equal to `memory`: no swap.
    pub memory_swap: Option<u64>,
    /// Memory that is left alone while others have more than theirs, in bytes.
    pub memory_reservation: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// Processors, in fractions of one.
    pub cpus: Option<f64>,
    /// Share of the processors against others, 1 to 10000, 100 being usual.
    pub cpu_weight: Option<u64>,
    /// Processors it may run on, as in `0-3,6`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes it may use.
    pub cpuset_mems: Option<String>,
    /// Share of block devices against others, 1 to 1000, 100 being usual.
    pub io_weight: Option<u64>,
    /// Throughput of block devices.
    pub io: Vec<IoLimit>,
}

impl Limits {
    /// True if nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over what `other` limits; the rest stays.
    pub fn change(&mut self, other: Self) {
        let Self {
            memory,
            memory_swap,
            memory_reservation,
            pids,
            cpus,
            cpu_weight,
            cpuset_cpus,
            cpuset_mems,
            io_weight,
            io,
        } = other;
        self.memory = memory.or(self.memory);
        self.memory_swap = memory_swap.or(self.memory_swap);
        self.memory_reservation = memory_reservation.or(self.memory_reservation);
        self.pids = pids.or(self.pids);
        self.cpus = cpus.or(self.cpus);
        self.cpu_weight = cpu_weight.or(self.cpu_weight);
        self.cpuset_cpus = cpuset_cpus.or(self.cpuset_cpus.take());
        self.cpuset_mems = cpuset_mems.or(self.cpuset_mems.take());
        self.io_weight = io_weight.or(self.io_weight);
        self.io.extend(io);
    }
}

/// Throughput limits of one block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimit {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read per second.
    pub read_bytes: Option<u64>,
    /// Bytes written per second.
    pub write_bytes: Option<u64>,
    /// Reads per second.
    pub read_operations: Option<u64>,
    /// Writes per second.
    pub write_operations: Option<u64>,
}

/// A per-process limit, as set by `ulimit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `nofile`, `nproc`, `core`, `memlock`, …
    pub resource: String,
    /// Soft limit; `None`: unlimited.
    pub soft: Option<u64>,
    /// Hard limit; `None`: unlimited.
    pub hard: Option<u64>,
}

/// Changes to the default set of capabilities, by name: `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Taken away, before anything is added if it is `ALL`.
    pub drop: Vec<String>,
}

/// Filter of system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// The usual set of a container, which depends on the capabilities.
    #[default]
    Default,
    /// No filter.
    Unconfined,
    /// A profile in docker's JSON form.
    Profile(String),
}
