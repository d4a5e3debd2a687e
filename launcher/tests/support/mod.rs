//! A small test runner for binaries that are also a job's init, and what the tests of jobs have in common.
//!
//! Every test runs twice: as root, and as an ordinary user in a copy of this process.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};

use mica_launcher::{Exit, Job, LaunchError, Mount, Root, Spec, Stdio, init_main, launch};

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

/// Runs the tests whose names hold one of the arguments; all of them if there are none.
pub(crate) fn run(tests: &[Test]) -> ExitCode {
    init_main();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    if arguments.iter().any(|a| a == "--list") {
        tests.iter().for_each(|(name, ..)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let who = if is_root() { "root" } else { "user" };
    let mut failed = Vec::new();
    for (name, by, test) in tests {
        let mine = *by == By::Both || (*by == By::Root) == is_root();
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
    let user_failed = is_root() && !run_as_user(&arguments);
    if failed.is_empty() && !user_failed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a copy of this binary, which an ordinary user can reach, as an ordinary user.
fn run_as_user(arguments: &[String]) -> bool {
    let dir = scratch();
    let copy = dir.path().join("jobs");
    fs::copy("/proc/self/exe", &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let status = Command::new(&copy)
        .args(arguments)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .unwrap();
    status.success()
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

pub(crate) fn text(mut file: File) -> String {
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
    (exit, text(file))
}

/// Runs a line of shell in a fresh tree; it must succeed.
pub(crate) fn sh(line: &str) -> String {
    let tree = tree();
    let (exit, text) = output(&shell(tree.path(), line));
    assert_eq!(exit.code(), 0, "{line}: {text}");
    text
}

pub(crate) fn start(spec: &Spec, stdio: Stdio) -> Job {
    match launch(spec, stdio) {
        Ok(job) => job,
        Err(error) => panic!("{}", chain(&error)),
    }
}

pub(crate) fn refusal(spec: &Spec) -> LaunchError {
    match launch(spec, Stdio::null().unwrap()) {
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
