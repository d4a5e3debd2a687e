//! The version of a workspace: its git commit.
//!
//! A repository is somebody else's until proven otherwise, and its configuration can name programs for git to run: monitors,
//! hooks, filters, helpers. All of them are off here ([`PROGRAMS`], [`drivers`]), git may not talk to anybody, and it ends within
//! [`PATIENCE`]. What belongs to another user git refuses by itself (safe.directory), and so do we. Filters are off too, so a
//! file that a filter changes (git-lfs) and that was touched counts as changed.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mica_graph::{Digest, Version};

use crate::error::Advise as _;

/// How long one question to git may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// What it may answer.
const LONGEST_ANSWER: u64 = 256 << 20;
/// Repositories within repositories, so deep.
const MAX_DEPTH: usize = 8;

/// What git says of a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// The full hash of HEAD.
    pub(crate) hash: String,
    /// Whether the folder differs from it.
    pub(crate) dirty: bool,
}

impl Commit {
    /// The commit, and whether it is not quite that.
    pub(crate) fn revision(&self) -> String {
        format!("{}{}", self.hash, if self.dirty { "-dirty" } else { "" })
    }
}

/// Asks git for the commit `dir` is at; `None` where there is no git, no repository or no commit.
///
/// # Errors
/// The repository belongs to somebody else; git fails or doesn't answer.
pub(crate) fn commit_of(dir: &Path) -> anyhow::Result<Option<Commit>> {
    let Some(git) = Git::find() else { return Ok(None) };
    git.commit_of(dir, 0)
}

/// The version to pack under: the commit; with changes not yet committed, the commit and the digest of what
/// is packed, because one version never stands for two contents.
pub(crate) fn version_of(commit: Option<&Commit>, contents: &Digest) -> anyhow::Result<Version> {
    let word = match commit {
        Some(Commit { hash, dirty: false }) => hash.clone(),
        Some(Commit { hash, dirty: true }) => format!("{hash}-dirty.{}", &contents.hex()[..8]),
        None => contents.hex()[..40].to_owned(),
    };
    Ok(word.parse()?)
}

/// Whether there is a git to ask.
pub(crate) fn is_installed() -> bool {
    Git::find().is_some()
}

/// Runs git in `dir` and returns what it printed.
pub(crate) fn run(dir: &Path, args: &[&str]) -> anyhow::Result<String> {
    let git = Git::find().context("there is no git")?;
    let output = git.ask(dir, &[], args)?;
    Ok(String::from_utf8_lossy(&output.succeeded(dir, args)?).trim().to_owned())
}

