//! The flags of `mica run`, with the values people know from docker.

use std::ffi::OsString;
use std::path::PathBuf;

use mica_launcher::{Device, Mount, Rlimit};

use crate::signals;

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
    #[arg(value_name = "REF", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) words: Vec<OsString>,
    /// Run from image files instead of a package, topmost first
    #[arg(long = "image", value_name = "FILE")]
    pub(super) images: Vec<PathBuf>,
    /// The stack becomes the job's `/`, instead of a folder below /packages over the host's root
    #[arg(long)]
    pub(super) rootfs: bool,
    /// Registry to pull from: a folder or a URL
    #[arg(long, value_name = "R")]
    pub(crate) registry: Option<String>,
    /// When to ask the registry
    #[arg(long, value_enum, default_value_t = PullWhen::Missing, value_name = "WHEN")]
    pub(super) pull: PullWhen,
    /// Print what would be done to start the job, and don't
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print no warnings and no progress
    #[arg(short, long)]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) life: Life,
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
    /// Connect standard input
    #[arg(short, long, conflicts_with = "detach")]
    pub(super) interactive: bool,
    /// Remove the job's record, log and upper when it ends
    #[arg(long)]
    pub(super) rm: bool,
    /// Name of the job
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Signal with which `mica stop` asks the job to end
    #[arg(long, default_value = "TERM", value_parser = signals::parse, value_name = "SIGNAL")]
    pub(super) stop_signal: i32,
    /// Seconds until `mica stop` kills the job
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub(super) stop_timeout: u64,
    /// Note to keep with the job, as NAME=VALUE
    #[arg(short, long = "label", value_parser = parse_pair, value_name = "NAME=VALUE")]
    pub(super) labels: Vec<(String, String)>,
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
    /// Program to start instead of the package's own
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<OsString>,
    /// Name of the machine that the job sees [default: the job's id]
    #[arg(long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
}

/// Which files the job sees beside the stack.
#[derive(Debug, clap::Args)]
pub(super) struct Storage {
    /// Mount the stack read-only, without a writable layer
    #[arg(long)]
    pub(super) read_only: bool,
    /// When to compare what is read with the images' chunk tables: never, first-read or always
    #[arg(long, default_value = "first-read", value_name = "WHEN")]
    pub(super) verify: mica_agent::Verify,
    /// Show a file or folder of the host in the job
    #[arg(short = 'v', long = "volume", value_parser = parse_volume, value_name = "SRC:DST[:ro]")]
    pub(super) volumes: Vec<Mount>,
    /// A file system in memory
    #[arg(long = "tmpfs", value_parser = parse_tmpfs, value_name = "DIR[:size=N,mode=N]")]
    pub(super) tmpfs: Vec<Mount>,
    /// Size of /dev/shm
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub(super) shm_size: Option<u64>,
    /// Show a device of the host in the job
    #[arg(long = "device", value_parser = parse_device, value_name = "SRC[:DST]")]
    pub(super) devices: Vec<Device>,
}

/// What the job may do and use.
#[derive(Debug, clap::Args)]
pub(super) struct Confinement {
    /// Limit the memory, as in 512m or 2g
    #[arg(short, long, value_parser = parse_size, value_name = "SIZE")]
    pub(super) memory: Option<u64>,
    /// Limit memory and swap together
    #[arg(long, value_parser = parse_size, value_name = "SIZE", requires = "memory")]
    pub(super) memory_swap: Option<u64>,
    /// Limit the processors, as in 1.5
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub(super) cpus: Option<f64>,
    /// Processors the job may run on, as in 0-3,6
    #[arg(long, value_name = "LIST")]
    pub(super) cpuset_cpus: Option<String>,
    /// Limit the number of processes and threads
    #[arg(long, value_name = "N")]
    pub(super) pids_limit: Option<u64>,
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
    /// The job's network
    #[arg(long, value_enum, default_value_t = NetworkMode::Host, value_name = "MODE")]
    pub(super) network: NetworkMode,
}

/// The network a job gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum NetworkMode {
    /// The host's
    Host,
    /// A loopback interface and nothing else
    None,
}

