//! The flags of `mica run`, with the values people know from docker.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mica_agent::{Attachment, HealthCheck, Restart};
use mica_graph::HealthCheck as PackageCheck;
use mica_launcher::{Mount, PortForward, Rlimit};

use super::log::Log;
use super::mounts::{ImageFlag, Volume, parse_mount, parse_tmpfs, parse_volume};
use super::values::{
    DeviceFlag, Entrypoint, Limit, as_ms, parse_count, parse_cpus, parse_device, parse_duration,
    parse_entrypoint, parse_host, parse_host_name, parse_init, parse_mode, parse_network,
    parse_pair, parse_port, parse_size, parse_swap, parse_ulimit, parse_userns,
};
use crate::registries::RegistryFlags;
use crate::signals;
use crate::terminal::DetachKeys;
use crate::verbs::pull::LazyFlags;

/// Run a package, or image files, as a confined job
///
/// Flags stop at the reference: what follows it goes to the program. Exit codes: the job's own; 125 mica
/// failed; 126 the program cannot be executed; 127 it was not found; 128+n it was killed by signal n.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "mica run [OPTIONS] REF [--] [ARGS]...\n       mica run [OPTIONS] --image TOP [--image BASE]... [--] COMMAND [ARGS]..."
)]
pub(crate) struct Args {
    /// The package (`A`, `A@tag`, `A@commit` or a beginning of one) and its arguments
    #[arg(value_name = "REF", trailing_var_arg = true)]
    pub(super) words: Vec<OsString>,
    /// Run from image files instead of a package, topmost first
    #[arg(long = "image", value_name = "FILE")]
    pub(super) images: Vec<PathBuf>,
    /// The stack becomes the job's `/`, instead of a folder below /packages beside the host's programs
    #[arg(long)]
    pub(super) rootfs: bool,
    /// Show the host's whole root, read-only, where a stack without a root of its own gets the host's programs only (the
    /// setting host-paths). A job can connect to sockets that it sees, and lock files, whatever is read-only
    #[arg(long, conflicts_with = "rootfs")]
    pub(super) host_root: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    #[command(flatten)]
    pub(super) lazy: LazyFlags,
    /// When to ask the registry
    #[arg(long, value_enum, default_value_t = PullWhen::Missing, value_name = "WHEN")]
    pub(super) pull: PullWhen,
    /// Print what would be done to start the job, and don't
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Use the flags that the package recommends in its label mica.run.flags; those given here win. Flags that weaken the
    /// job's confinement or reach the host need --yes, or a `[[recommended]]` rule in the settings
    #[arg(long)]
    pub(super) recommended: bool,
    /// With --recommended: accept whatever the package recommends
    #[arg(short = 'y', long)]
    pub(super) yes: bool,
    /// Print no warnings and no progress
    #[arg(short, long)]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) life: Life,
    #[command(flatten)]
    pub(super) log: Log,
    #[command(flatten)]
    pub(super) health: Health,
    #[command(flatten)]
    pub(super) process: Process,
    #[command(flatten)]
    pub(super) storage: Storage,
    #[command(flatten)]
    pub(super) confinement: Confinement,
}

/// When to ask the registry for a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PullWhen {
    /// Every time
    Always,
    /// When the cache doesn't have it
    Missing,
    /// Never
    Never,
}

/// How the job lives.
#[derive(Debug, clap::Args)]
pub(super) struct Life {
    /// Print the job's id and leave it running
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Connect standard input; of a detached job, keep it open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the job a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Keys by which to let go of the job
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(super) detach_keys: DetachKeys,
    /// Remove the job's record, log and upper when it ends
    #[arg(long)]
    pub(super) rm: bool,
    /// What to do when the program ends: no, on-failure, on-failure:N, always or unless-stopped
    #[arg(long, default_value = "no", value_name = "POLICY", conflicts_with = "rm")]
    pub(super) restart: Restart,
    /// An init reaps processes and passes signals on; every job has one
    #[arg(long, value_parser = parse_init, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_name = "true")]
    init: Option<bool>,
    /// Name of the job
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Signal with which `mica stop` asks the job to end
    ///
    /// [default: the package's, or TERM]
    #[arg(long, value_parser = signals::parse, value_name = "SIGNAL")]
    pub(super) stop_signal: Option<i32>,
    /// Seconds until `mica stop` kills the job [default: the package's, or 10]
    #[arg(long, value_name = "SECONDS")]
    pub(super) stop_timeout: Option<u64>,
    /// Note to keep with the job, as NAME=VALUE
    #[arg(short, long = "label", value_parser = parse_pair, value_name = "NAME=VALUE")]
    pub(super) labels: Vec<(String, String)>,
}

