//! Running the real `mica` as root and as an ordinary user, each in a world of its own.
#![allow(dead_code)] // every test file uses its own part of this

pub(crate) mod net;

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Who runs mica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever runs the tests.
    Me,
    /// Somebody without privilege: an id without an account if the tests run as root, else the same as `Me`.
    Ordinary,
}

/// Both kinds of user, for tests that hold for each.
pub(crate) const USERS: [User; 2] = [User::Me, User::Ordinary];

/// An id that no account has.
const ORDINARY: u32 = 12_345;

/// Folders for one test: cache, state, runtime, registry, home.
pub(crate) struct World {
    pub dir: TempDir,
    pub user: User,
    binary: Arc<Binary>,
}

/// The binary, copied to where every user can reach it, for as long as a world needs it.
struct Binary {
    dir: TempDir,
}

impl Binary {
    fn shared() -> Arc<Self> {
        static CURRENT: Mutex<Weak<Binary>> = Mutex::new(Weak::new());
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        current.upgrade().unwrap_or_else(|| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::copy(env!("CARGO_BIN_EXE_mica"), dir.path().join("mica")).unwrap();
            let binary = Arc::new(Self { dir });
            *current = Arc::downgrade(&binary);
            binary
        })
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl World {
    pub(crate) fn new(user: User) -> Self {
        Self::below(user, &std::env::temp_dir())
    }

    /// The same elsewhere than in the folder for temporary files.
    pub(crate) fn below(user: User, folder: &Path) -> Self {
        let dir = tempfile::tempdir_in(folder).unwrap();
        let world = Self { dir, user, binary: Binary::shared() };
        if world.is_dropped() {
            chown(world.dir.path(), Some(ORDINARY), Some(ORDINARY)).unwrap();
        }
        world
    }

    /// Where `mica` is.
    pub(crate) fn binary(&self) -> PathBuf {
        self.binary.dir.path().join("mica")
    }

    /// Whether mica runs without privilege.
    pub(crate) fn is_ordinary(&self) -> bool {
        self.is_dropped() || !is_root()
    }

    fn is_dropped(&self) -> bool {
        self.user == User::Ordinary && is_root()
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Lets this world's user own what the test has put into it.
    pub(crate) fn hand_over(&self) {
        if self.is_dropped() {
            give(self.dir.path()).unwrap();
        }
    }

    /// A program run as this world's user.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.is_dropped() {
            false => Command::new(program),
            true => {
                let id = ORDINARY.to_string();
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("MICA_CACHE", self.path("cache"))
            .env("MICA_STATE", self.path("state"))
            .env("MICA_RUNTIME", self.path("runtime"))
            .env("MICA_REGISTRY", self.path("registry"))
            .env("TMPDIR", self.dir.path())
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// `mica` with these arguments, not yet started.
    pub(crate) fn mica<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = self.command(self.binary());
        command.args(args);
        command
    }

    /// Runs `mica` and expects success.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "mica {args:?} as {:?}\n{ran:#?}", self.user);
        ran
    }

    /// Runs `mica` and expects it to fail with this exit code; returns what it said.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(code), "mica {args:?} as {:?}\n{ran:#?}", self.user);
        ran.stderr
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.mica(args).output().unwrap().into()
    }

    /// Runs `mica`, which has to end within so many seconds.
    #[track_caller]
    pub(crate) fn within(&self, seconds: u64, args: &[&str]) -> Ran {
        within(seconds, &mut self.mica(args))
    }

