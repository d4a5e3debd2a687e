//! Who runs the programs of actions.
//!
//! A build says what is to be run, where its inputs are and where its outputs will be looked for; an [`Executor`] runs it. The
//! one here, [`Unconfined`], is for repositories that are trusted: it starts the program as it is. Whoever has a launcher brings
//! one that confines.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a tool may say; the rest is thrown away.
const LONGEST_OUTPUT: u64 = 256 << 10;

/// Runs the programs of actions, several at a time.
pub trait Executor: Debug + Send + Sync {
    /// How the program of an action will find the action's folder, which is `folder` on disk.
    fn layout(&self, folder: &Path) -> Layout;

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It can't be started, or doesn't end.
    fn run(&self, invocation: &Invocation<'_>) -> Result<Ran, ExecuteError>;
}

/// The folder of an action, as its program sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where its inputs are, its outputs go and it starts: [`ROOT`] of the folder on disk.
    pub root: PathBuf,
    /// For temporary files: [`TMP`] of the folder on disk.
    pub tmp: PathBuf,
    /// How inputs come there.
    pub inputs: Staging,
}

/// The subfolder of an action's folder where it runs.
pub const ROOT: &str = "build";
/// The subfolder for its temporary files.
pub const TMP: &str = "tmp";

/// How the inputs of an action come into its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging {
    /// As symlinks to where they are. Sources may themselves be links to anywhere.
    Links,
    /// As copies where they are small, else to be [`Shown`]. Nothing that leads out of the workspace is an input.
    Copies,
}

/// A program to be run.
#[derive(Debug)]
pub struct Invocation<'a> {
    /// The action's folder on disk.
    pub folder: &'a Path,
    /// The program, by its path, and its arguments.
    pub words: &'a [OsString],
    /// The whole environment.
    pub env: &'a [(OsString, OsString)],
    /// Inputs that are not in the folder but must be seen there, read-only.
    pub shown: &'a [Shown],
}

/// An input that is shown in the folder of an action, where an empty file or folder keeps its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Where it is.
    pub source: PathBuf,
    /// Its path in [`ROOT`].
    pub path: String,
}

/// A program that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Whether it says that all went well.
    pub success: bool,
    /// How it ended, in words: `exit status: 1`.
    pub ended: String,
    /// What it printed, to standard error first.
    pub output: Vec<u8>,
}

/// A program that was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// It could not be started.
    #[error("it does not start")]
    Start(#[source] io::Error),
    /// It could not be confined.
    #[error("it cannot be confined")]
    Confine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It ran for too long.
    #[error("it was ended after {} s", .0.as_secs())]
    Deadline(Duration),
}

/// Runs programs as the user who builds, with all that this user may do.
#[derive(Clone, Debug)]
pub struct Unconfined {
    /// How long a program may run.
    pub deadline: Duration,
}

impl Default for Unconfined {
    fn default() -> Self {
        Self { deadline: DEADLINE }
    }
}

/// How long a program may run if nobody says so.
pub const DEADLINE: Duration = Duration::from_secs(3600);

impl Executor for Unconfined {
    fn layout(&self, folder: &Path) -> Layout {
        Layout { root: folder.join(ROOT), tmp: folder.join(TMP), inputs: Staging::Links }
    }

    fn run(&self, invocation: &Invocation<'_>) -> Result<Ran, ExecuteError> {
        let mut child = Command::new(&invocation.words[0])
            .args(&invocation.words[1..])
            .env_clear()
            .envs(invocation.env.iter().map(|(name, value)| (name, value)))
            .current_dir(invocation.folder.join(ROOT))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(ExecuteError::Start)?;
        let out = child.stdout.take().map(collect).transpose().map_err(ExecuteError::Start)?;
        let err = child.stderr.take().map(collect).transpose().map_err(ExecuteError::Start)?;
        let (begun, mut pause) = (Instant::now(), Duration::from_micros(500));
        let status = loop {
            match child.try_wait().map_err(ExecuteError::Start)? {
                Some(status) => break status,
                None if begun.elapsed() > self.deadline => {
                    child.kill().and_then(|()| child.wait()).map_err(ExecuteError::Start)?;
                    return Err(ExecuteError::Deadline(self.deadline));
                }
                None => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        let text = |reader: Option<JoinHandle<Vec<u8>>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        let output = [text(err), text(out)].concat();
        Ok(Ran { success: status.success(), ended: status.to_string(), output })
    }
}

/// Reads all that a program prints, so that it never waits for us, and keeps the start of it.
///
/// # Errors
/// There can be no further thread.
pub fn collect(mut from: impl Read + Send + 'static) -> io::Result<JoinHandle<Vec<u8>>> {
    std::thread::Builder::new().name("output of an action".into()).spawn(move || {
        let mut kept = Vec::new();
        // A pipe that breaks has no more to say.
        from.by_ref().take(LONGEST_OUTPUT).read_to_end(&mut kept).ok();
        io::copy(&mut from, &mut io::sink()).ok();
        kept
    })
}