/// How to find out whether the job works.
#[derive(Debug, clap::Args)]
pub(super) struct Health {
    #[command(flatten)]
    flags: HealthFlags,
    /// Don't run the package's own health check
    #[arg(long, conflicts_with = "health_cmd")]
    no_healthcheck: bool,
}

/// A health check, for a job or for all jobs of a package.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct HealthFlags {
    /// Shell command that exits with 0 while the job is healthy [default: the package's check]
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two checks, as in 500ms, 30s, 1m30s [default: the package's, or 30s]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    health_interval: Option<Duration>,
    /// A check that takes longer has failed [default: the package's, or 30s]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    health_timeout: Option<Duration>,
    /// Failures don't count so soon after the start [default: the package's, or 0s]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    health_start_period: Option<Duration>,
    /// So many failures in a row make the job unhealthy [default: the package's, or 3]
    #[arg(long, value_name = "N")]
    health_retries: Option<u32>,
}

impl Health {
    /// What the flags say, and where they say nothing, the package.
    pub(super) fn check(&self, package: Option<&PackageCheck>) -> Option<HealthCheck> {
        if self.no_healthcheck {
            return None;
        }
        let check = self.flags.over(package.cloned())?;
        Some(HealthCheck {
            command: check.command,
            interval_ms: check.interval_ms.unwrap_or(30_000),
            timeout_ms: check.timeout_ms.unwrap_or(30_000),
            start_period_ms: check.start_period_ms.unwrap_or(0),
            retries: check.retries.unwrap_or(3),
        })
    }
}

impl HealthFlags {
    /// What the flags say, and where they say nothing, the package.
    pub(crate) fn over(&self, package: Option<PackageCheck>) -> Option<PackageCheck> {
        // A command given here has its own times, not those of the package's command.
        let mut check = self.health_cmd.as_deref().map(PackageCheck::shell).or(package)?;
        check.interval_ms = self.health_interval.map(as_ms).or(check.interval_ms);
        check.timeout_ms = self.health_timeout.map(as_ms).or(check.timeout_ms);
        check.start_period_ms = self.health_start_period.map(as_ms).or(check.start_period_ms);
        check.retries = self.health_retries.or(check.retries);
        Some(check)
    }

    /// Whether they say how a command is used, whichever that is.
    pub(crate) fn need_a_command(&self) -> bool {
        let times = [self.health_interval, self.health_timeout, self.health_start_period];
        self.health_retries.is_some() || times.iter().any(Option::is_some)
    }
}

/// What runs.
#[derive(Debug, clap::Args)]
pub(super) struct Process {
    /// Set an environment variable; NAME alone takes the host's value
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<OsString>,
    /// Read environment variables from a file, one NAME=VALUE a line
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Inherit the host's environment
    #[arg(long)]
    pub(super) env_host: bool,
    /// Working directory in the job
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<PathBuf>,
    /// User, and group, by number or by a name in the stack
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Program to start instead of the package's own, or as a JSON list with its first arguments; empty for none, so that
    /// the arguments are the whole command
    #[arg(long, value_parser = parse_entrypoint, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<Entrypoint>,
    /// Name of the machine that the job sees [default: the job's id]
    #[arg(long, value_parser = parse_host_name, value_name = "NAME")]
    pub(super) hostname: Option<String>,
}