    /// Writes a small file, with the folders above it.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Copies a workspace of `testdata` and makes it a git repository.
    pub(crate) fn workspace(&self, name: &str) -> PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
        let to = self.path(name);
        let copied = Command::new("cp").arg("-r").arg(from).arg(&to).status().unwrap();
        assert!(copied.success());
        self.git(&to, &["init", "--quiet"]);
        self.commit(&to, "first");
        self.hand_over();
        to
    }

    /// Commits everything in a workspace and returns the hash.
    pub(crate) fn commit(&self, workspace: &Path, message: &str) -> String {
        self.git(workspace, &["add", "--all"]);
        self.git(workspace, &["commit", "--quiet", "--message", message]);
        let hash = self.git(workspace, &["rev-parse", "HEAD"]);
        self.hand_over();
        hash
    }

    fn git(&self, workspace: &Path, args: &[&str]) -> String {
        let output = Command::new("git")
            .args([
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@localhost",
                "-c",
                "safe.directory=*",
                "-C",
            ])
            .arg(workspace)
            .args(args)
            .output()
            .expect("git is needed by the tests");
        assert!(
            output.status.success(),
            "git {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits until nothing of this world is left: a supervisor ends a moment after it has said so to its command.
    #[track_caller]
    pub(crate) fn ends_clean(&self) {
        let clean = comes_true(|| self.leftovers().is_empty());
        assert!(clean, "left behind: {:#?}", self.leftovers());
    }

    /// Whatever of this world's jobs and mounts is visible on the host: should be nothing after each command.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let here = self.dir.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut found: Vec<String> =
            mounts.lines().filter(|line| line.contains(&here)).map(str::to_owned).collect();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&here) {
                found.push(format!("process {}: {command}", entry.file_name().display()));
            }
        }
        found
    }
}

/// Gives a tree to the ordinary user, but what vanishes meanwhile: a supervisor removes the files of its `--rm` job after
/// the command has ended.
fn give(path: &Path) -> std::io::Result<()> {
    match give_what_is_there(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        given => given,
    }
}

fn give_what_is_there(path: &Path) -> std::io::Result<()> {
    lchown(path, Some(ORDINARY), Some(ORDINARY))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in path.read_dir()? {
            give(&entry?.path())?;
        }
    }
    Ok(())
}

/// What a command does that has to end within so many seconds; it is killed otherwise, and the test fails.
#[track_caller]
pub(crate) fn within(seconds: u64, command: &mut Command) -> Ran {
    use std::io::Read;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // What it leaves behind may hold its output open: that is no reason to wait.
    fn read(mut from: impl Read + Send + 'static) -> Arc<Mutex<(Vec<u8>, bool)>> {
        let read = Arc::new(Mutex::new((Vec::new(), false)));
        let into = Arc::clone(&read);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                into.lock().unwrap().0.extend_from_slice(&buffer[..count]);
            }
            into.lock().unwrap().1 = true;
        });
        read
    }
    let (out, err) = (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap()));
    let text = |read: &Arc<Mutex<(Vec<u8>, bool)>>| {
        String::from_utf8_lossy(&read.lock().unwrap().0).into_owned()
    };
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut status = None;
    loop {
        status = status.or_else(|| child.try_wait().unwrap());
        if status.is_some() && out.lock().unwrap().1 && err.lock().unwrap().1 {
            break;
        }
        if Instant::now() >= until {
            let state = if status.is_none() { "runs" } else { "has ended, but its output is open" };
            child.kill().ok();
            child.wait().ok();
            panic!("{command:?} still {state} after {seconds} s\n{}\n{}", text(&out), text(&err));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let code = status.and_then(|status| {
        use std::os::unix::process::ExitStatusExt;
        status.code().or(status.signal().map(|signal| 128 + signal))
    });
    Ran { code, stdout: text(&out), stderr: text(&err) }
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Fails with the reason if jobs cannot run here, as the tests never skip.
#[track_caller]
pub(crate) fn need_fuse() {
    use std::os::unix::fs::MetadataExt;
    let meta =
        std::fs::metadata("/dev/fuse").expect("this test needs /dev/fuse (as root: modprobe fuse)");
    assert!(
        meta.mode() & 0o006 == 0o006,
        "this test needs a /dev/fuse that everybody may open (as root: chmod 666 /dev/fuse); scripts/test sees to it"
    );
}

/// Looks again until it is so: the moment a line reaches a log, or a killed process is gone, is not ours to know.
#[track_caller]
pub(crate) fn wait_for(condition: impl FnMut() -> bool) {
    assert!(comes_true(condition), "it did not come true in 60 seconds");
}

fn comes_true(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Bytes that do not compress, the same in every run.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}
