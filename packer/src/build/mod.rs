//! Builds a target of a workspace with the machine's own compiler.
//!
//! [`mica_graph::buildfile`] says what the targets are and [`mica_graph::actions`] what must be done; this module does it, and hands
//! back a [`BuildGraph`] whose outputs are files on disk.
//!
//! # The out folder
//!
//! ```text
//! .mica/out/.gitignore  keeps all of it out of commits
//!           lock        one build at a time
//!           bin/…       the outputs, at their paths in the tree
//!           state/…     for each action: the digest of its inputs, and what its outputs looked like
//!           tmp/…       actions that run; emptied by the next build
//! ```
//!
//! An action whose arguments, tools and inputs are those of its last run, and whose outputs are still as it left them, is not run again. It runs in
//! a folder of its own under `tmp/`, where only its declared inputs are, and its outputs are renamed to `bin/` when it has succeeded: a killed
//! build leaves no half-written output, and what is not declared cannot be used by accident.

mod action;
mod error;
mod sandbox;
mod schedule;
mod state;
mod toolchain;
mod workspace;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mica_graph::actions::{Place, analyze};
use mica_graph::buildfile::{Configuration, load};
use mica_graph::{BuildGraph, Label};

pub use error::BuildError;
pub use toolchain::Toolchain;
pub use workspace::Folder;

/// How to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Where outputs and state are kept; `.mica/out` in the workspace if `None`.
    pub out_dir: Option<PathBuf>,
    /// How many actions run at a time; as many as there are processors if `None`.
    pub jobs: Option<usize>,
    /// What `select()` is answered by.
    pub config: Configuration,
    /// The programs that actions run.
    pub toolchain: Toolchain,
}

impl Default for BuildOptions {
    /// For this machine, with the tools that its environment names.
    fn default() -> Self {
        Self {
            out_dir: None,
            jobs: None,
            config: Configuration::host(),
            toolchain: Toolchain::from_env(),
        }
    }
}

/// A target that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The target, aliases followed: what to plan for in `graph`.
    pub target: Label,
    /// The target and all it needs at run time, outputs pointing at files on disk.
    pub graph: BuildGraph,
    /// Actions that were run.
    pub actions_run: usize,
    /// Actions whose outputs were up to date.
    pub actions_reused: usize,
    /// How long it took, reading the build files included.
    pub duration: Duration,
    /// What the build files printed.
    pub printed: Vec<String>,
    /// What the tools said that succeeded, warnings mostly, and for which target.
    pub said: Vec<(Label, String)>,
}

/// Builds `target` of the workspace in `workspace_dir`.
pub fn build(
    workspace_dir: &Path,
    target: &Label,
    options: &BuildOptions,
) -> Result<Built, BuildError> {
    let started = Instant::now();
    let root = workspace_dir
        .canonicalize()
        .map_err(|source| BuildError::io("find the workspace", workspace_dir, source))?;
    let out = options.out_dir.clone().unwrap_or_else(|| root.join(".mica/out"));
    let out = std::path::absolute(&out)
        .map_err(|source| BuildError::io("find the out folder", &out, source))?;
    let loaded = load(&Folder::new(&root, &out), target, &options.config)?;
    let analysis = analyze(&loaded)?;
    let counts = schedule::run(&root, &out, &analysis.actions, options)?;
    let target = analysis.target.clone();
    let label = |number: usize| analysis.actions[number].label.clone();
    let said = counts.said.iter().map(|(&number, text)| (label(number), text.clone())).collect();
    let graph = analysis.into_graph(|place| match place {
        Place::Source(path) => root.join(path),
        Place::Built(path) => out.join(state::BIN).join(path),
        Place::Host(path) => PathBuf::from(path),
    })?;
    Ok(Built {
        target,
        graph,
        actions_run: counts.run,
        actions_reused: counts.reused,
        duration: started.elapsed(),
        printed: loaded.printed,
        said,
    })
}