/// Which files the job sees beside the stack.
#[derive(Debug, clap::Args)]
pub(super) struct Storage {
    /// Mount the stack read-only, without a writable layer
    #[arg(long)]
    pub(super) read_only: bool,
    /// When to compare what is read with the images' chunk tables: never, first-read or always; images of a cache that
    /// another account can change are verified at every read in any case
    #[arg(long, default_value = "first-read", value_name = "WHEN")]
    pub(super) verify: mica_agent::Verify,
    /// Note in which order the package's blocks are first read; later mounts and jobs read them ahead
    #[arg(long, conflicts_with = "images")]
    pub(super) record_trace: bool,
    /// Show a file or folder of the host, or a named volume, in the job. Options: ro; private (without the mounts within);
    /// rslave (mounts that the host makes later appear); idmap (as root: owners as in the job's user namespace), or
    /// idmap=uids=FILE-JOB-COUNT;gids=… (files of user FILE are user JOB's in the job)
    #[arg(short = 'v', long = "volume", value_parser = parse_volume, value_name = "SRC:DST[:OPTION,…]")]
    pub(super) volumes: Vec<Volume>,
    /// The same in words: type=bind, volume, tmpfs or image; source=…; target=…; readonly; tmpfs-size=… Of type image, the
    /// source is a package or an image file, image-subpath=… shows a part of it, and rw lets the job write, for its own eyes
    #[arg(long = "mount", value_parser = parse_mount, value_name = "KEY=VALUE,…")]
    pub(super) mounts: Vec<Volume>,
    /// A file system in memory
    #[arg(long = "tmpfs", value_parser = parse_tmpfs, value_name = "DIR[:size=N,mode=N]")]
    pub(super) tmpfs: Vec<Mount>,
    /// Size of /dev/shm
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub(super) shm_size: Option<u64>,
    /// Show a device of the host in the job, or a CDI device by its name, as in nvidia.com/gpu=0
    #[arg(long = "device", value_parser = parse_device, value_name = "SRC[:DST]")]
    pub(super) devices: Vec<DeviceFlag>,
    /// Graphics processors: all, a number, or names; as the CDI files of their vendor describe them
    #[arg(long, value_name = "all|N|NAME,…")]
    pub(super) gpus: Option<String>,
}

impl Storage {
    /// Everything to mount, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().chain(&self.mounts)
    }

    /// The further stacks among them.
    pub(super) fn images(&self) -> impl Iterator<Item = &ImageFlag> {
        self.all().filter_map(|volume| match volume {
            Volume::Image(image) => Some(image),
            _ => None,
        })
    }
}

/// What the job may do and use.
#[derive(Debug, clap::Args)]
pub(super) struct Confinement {
    /// Limit the memory, as in 512m or 2g
    #[arg(short, long, value_parser = parse_size, value_name = "SIZE")]
    pub(super) memory: Option<u64>,
    /// Limit memory and swap together; -1 for as much swap as there is
    #[arg(long, value_parser = parse_swap, value_name = "SIZE|-1", requires = "memory", allow_negative_numbers = true)]
    pub(super) memory_swap: Option<Limit>,
    /// Memory that is left to the job while others have more than theirs
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub(super) memory_reservation: Option<u64>,
    /// Share of the processors against others, 1 to 10000, 100 being usual
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) cpu_weight: Option<u64>,
    /// Limit the processors, as in 1.5
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub(super) cpus: Option<f64>,
    /// Processors the job may run on, as in 0-3,6
    #[arg(long, value_name = "LIST")]
    pub(super) cpuset_cpus: Option<String>,
    /// Limit the number of processes and threads; -1 for none, whatever the package says
    #[arg(long, value_parser = parse_count, value_name = "N|-1", allow_negative_numbers = true)]
    pub(super) pids_limit: Option<Limit>,
    /// Start without a limit that cannot be enforced here, with a warning
    #[arg(long)]
    pub(super) best_effort_limits: bool,
    /// Limit a resource of each process, as in nofile=1024:2048
    #[arg(long = "ulimit", value_parser = parse_ulimit, value_name = "NAME=SOFT[:HARD]")]
    pub(super) ulimits: Vec<Rlimit>,
    /// Add a capability
    #[arg(long, value_name = "CAP")]
    pub(super) cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAP")]
    pub(super) cap_drop: Vec<String>,
    /// Filter of system calls: a profile in docker's JSON form, or unconfined
    #[arg(long, value_name = "FILE|unconfined")]
    pub(super) seccomp: Option<PathBuf>,
    /// All capabilities, no filter of system calls, nothing of /proc hidden; still in the job's namespaces
    #[arg(long)]
    pub(super) privileged: bool,
    /// Mask of permission bits for new files
    #[arg(long, value_name = "MODE", value_parser = parse_mode, default_value = "022")]
    pub(super) umask: u32,
    /// Added to the badness of the job's processes when memory runs out
    #[arg(long, value_name = "N", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub(super) oom_score_adj: Option<i32>,
    /// The job's network: host; none; private, connected with the host's without privilege; or the name of a bridge network
    /// (`mica network`), of which `bridge` is there by itself; private and bridge networks lead to the host only with `:host` [default: host, or private if ports are published]
    #[arg(long, visible_alias = "net", value_parser = parse_network, value_name = "MODE|NAME[:ip=IP,alias=NAME,host]")]
    pub(super) network: Option<NetworkMode>,
    /// A further name by which jobs on the same bridge network find this one
    #[arg(long, value_parser = parse_host_name, value_name = "NAME", requires = "network")]
    pub(super) network_alias: Vec<String>,
    /// The job's address on its bridge network
    #[arg(long, value_name = "IP", requires = "network")]
    pub(super) ip: Option<Ipv4Addr>,
    /// Let a port of the host lead to one of the job
    #[arg(short, long, value_parser = parse_port, value_name = "[[IP:]HOST:]JOB[/udp]")]
    pub(super) publish: Vec<PortForward>,
    /// Let the host's ports of the same numbers lead to those that the package declares
    #[arg(short = 'P', long)]
    pub(super) publish_all: bool,
    /// A line for the job's /etc/hosts
    #[arg(long, value_parser = parse_host, value_name = "NAME:IP")]
    pub(super) add_host: Vec<(String, IpAddr)>,
    /// Name server for the job, instead of the host's
    #[arg(long, value_name = "IP")]
    pub(super) dns: Vec<IpAddr>,
    /// Share the host's processes [default: private]
    #[arg(long, value_enum, value_name = "host|private")]
    pub(super) pid: Option<Shared>,
    /// Share the host's System V and POSIX objects [default: private]
    #[arg(long, value_enum, value_name = "host|private")]
    pub(super) ipc: Option<Shared>,
    /// Share the host's name [default: private]
    #[arg(long, value_enum, value_name = "host|private")]
    pub(super) uts: Option<Shared>,
    /// Whose users the job has: the host's; its own; or, as root, those that /etc/subuid grants to an account, so that the
    /// job's root is nobody outside [default: private, or the setting userns-remap]
    #[arg(long, value_parser = parse_userns, value_name = "host|private|remap:ACCOUNT")]
    pub(super) userns: Option<Users>,
    /// Share the host's view of cgroups [default: private]
    #[arg(long, value_enum, value_name = "host|private")]
    pub(super) cgroupns: Option<Shared>,
    /// Give the job monotonic clocks of its own [default: host]
    #[arg(long, value_enum, value_name = "host|private")]
    pub(super) timens: Option<Shared>,
    /// A further group for the job's user, by number or by a name in the stack
    #[arg(long, value_name = "GROUP")]
    pub(super) group_add: Vec<String>,
}

