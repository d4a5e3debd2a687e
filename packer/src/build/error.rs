//! Why a target could not be built.

use std::io;
use std::path::{Path, PathBuf};

use mica_graph::Label;
use mica_graph::build::BuildGraphError;
use mica_graph::buildfile::BuildFileError;

/// Why a target could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The build files are wrong.
    #[error(transparent)]
    BuildFile(#[from] BuildFileError),
    /// The modules make no graph.
    #[error(transparent)]
    Graph(#[from] BuildGraphError),
    /// A tool is missing.
    #[error(
        "cannot {verb} {label}: there is no {tool} on this machine; install one (`apt install {package}`) or set {variable}"
    )]
    NoTool {
        /// What was to be done.
        verb: &'static str,
        /// For which target.
        label: Label,
        /// What is missing, `C compiler`.
        tool: &'static str,
        /// The package of Debian and Ubuntu that has it.
        package: &'static str,
        /// The environment variable that names it.
        variable: &'static str,
    },
    /// A tool could not be started.
    #[error("cannot start {} to {verb} {label}", program.display())]
    Start {
        /// The tool.
        program: PathBuf,
        /// What was to be done.
        verb: &'static str,
        /// For which target.
        label: Label,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool could not be confined.
    #[error("cannot confine {} to {verb} {label}", program.display())]
    Confine {
        /// The tool.
        program: PathBuf,
        /// What was to be done.
        verb: &'static str,
        /// For which target.
        label: Label,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tool did not end in time.
    #[error("cannot {verb} {label}: {} was ended after {} s", program.display(), deadline.as_secs())]
    Deadline {
        /// The tool.
        program: PathBuf,
        /// What was to be done.
        verb: &'static str,
        /// For which target.
        label: Label,
        /// How long it may run.
        deadline: std::time::Duration,
    },
    /// An input that is not part of the workspace.
    #[error("{} leads out of the workspace", path.display())]
    Outside {
        /// The link.
        path: PathBuf,
    },
    /// A defect of mica's.
    #[error("cannot {verb} {label}: a thread of the build panicked")]
    Panicked {
        /// What was to be done.
        verb: &'static str,
        /// For which target.
        label: Label,
    },
    /// The out folder is not what it must be.
    #[error(transparent)]
    File(#[from] mica_durable::FileError),
    /// A tool says that something is wrong.
    #[error("cannot {verb} {label}: {program} ended with {status}\n{output}")]
    Failed {
        /// What was to be done.
        verb: &'static str,
        /// For which target.
        label: Label,
        /// The tool.
        program: String,
        /// How it ended.
        status: String,
        /// What it printed.
        output: String,
    },
    /// A tool succeeded, but an output is missing or of a kind that cannot be kept.
    #[error("cannot {verb} {label}: its output `{path}` {problem}")]
    BadOutput {
        /// What was done.
        verb: &'static str,
        /// For which target.
        label: Label,
        /// The output.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file could not be read or written.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    pub(super) fn io(verb: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { verb, path: path.to_owned(), source }
    }

    /// For `map_err`: what was tried, with which file.
    pub(super) fn when<'a>(
        verb: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::io(verb, path, source)
    }
}