/// Settings by which git would run a program or ask somebody while it answers our questions, and what they are set to. Those
/// with names of the repository's own choice are found by [`drivers`].
const PROGRAMS: [(&str, &str); 20] = [
    ("core.fsmonitor", "false"),
    ("core.untrackedCache", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.pager", "cat"),
    ("core.editor", "false"),
    ("core.askPass", ""),
    ("core.sshCommand", "false"),
    ("core.gitProxy", "false"),
    ("core.alternateRefsCommand", "false"),
    ("credential.helper", ""),
    ("diff.external", ""),
    ("diff.trustExitCode", "false"),
    ("interactive.diffFilter", ""),
    ("log.showSignature", "false"),
    ("gpg.program", "false"),
    ("protocol.allow", "never"),
    ("submodule.recurse", "false"),
    ("status.submoduleSummary", "false"),
    ("maintenance.auto", "false"),
    // A folder of the tree that looks like a repository is none, whatever it says of itself.
    ("safe.bareRepository", "explicit"),
];

/// A setting and its value.
type Setting = (OsString, &'static str);

/// Sections of settings whose names the repository chooses, and which of theirs name programs.
const DRIVERS: [(&str, &[&str]); 5] = [
    ("filter", &["clean", "smudge", "process"]),
    ("diff", &["command", "textconv"]),
    ("merge", &["driver"]),
    ("remote", &["uploadpack", "receivepack", "vcs", "proxy"]),
    ("gpg", &["program", "defaultkeycommand"]),
];

/// The caller's variables for git that matter here: which settings are the user's, and how far up a repository may be.
const KEPT: [&str; 5] = [
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CEILING_DIRECTORIES",
    "GIT_DISCOVERY_ACROSS_FILESYSTEM",
];

struct Git {
    program: PathBuf,
}

struct Answer {
    status: ExitStatus,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Answer {
    fn succeeded(self, dir: &Path, args: &[&str]) -> anyhow::Result<Vec<u8>> {
        if self.status.success() {
            return Ok(self.out);
        }
        let said = String::from_utf8_lossy(&self.err);
        bail!("git {} failed in {}: {}", args.join(" "), dir.display(), said.trim());
    }
}

impl Git {
    /// Of `PATH`, but for entries that depend on where we stand: that may be the repository.
    fn find() -> Option<Self> {
        use std::os::unix::fs::PermissionsExt;
        let is_program = |path: &PathBuf| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        std::env::split_paths(&std::env::var_os("PATH")?)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join("git"))
            .find(is_program)
            .map(|program| Self { program })
    }

    fn commit_of(&self, dir: &Path, depth: usize) -> anyhow::Result<Option<Commit>> {
        let head = ["rev-parse", "--verify", "--quiet", "HEAD"];
        let answer = self.ask(dir, &[], &head)?;
        if !answer.status.success() {
            return match String::from_utf8_lossy(&answer.err) {
                said if said.contains("dubious ownership") => {
                    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
                    let dir = dir.display();
                    Err(anyhow::anyhow!("the git repository of {dir} belongs to another user"))
                        .hint(format!(
                            "if you trust it: git config --global --add safe.directory {dir}"
                        ))
                }
                _ => Ok(None),
            };
        }
        let hash = String::from_utf8_lossy(&answer.out).trim().to_owned();
        let off = self.drivers(dir)?;
        // Of a submodule git itself would start another git; we look into them ourselves, as carefully.
        let status = ["status", "--porcelain", "--ignore-submodules=dirty", "--", "."];
        let changed = self.ask(dir, &off, &status)?.succeeded(dir, &status)?;
        let dirty = !changed.is_empty() || self.is_any_submodule_dirty(dir, depth)?;
        Ok(Some(Commit { hash, dirty }))
    }

    /// What turns off the programs that the settings which hold in `dir` name by names of their own. Asking for the names of
    /// settings runs nothing.
    fn drivers(&self, dir: &Path) -> anyhow::Result<Vec<Setting>> {
        let list = ["config", "--list", "--name-only", "-z"];
        Ok(drivers(&self.ask(dir, &[], &list)?.succeeded(dir, &list)?))
    }

    fn is_any_submodule_dirty(&self, dir: &Path, depth: usize) -> anyhow::Result<bool> {
        let git_dir = ["rev-parse", "--show-toplevel"];
        let top = self.ask(dir, &[], &git_dir)?.succeeded(dir, &git_dir)?;
        let top = PathBuf::from(OsString::from_vec(top.trim_ascii_end().to_vec()));
        if depth == MAX_DEPTH || top.join(".gitmodules").symlink_metadata().is_err() {
            return Ok(false);
        }
        let files = ["ls-files", "--stage", "-z", "--", "."];
        let listed = self.ask(dir, &[], &files)?.succeeded(dir, &files)?;
        for entry in listed.split(|byte| *byte == 0).filter(|entry| entry.starts_with(b"160000 ")) {
            let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else { continue };
            let submodule = dir.join(OsStr::from_bytes(&entry[tab + 1..]));
            // One that was not checked out has nothing that could have changed.
            if submodule.join(".git").symlink_metadata().is_ok()
                && self.commit_of(&submodule, depth + 1)?.is_none_or(|commit| commit.dirty)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Runs git, with settings beside those that are always set.
    fn ask(&self, dir: &Path, settings: &[Setting], args: &[&str]) -> anyhow::Result<Answer> {
        let mut command = Command::new(&self.program);
        let theirs = given_settings();
        for (name, _) in std::env::vars_os() {
            if name.as_bytes().starts_with(b"GIT_") && KEPT.iter().all(|kept| name != *kept) {
                command.env_remove(name);
            }
        }
        let always = PROGRAMS.iter().map(|(name, value)| (OsString::from(name), (*value).into()));
        let more = settings.iter().map(|(name, value)| (name.clone(), (*value).into()));
        // The last one of a name counts. `-c` would cut a name at its first `=`.
        let all: Vec<(OsString, OsString)> = theirs.into_iter().chain(always).chain(more).collect();
        for (number, (name, value)) in all.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), name);
            command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        command
            .env("GIT_CONFIG_COUNT", all.len().to_string())
            .env("GIT_OPTIONAL_LOCKS", "0") // else status writes the index, and runs a hook after it
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ALLOW_PROTOCOL", "none")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "")
            .env("SSH_ASKPASS", "")
            .env("GIT_PAGER", "cat")
            .env("LC_ALL", "C") // its messages are read
            .arg("--no-pager")
            .arg("-C")
            .arg(dir);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run git")?;
        let out = read_all(child.stdout.take())?;
        let err = read_all(child.stderr.take())?;
        let status = wait(&mut child)
            .with_context(|| format!("git {} in {}", args.join(" "), dir.display()))?;
        let text = |reader: std::thread::JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
        Ok(Answer { status, out: text(out), err: text(err) })
    }
}

/// The settings that the caller's environment gives to git, safe.directory perhaps.
fn given_settings() -> Vec<(OsString, OsString)> {
    let count = std::env::var("GIT_CONFIG_COUNT").ok().and_then(|count| count.parse().ok());
    let one = |number: usize| {
        let word = |what| std::env::var_os(format!("GIT_CONFIG_{what}_{number}"));
        Some((word("KEY")?, word("VALUE")?))
    };
    (0..count.unwrap_or(0).min(1000)).filter_map(one).collect()
}

fn read_all(
    from: Option<impl Read + Send + 'static>,
) -> anyhow::Result<std::thread::JoinHandle<Vec<u8>>> {
    let read = move || {
        let mut bytes = Vec::new();
        if let Some(from) = from {
            // What is missing in the end is missed by whoever reads the text.
            from.take(LONGEST_ANSWER).read_to_end(&mut bytes).ok();
        }
        bytes
    };
    let thread = std::thread::Builder::new().spawn(read);
    thread.context("cannot start the thread that reads what git says")
}

fn wait(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let (begun, mut pause) = (Instant::now(), Duration::from_millis(1));
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > PATIENCE {
            child.kill().ok();
            child.wait().ok();
            bail!("no answer within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Settings that turn off the programs of [`DRIVERS`] among these names, which NUL separates.
fn drivers(names: &[u8]) -> Vec<Setting> {
    let mut off = Vec::new();
    for name in names.split(|byte| *byte == 0) {
        let Some(first) = name.iter().position(|byte| *byte == b'.') else { continue };
        let Some(last) = name.iter().rposition(|byte| *byte == b'.') else { continue };
        let (section, key) = (&name[..first], &name[last + 1..]);
        let Some((_, keys)) = DRIVERS.iter().find(|(one, _)| section == one.as_bytes()) else {
            continue;
        };
        if first == last || !keys.iter().any(|one| key == one.as_bytes()) {
            continue;
        }
        off.push((OsString::from_vec(name.to_vec()), ""));
        if section == b"filter" {
            off.push((OsString::from_vec([&name[..=last], b"required"].concat()), "false"));
        }
    }
    off
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_under_names_of_the_repository_s_choice_are_turned_off() {
        let names =
            b"core.bare\0filter.a.b=c.clean\0filter.x.required\0diff.pdf.textconv\0user.name\0\
                      gpg.program\0remote.origin.url\0remote.origin.uploadpack\0";
        let off = drivers(names);
        let off: Vec<_> =
            off.iter().map(|(name, value)| (name.to_str().unwrap(), *value)).collect();
        assert_eq!(
            off,
            [
                ("filter.a.b=c.clean", ""),
                ("filter.a.b=c.required", "false"),
                ("diff.pdf.textconv", ""),
                ("remote.origin.uploadpack", ""),
            ]
        );
    }
}
