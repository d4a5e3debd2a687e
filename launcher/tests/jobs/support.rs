//! A small test runner for binaries that are also a job's init, and what the tests of jobs have in common.
//!
//! Every test runs as root, and in copies of this process as an ordinary user: outside of any namespace, and as a job's
//! supervisor runs, in a user and mount namespace of its own, as root of it or with its own id. And all of that again with
//! inits that were started ahead.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::thread::UnshareFlags;

use mica_launcher::{
    Exit, Job, LaunchError, Mount, Namespace, Root, Spec, Stdio, init_main, launch, prepare,
};

const NOBODY: u32 = 65534;

/// Who may run a test.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum By {
    Both,
    Root,
    User,
}

/// A name, who runs it, the test.
pub(crate) type Test = (&'static str, By, fn());

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An init begins to be one here; all others look at how they are to launch.
pub(crate) fn begin() {
    init_main();
    AHEAD.store(std::env::args().any(|argument| argument == AHEAD_OF_LAUNCH), Ordering::Relaxed);
}

/// Runs the tests whose names hold one of the arguments; all of them if there are none.
pub(crate) fn run(tests: &[Test]) -> ExitCode {
    begin();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, tree] = arguments.as_slice()
        && mode.starts_with("--supervise")
    {
        supervise(Path::new(tree), mode);
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    if arguments.iter().any(|a| a == "--list") {
        tests.iter().for_each(|(name, ..)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let inside = arguments.iter().find_map(|a| a.strip_prefix("--inside="));
    if let Some(inside) = inside {
        enter_namespaces(inside == "as-root");
    }
    let who = match (inside, is_root()) {
        (Some(inside), _) => format!("user in a namespace, {inside}"),
        (None, true) => "root".to_owned(),
        (None, false) => "user".to_owned(),
    } + if ahead() { ", inits started ahead" } else { "" };
    let root = inside.is_none() && is_root();
    // An ordinary user with a cgroup of its own can do what root can.
    let delegated = std::env::var_os("MICA_TEST_DELEGATED").is_some();
    let mut failed = Vec::new();
    for (name, by, test) in tests {
        let mine = *by == By::Both || (*by == By::Root) == (root || delegated);
        if !mine || !(filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()))) {
            continue;
        }
        let result = catch_unwind(AssertUnwindSafe(test));
        println!("test {name} (as {who}) ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        if result.is_err() {
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        println!("failed as {who}: {}", failed.join(" "));
    }
    let mut failure = !failed.is_empty();
    if root {
        for mode in [None, Some("--inside=as-root"), Some("--inside=as-itself")] {
            failure |= !run_as_user(&arguments, mode);
        }
        if !ahead() {
            let mut again = Command::new("/proc/self/exe");
            failure |= !again.args(&arguments).arg(AHEAD_OF_LAUNCH).status().unwrap().success();
        }
    }
    if failure { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Launches a job that holds standard output open, says so, and waits to be killed.
fn supervise(tree: &Path, mode: &str) -> ! {
    let mut spec = shell(tree, "sleep 1000 & setsid sleep 1000 & wait");
    if mode.ends_with("host-pids") {
        spec.namespaces.pid = Namespace::Host;
    }
    let work = move || {
        let job = start(&spec, Stdio::inherit().unwrap());
        println!("{}", serde_json::to_string(job.cgroup()).unwrap());
        loop {
            std::thread::park();
        }
    };
    if mode.ends_with("thread") {
        std::thread::spawn(work);
    } else {
        work();
    }
    loop {
        std::thread::park();
    }
}

/// Runs a copy of this binary, which an ordinary user can reach, as an ordinary user.
fn run_as_user(arguments: &[String], mode: Option<&str>) -> bool {
    let dir = scratch();
    let copy = dir.path().join("jobs");
    fs::copy("/proc/self/exe", &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&copy);
    command.args(arguments).args(mode).current_dir("/").uid(NOBODY).gid(NOBODY);
    command.status().unwrap().success()
}

/// Enters a user and a mount namespace as the supervisor of a job does, and starts a thread as its FUSE server has.
fn enter_namespaces(as_root: bool) {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let inner = |id: u32| if as_root { 0 } else { id };
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).unwrap();
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("{} {} 1", inner(uid.as_raw()), uid.as_raw())).unwrap();
    fs::write("/proc/self/gid_map", format!("{} {} 1", inner(gid.as_raw()), gid.as_raw())).unwrap();
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
}

/// A directory that every user can enter.
pub(crate) fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// An id that no other test uses.
pub(crate) fn id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A tree that can become `/`: the links of a merged-usr distribution; `/usr` itself is mounted from the host.
pub(crate) fn tree() -> tempfile::TempDir {
    let dir = scratch();
    for link in ["bin", "sbin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), dir.path().join(link)).unwrap();
    }
    for sub in ["usr", "etc", "proc", "sys", "dev", "tmp", "root"] {
        fs::create_dir(dir.path().join(sub)).unwrap();
    }
    fs::write(
        dir.path().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
    )
    .unwrap();
    fs::write(dir.path().join("etc/group"), "root:x:0:\nweb:x:33:\n").unwrap();
    dir
}

pub(crate) fn bind(
    source: impl Into<PathBuf>,
    target: impl Into<PathBuf>,
    read_only: bool,
) -> Mount {
    Mount::Bind {
        source: source.into(),
        target: target.into(),
        read_only,
        recursive: true,
        follow: false,
        ids: None,
    }
}

/// A job in `tree` with the host's `/usr`.
pub(crate) fn spec(tree: &Path, argv: &[&str]) -> Spec {
    let mut spec = Spec::new(id(), Root::Tree(tree.to_owned()), argv.iter().copied());
    spec.mounts.push(bind("/usr", "/usr", true));
    spec.env.push(("PATH".into(), "/usr/bin:/bin:/usr/sbin:/sbin".into()));
    spec
}

/// The same, for a line of shell.
pub(crate) fn shell(tree: &Path, line: &str) -> Spec {
    spec(tree, &["sh", "-c", line])
}

/// Standard streams into a file, which is returned.
pub(crate) fn captured() -> (Stdio, File) {
    let file = tempfile::tempfile().unwrap();
    let clone = || OwnedFd::from(file.try_clone().unwrap());
    let stdin = OwnedFd::from(File::open("/dev/null").unwrap());
    (Stdio::Streams { stdin, stdout: clone(), stderr: clone() }, file)
}

pub(crate) fn printed(mut file: File) -> String {
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Launches, waits, and returns how it ended and what it printed.
pub(crate) fn output(spec: &Spec) -> (Exit, String) {
    let (stdio, file) = captured();
    let mut job = start(spec, stdio);
    let exit = job.wait().unwrap();
    (exit, printed(file))
}

pub(crate) fn piped() -> (Stdio, File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdin = OwnedFd::from(File::open("/dev/null").unwrap());
    (Stdio::Streams { stdin, stdout: writer.try_clone().unwrap(), stderr: writer }, reader.into())
}

pub(crate) fn wait_for(reader: &mut File, text: &str) {
    let mut got = vec![0; text.len()];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), text);
}

/// Runs a line of shell in a fresh tree; it must succeed.
pub(crate) fn sh(line: &str) -> String {
    let tree = tree();
    let (exit, text) = output(&shell(tree.path(), line));
    assert_eq!(exit.code(), 0, "{line}: {text}");
    text
}

/// Makes jobs have inits that were started ahead.
const AHEAD_OF_LAUNCH: &str = "--ahead";

static AHEAD: AtomicBool = AtomicBool::new(false);

fn ahead() -> bool {
    AHEAD.load(Ordering::Relaxed)
}

/// For a copy of this process that is to launch in the same way.
pub(crate) fn ahead_flag() -> Option<&'static str> {
    ahead().then_some(AHEAD_OF_LAUNCH)
}

/// Launches in the way that is tested.
fn launch_either_way(spec: &Spec, stdio: Stdio) -> Result<Job, LaunchError> {
    let prepared = if ahead() { prepare(spec)? } else { None };
    match prepared {
        Some(prepared) => prepared.launch(spec, stdio),
        None => launch(spec, stdio),
    }
}

pub(crate) fn start(spec: &Spec, stdio: Stdio) -> Job {
    match launch_either_way(spec, stdio) {
        Ok(job) => job,
        Err(error) => panic!("{}", chain(&error)),
    }
}

pub(crate) fn refusal(spec: &Spec) -> LaunchError {
    match launch_either_way(spec, Stdio::null().unwrap()) {
        Ok(_) => panic!("this should not have started"),
        Err(error) => error,
    }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
