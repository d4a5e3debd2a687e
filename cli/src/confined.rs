//! The actions of a build as confined jobs.
//!
//! An action sees the host's programs read-only, a folder of its own that can be written, and nothing else: no network, no
//! files of users, no other workspace. Its folder on disk becomes the job's root.
//!
//! ```text
//! /build      where it starts: copies of its inputs, room for its outputs; large inputs are bound there read-only
//! /tmp        HOME and TMPDIR
//! /usr …      of the host ([`PROGRAMS`]), and what programs need of /etc ([`SETTINGS`])
//! ```

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mica_launcher::{
    Capabilities, Ending, Exit, Limits, Mount, Network, Rlimit, Root, Spec, Stdio, launch,
};
use mica_packer::build::{
    DEADLINE, ExecuteError, Executor, Invocation, Layout, ROOT, Ran, Staging, TMP, Unconfined,
    collect,
};

use crate::places::Places;
use crate::verbs::run::parse_size;

/// Where hosts keep programs and what these load.
const PROGRAMS: [&str; 9] =
    ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt", "nix/store"];

/// What compilers and interpreters need of `/etc`.
const SETTINGS: [&str; 10] = [
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "perl",
    "protocols",
    "services",
    "ssl/openssl.cnf",
];

/// Processes and threads of one action.
const PROCESSES: u64 = 4096;

/// Bytes of one file that an action makes: what is larger, if only by a hole, takes mica long to read.
const LARGEST: u64 = 64 << 30;

/// How actions of a build are run.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Actions of the build")]
pub(crate) struct ActionFlags {
    /// Run actions with all your rights, and take inputs from wherever links of the workspace lead: only for repositories
    /// that you trust
    #[arg(long)]
    unconfined: bool,
    /// Seconds that one action may take
    #[arg(long, value_name = "SECONDS", default_value_t = DEADLINE.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    action_timeout: u64,
    /// Memory that one action may take, where it can be limited [default: three quarters of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    action_memory: Option<u64>,
}

impl Default for ActionFlags {
    fn default() -> Self {
        Self { unconfined: false, action_timeout: DEADLINE.as_secs(), action_memory: None }
    }
}

impl ActionFlags {
    /// Who runs the actions of a workspace.
    pub(crate) fn executor(&self, places: &Places, workspace: &Path) -> Arc<dyn Executor> {
        let deadline = Duration::from_secs(self.action_timeout);
        if self.unconfined {
            return Arc::new(Unconfined { deadline });
        }
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let own = [&places.cache, &places.state, &places.runtime].map(Clone::clone);
        let shared = places.shared_cache.clone();
        let hidden = own
            .into_iter()
            .chain(places.folders.clone())
            .chain(shared)
            .chain(home)
            .chain([workspace.to_owned()])
            .collect();
        let memory = self.action_memory.or_else(three_quarters);
        // What the settings show to jobs, but for what is of a person or a machine.
        let settings = Path::new("/etc");
        let programs =
            places.host_paths.iter().filter(|path| !path.starts_with(settings)).cloned().collect();
        Arc::new(Confined { deadline, memory, hidden, programs })
    }
}

/// For looking at a workspace only: links of it are followed as far as a confined build would.
pub(crate) fn for_planning() -> Arc<dyn Executor> {
    Arc::new(Confined {
        deadline: DEADLINE,
        memory: None,
        hidden: Vec::new(),
        programs: Vec::new(),
    })
}

/// Of the machine's memory.
fn three_quarters() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let words = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = words.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024 / 4 * 3)
}

/// Runs actions as jobs.
#[derive(Debug)]
struct Confined {
    deadline: Duration,
    memory: Option<u64>,
    /// What no action sees, wherever it is.
    hidden: Vec<PathBuf>,
    /// What they see beside [`PROGRAMS`], by the setting `host-paths`.
    programs: Vec<PathBuf>,
}

impl Executor for Confined {
    fn layout(&self, _folder: &Path) -> Layout {
        let inside = |name| Path::new("/").join(name);
        Layout { root: inside(ROOT), tmp: inside(TMP), inputs: Staging::Copies }
    }

    fn run(&self, invocation: &Invocation<'_>) -> Result<Ran, ExecuteError> {
        let confine = |error: io::Error| ExecuteError::Confine(error.into());
        let spec = self.spec(invocation).map_err(confine)?;
        let (out, stdout) = io::pipe().map_err(ExecuteError::Start)?;
        let (err, stderr) = io::pipe().map_err(ExecuteError::Start)?;
        let stdin = fs::File::open("/dev/null").map_err(ExecuteError::Start)?;
        let streams =
            Stdio::Streams { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
        let mut job =
            launch(&spec, streams).map_err(|error| ExecuteError::Confine(error.into()))?;
        let readers = [collect(err), collect(out)];
        let Some(exit) = job.wait_timeout(self.deadline).map_err(ExecuteError::Start)? else {
            job.kill().map_err(ExecuteError::Start)?;
            return Err(ExecuteError::Deadline(self.deadline));
        };
        let mut output = Vec::new();
        for reader in readers {
            output.extend(reader.map_err(ExecuteError::Start)?.join().unwrap_or_default());
        }
        Ok(Ran { success: exit.code() == 0, ended: in_words(&exit), output })
    }
}

/// As the standard library says it.
fn in_words(exit: &Exit) -> String {
    let memory = if exit.oom_killed { " (its memory ran out)" } else { "" };
    match exit.ending {
        Ending::Exited(code) => format!("exit status: {code}{memory}"),
        Ending::Killed(signal) => format!("signal: {signal}{memory}"),
    }
}

impl Confined {
    fn spec(&self, invocation: &Invocation<'_>) -> io::Result<Spec> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let id = format!("build-{}-{serial}", std::process::id());
        let root = Root::Tree(invocation.folder.to_owned());
        let mut spec = Spec::new(id, root, invocation.words.iter().cloned());
        spec.env = invocation.env.to_vec();
        spec.cwd = Path::new("/").join(ROOT);
        spec.hostname = Some("build".into());
        spec.namespaces.network = Network::None;
        spec.capabilities = Capabilities { add: Vec::new(), drop: vec!["ALL".into()] };
        spec.limits = Limits {
            memory: self.memory,
            memory_swap: self.memory,
            pids: Some(PROCESSES),
            ..Limits::default()
        };
        // An ordinary user may have no cgroup to limit anything by.
        spec.best_effort_limits = true;
        let limit = |resource: &str, most| Rlimit {
            resource: resource.into(),
            soft: Some(most),
            hard: Some(most),
        };
        spec.rlimits = vec![limit("core", 0), limit("fsize", LARGEST)];
        spec.mounts = self.mounts(invocation)?;
        Ok(spec)
    }