/// `512`, `512k`, `1.5g`, `2GiB`: powers of 1024, as docker has them.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &lower[digits.len()..];
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("`{unit}` is not a unit; use k, m, g or t")),
    };
    let number: f64 =
        digits.parse().map_err(|_| format!("`{text}` is not a size such as 512m or 2g"))?;
    let bytes = number * (1_u64 << shift) as f64;
    if !(0.0..9.0e18).contains(&bytes) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(bytes as u64)
}

fn parse_cpus(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(cpus) if cpus > 0.0 && cpus < 100_000.0 => Ok(cpus),
        _ => Err(format!("`{text}` is not a number of processors such as 0.5 or 2")),
    }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form NAME=VALUE")),
    }
}

fn parse_volume(text: &str) -> Result<Mount, String> {
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(format!("`{text}` is not of the form SRC:DST[:ro]"));
    };
    if !(source.starts_with('/') || source.starts_with('.')) {
        return Err(format!("`{source}` is not a path; begin it with / or ./"));
    }
    let source = std::path::absolute(source).map_err(|error| error.to_string())?;
    let target = in_job(target)?;
    let (mut read_only, mut recursive, mut follow) = (false, true, false);
    for option in parts.flat_map(|part| part.split(',')) {
        match option {
            "ro" => read_only = true,
            "rw" | "rprivate" => {}
            "private" => recursive = false,
            "rslave" => follow = true,
            other => {
                return Err(format!(
                    "`{other}` is not an option of a volume; use ro, rw, rprivate, private or rslave"
                ));
            }
        }
    }
    Ok(Mount::Bind { source, target, read_only, recursive, follow })
}

fn parse_tmpfs(text: &str) -> Result<Mount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let target = in_job(target)?;
    let (mut size, mut mode, mut read_only, mut exec) = (None, 0o1777, false, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => size = Some(parse_size(value)?),
            Some(("mode", value)) => {
                mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| format!("`{value}` is not an octal mode"))?;
            }
            None if option == "ro" => read_only = true,
            None if option == "rw" => read_only = false,
            None if option == "exec" => exec = true,
            None if option == "noexec" => exec = false,
            _ => {
                return Err(format!(
                    "`{option}` is not an option of a tmpfs; use size=, mode=, ro or exec"
                ));
            }
        }
    }
    Ok(Mount::Tmpfs { target, size, mode, read_only, exec })
}

fn parse_device(text: &str) -> Result<Device, String> {
    let mut parts = text.split(':');
    let source = in_job(parts.next().unwrap_or_default())?;
    let target = parts.next().map_or_else(|| Ok(source.clone()), in_job)?;
    let writable = match parts.next() {
        None | Some("rw" | "rwm") => true,
        Some("r" | "ro") => false,
        Some(other) => {
            return Err(format!("`{other}` are not permissions of a device; use r or rw"));
        }
    };
    Ok(Device { source, target, writable })
}

fn parse_ulimit(text: &str) -> Result<Rlimit, String> {
    let wrong = || format!("`{text}` is not of the form NAME=SOFT[:HARD]");
    let (resource, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |value: &str| match value {
        "unlimited" | "-1" => Ok(None),
        value => value.parse().map(Some).map_err(|_| wrong()),
    };
    Ok(Rlimit { resource: resource.to_owned(), soft: number(soft)?, hard: number(hard)? })
}

fn in_job(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        return Err(format!("`{path}` is not an absolute path"));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for bad in ["", "m", "-1", "12q", "1e30", "nan"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes() {
        let Ok(Mount::Bind { read_only, recursive, .. }) = parse_volume("/a:/b:ro") else {
            panic!("a volume")
        };
        assert!(read_only && recursive);
        for bad in ["/a", "data:/b", "/a:b", "/a:/b:rx"] {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ulimits() {
        let limit = parse_ulimit("nofile=10:unlimited").unwrap();
        assert_eq!((limit.soft, limit.hard), (Some(10), None));
        assert!(parse_ulimit("nofile").is_err());
    }
}