impl Confinement {
    /// What the job's confinement doesn't hold any more, in one line each.
    pub(super) fn gives_away(&self) -> Option<&'static str> {
        let root = rustix::process::geteuid().is_root();
        let is_root_outside = root && self.userns == Some(Users::Shared(Shared::Host));
        let adds = |names: [&str; 3]| {
            let is_one = |cap: &String| names.iter().any(|name| cap.eq_ignore_ascii_case(name));
            self.cap_add.iter().any(is_one)
        };
        let mounts = adds(["SYS_ADMIN", "CAP_SYS_ADMIN", "ALL"]);
        if is_root_outside && (self.privileged || mounts) {
            return Some(
                "warning: root in this job is root of the host: it can mount, and so change, everything of the host's",
            );
        }
        let traces = adds(["SYS_PTRACE", "CAP_SYS_PTRACE", "ALL"]);
        if is_root_outside && traces && self.pid == Some(Shared::Host) {
            return Some(
                "warning: root in this job is root of the host and traces its processes: it can change everything of the host's",
            );
        }
        if root
            && mounts
            && !self.privileged
            && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        {
            return Some(
                "warning: CAP_SYS_ADMIN lets root in this job mount and change this host's control groups of version 1, its own \
                 limits among them",
            );
        }
        match (self.privileged, root) {
            (true, true) => Some(
                "warning: --privileged gives the job every capability, the host's settings in /proc and /sys to write, and no \
                 filter of system calls: its root can take over the host",
            ),
            (true, false) => Some(
                "warning: --privileged gives the job every capability in its own namespaces and no filter of system calls: \
                 only the kernel stands between it and your account",
            ),
            (false, _) => None,
        }
    }
}

/// The network a job gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NetworkMode {
    /// The host's
    Host,
    /// A loopback interface and nothing else
    None,
    /// A network of its own, connected with the host's without privilege; whether it leads to the host, too
    Private(bool),
    /// A bridge
    Bridge(Attachment),
}

/// Whose users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Users {
    /// The host's or the job's own.
    Shared(Shared),
    /// The job's own, mapped to the subordinate ids of this account.
    Remap(String),
}

/// Whose namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Shared {
    /// The host's
    Host,
    /// The job's own
    Private,
}