    /// What the job sees beside its folder, where the mount points are made.
    fn mounts(&self, invocation: &Invocation<'_>) -> io::Result<Vec<Mount>> {
        let tree = Tree { folder: invocation.folder };
        for own in ["proc", "dev", "sys", "etc", "run"] {
            fs::create_dir(invocation.folder.join(own))?;
        }
        tree.accounts()?;
        let tmp = Path::new(TMP);
        let mut mounts = vec![bind(invocation.folder.join(tmp), &Path::new("/").join(tmp), false)];
        let settings = SETTINGS.iter().map(|name| Path::new("etc").join(name));
        let programs = self.programs.iter().filter_map(|path| path.strip_prefix("/").ok());
        let programs: BTreeSet<&Path> = PROGRAMS.iter().map(Path::new).chain(programs).collect();
        // What is within another one is seen with it.
        let outermost = |path: &&&Path| !path.ancestors().skip(1).any(|up| programs.contains(up));
        for path in programs.iter().filter(outermost) {
            mounts.extend(tree.show(path)?);
        }
        for path in settings {
            mounts.extend(tree.show(&path)?);
        }
        let seen: Vec<PathBuf> = mounts.iter().map(|mount| mount.target().clone()).collect();
        let is_seen = |path: &Path| seen[1..].iter().any(|seen| path.starts_with(seen));
        if let Some(prefix) = prefix_of(&invocation.words[0], is_seen)? {
            mounts.extend(tree.show(prefix.strip_prefix("/").unwrap_or(&prefix))?);
        }
        for hidden in self.hidden.iter().filter_map(|path| path.canonicalize().ok()) {
            let below = seen[1..].iter().any(|seen| hidden.starts_with(seen) && hidden != *seen);
            if below && hidden.is_dir() {
                let (size, mode) = (Some(4096), 0o755);
                mounts.push(Mount::Tmpfs {
                    target: hidden,
                    size,
                    mode,
                    read_only: true,
                    exec: false,
                    options: Vec::new(),
                });
            }
        }
        for shown in invocation.shown {
            let target = Path::new("/").join(ROOT).join(&shown.path);
            mounts.push(bind(shown.source.clone(), &target, true));
        }
        Ok(mounts)
    }
}

fn bind(source: PathBuf, target: &Path, read_only: bool) -> Mount {
    let target = target.to_owned();
    Mount::Bind { source, target, read_only, recursive: true, follow: false, ids: None }
}

/// What must be shown for a program that is in none of the usual places: the folder it was installed to, never a home.
fn prefix_of(program: &OsString, is_seen: impl Fn(&Path) -> bool) -> io::Result<Option<PathBuf>> {
    let real = Path::new(program).canonicalize()?;
    if is_seen(&real) {
        return Ok(None);
    }
    let home = std::env::var_os("HOME").and_then(|home| Path::new(&home).canonicalize().ok());
    let is_own = |folder: &&Path| {
        folder.parent().is_some() && home.as_ref().is_none_or(|home| !home.starts_with(folder))
    };
    let folder = real.parent().unwrap_or(&real);
    let installed = folder.parent().filter(|_| folder.ends_with("bin")).filter(is_own);
    Ok(Some(installed.or(Some(folder).filter(is_own)).unwrap_or(&real).to_owned()))
}

/// The root of a job, as it is made.
struct Tree<'a> {
    folder: &'a Path,
}

impl Tree<'_> {
    /// Shows something of the host's, given by its path without the first slash: links as links, the rest read-only.
    fn show(&self, path: &Path) -> io::Result<Option<Mount>> {
        let (source, at) = (Path::new("/").join(path), self.folder.join(path));
        let Some(meta) = mica_durable::found(source.symlink_metadata())? else { return Ok(None) };
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent)?;
        }
        if meta.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &at)?;
            return Ok(None);
        }
        match meta.is_dir() {
            true => fs::create_dir_all(&at)?,
            false => drop(fs::File::create(&at)?),
        }
        Ok(Some(bind(source.clone(), &source, true)))
    }

    /// Names for the users there are.
    fn accounts(&self) -> io::Result<()> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let (uid, gid) = (uid.as_raw(), gid.as_raw());
        let (mut users, mut groups) = (String::new(), String::new());
        for (name, user, group) in [("root", 0, 0), ("build", uid, gid), ("nobody", 65534, 65534)] {
            if name != "build" || user != 0 {
                users.push_str(&format!("{name}:x:{user}:{group}::/tmp:/bin/sh\n"));
                groups.push_str(&format!("{name}:x:{group}:\n"));
            }
        }
        fs::write(self.folder.join("etc/passwd"), users)?;
        fs::write(self.folder.join("etc/group"), groups)
    }
}
