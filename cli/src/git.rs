//! The version of a workspace: its git commit.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use mica_graph::{Digest, Version};

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
pub(crate) fn commit_of(dir: &Path) -> anyhow::Result<Option<Commit>> {
    let Some(hash) = ask(dir, &["rev-parse", "--verify", "--quiet", "HEAD"]) else {
        return Ok(None);
    };
    let status = run(dir, &["status", "--porcelain", "--", "."])?;
    Ok(Some(Commit { hash, dirty: !status.is_empty() }))
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
    Command::new("git").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn ask(dir: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(dir).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Runs git in `dir` and returns what it printed.
pub(crate) fn run(dir: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output =
        Command::new("git").arg("-C").arg(dir).args(args).output().context("cannot run git")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("git {} failed in {}: {}", args.join(" "), dir.display(), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
