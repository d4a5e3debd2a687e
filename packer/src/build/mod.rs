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
//!
//! A workspace may come from anybody. [`plan`] runs nothing and writes nothing; [`build`] has an [`Executor`] run what actions run. The out
//! folder may have come with the workspace: no link in it is followed when something is written, and inputs are found beneath the workspace
//! unless the executor says that the workspace is trusted.

mod action;
mod error;
mod executor;
mod place;
mod sandbox;
mod schedule;
mod state;
mod toolchain;
mod workspace;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mica_graph::actions::{Analysis, Place, analyze};
use mica_graph::buildfile::{Configuration, load};
use mica_graph::{BuildGraph, Label};

pub use error::BuildError;
pub use executor::{
    DEADLINE, ExecuteError, Executor, Invocation, Layout, ROOT, Ran, Shown, Staging, TMP,
    Unconfined, collect,
};
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
    /// Who runs them.
    pub executor: Arc<dyn Executor>,
}

impl Default for BuildOptions {
    /// For this machine, with the tools that its environment names, unconfined.
    fn default() -> Self {
        Self {
            out_dir: None,
            jobs: None,
            config: Configuration::host(),
            toolchain: Toolchain::from_env(),
            executor: Arc::new(Unconfined::default()),
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

/// A target as it is, without building it.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The target, aliases followed.
    pub target: Label,
    /// The target and all it needs at run time.
    pub graph: BuildGraph,
    /// Outputs in it that are not there, or not those that would be built now.
    pub unbuilt: BTreeSet<PathBuf>,
    /// What the build files printed.
    pub printed: Vec<String>,
}

/// Looks at `target` of the workspace in `workspace_dir`. Runs nothing but the build files, and writes nothing.
///
/// # Errors
/// The build files are wrong, or a source can't be read.
pub fn plan(
    workspace_dir: &Path,
    target: &Label,
    options: &BuildOptions,
) -> Result<Planned, BuildError> {
    let at = Places::find(workspace_dir, options)?;
    let loaded = load(&Folder::new(&at.root, &at.out), target, &options.config)?;
    let analysis = analyze(&loaded)?;
    let outdated = schedule::outdated(&at.root, &at.out, &analysis.actions, options)?;
    let outputs = outdated.iter().flat_map(|&number| &analysis.actions[number].outputs);
    let unbuilt = outputs.map(|output| at.out.join(state::BIN).join(&output.path)).collect();
    let target = analysis.target.clone();
    Ok(Planned { target, graph: at.graph(analysis, options)?, unbuilt, printed: loaded.printed })
}

/// Builds `target` of the workspace in `workspace_dir`.
///
/// # Errors
/// The build files are wrong, a tool fails, or a file can't be read or written.
pub fn build(
    workspace_dir: &Path,
    target: &Label,
    options: &BuildOptions,
) -> Result<Built, BuildError> {
    let started = Instant::now();
    let at = Places::find(workspace_dir, options)?;
    let loaded = load(&Folder::new(&at.root, &at.out), target, &options.config)?;
    let analysis = analyze(&loaded)?;
    at.prepare()?;
    let counts = schedule::run(&at.root, &at.out, &analysis.actions, options)?;
    let target = analysis.target.clone();
    let label = |number: usize| analysis.actions[number].label.clone();
    let said = counts.said.iter().map(|(&number, text)| (label(number), text.clone())).collect();
    Ok(Built {
        target,
        graph: at.graph(analysis, options)?,
        actions_run: counts.run,
        actions_reused: counts.reused,
        duration: started.elapsed(),
        printed: loaded.printed,
        said,
    })
}

/// The workspace and its out folder, as absolute paths.
struct Places {
    root: PathBuf,
    out: PathBuf,
    /// The out folder is the workspace's own.
    usual: bool,
}

impl Places {
    fn find(workspace_dir: &Path, options: &BuildOptions) -> Result<Self, BuildError> {
        let root = workspace_dir
            .canonicalize()
            .map_err(|source| BuildError::io("find the workspace", workspace_dir, source))?;
        let usual = options.out_dir.is_none();
        let out = options.out_dir.clone().unwrap_or_else(|| root.join(".mica/out"));
        let out = std::path::absolute(&out)
            .map_err(|source| BuildError::io("find the out folder", &out, source))?;
        // For comparisons with what is in it.
        let out = if usual { out } else { out.canonicalize().unwrap_or(out) };
        Ok(Self { root, out, usual })
    }

    /// Makes the out folder and its parts, none of which may be a link: it may have come with the workspace.
    fn prepare(&self) -> Result<(), BuildError> {
        use mica_durable::Folder;
        let out = match self.usual {
            true => Folder::open(&self.root)?
                .create_folder(".mica", 0o755)?
                .create_folder("out", 0o755)?,
            false => Folder::create(&self.out, 0o755)?,
        };
        for part in [state::BIN, state::STATE] {
            out.create_folder(part, 0o755)?;
        }
        // Nobody else reaches what actions make before it was looked at.
        let running = out.create_folder(sandbox::RUNNING, 0o700)?;
        rustix::fs::fchmod(&running, rustix::fs::Mode::RWXU)
            .map_err(|error| BuildError::io("set the mode of", running.path(), error.into()))?;
        // What is built is nothing to commit, nor a reason to call the commit's tree changed.
        // What can't be read is replaced like what says something else.
        let ignored = out.read(".gitignore", 64).ok().flatten();
        if ignored.as_deref() != Some(b"*\n") {
            out.replace(".gitignore", b"*\n", 0o644)?;
        }
        Ok(())
    }

    /// The graph with its outputs on disk. What would be reached through a link that leads out of the workspace is refused; an
    /// output that is itself a link is packed as one.
    fn graph(&self, analysis: Analysis, options: &BuildOptions) -> Result<BuildGraph, BuildError> {
        let graph = analysis.into_graph(|place| match place {
            Place::Source(path) => self.root.join(path),
            Place::Built(path) => self.out.join(state::BIN).join(path),
            Place::Host(path) => PathBuf::from(path),
        });
        let graph = graph?;
        let mut folders = BTreeSet::new();
        for output in graph.modules().flat_map(|module| &module.outputs) {
            let parent = output.source.parent().unwrap_or(&self.root);
            let ours =
                output.source.starts_with(&self.root) || output.source.starts_with(&self.out);
            if ours && folders.insert(parent) {
                self.stays_inside(parent, options)?;
            }
        }
        Ok(graph)
    }

    fn stays_inside(&self, folder: &Path, options: &BuildOptions) -> Result<(), BuildError> {
        let trusted = options.executor.layout(&self.out).inputs == Staging::Links;
        // What is not there is missed when it is read.
        let Ok(real) = folder.canonicalize() else { return Ok(()) };
        match trusted || real.starts_with(&self.root) || real.starts_with(&self.out) {
            true => Ok(()),
            false => Err(BuildError::Outside { path: folder.to_owned() }),
        }
    }
}
