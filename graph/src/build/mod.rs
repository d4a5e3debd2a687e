//! The build graph, and the way from it to a stack of layers.
//!
//! A [`BuildGraph`] is a set of [`Module`]s: what each puts into the tree, and which modules it needs there. A graph is
//! checked when it is made: no dependency is missing, nothing is a cycle, every path stays inside the tree. A [`Plan`] is
//! what one target needs, in stack order.
//!
//! # Order of a stack
//!
//! Topmost first, and every module above all it depends on. Among the modules that may come next, the smallest label
//! comes first: the order depends on the labels and edges only, and a module added to or removed from the graph does not
//! move the others, unless its edges order them.
//!
//! # The JSON form
//!
//! `mica pack --graph FILE|-` reads a graph that some other build tool wrote:
//!
//! ```json
//! {
//!   "schema": 1,
//!   "modules": [
//!     {
//!       "label": "//app:A",
//!       "rule": "cc_binary",
//!       "outputs": [{"path": "app/A", "source": "bazel-bin/app/A"}],
//!       "deps": ["//lib/b:B"],
//!       "root": false,
//!       "entrypoint": ["app/A"], "cmd": [], "env": {"LANG": "C"}, "workdir": "app", "user": "1000:1000",
//!       "labels": {"org.opencontainers.image.title": "A"},
//!       "limits": {"memory": 268435456, "pids": 64, "cpus": 1.5},
//!       "ports": ["8080/tcp"], "stop_signal": "INT", "stop_timeout": 30,
//!       "health": {"command": ["app/A", "--ping"], "interval_ms": 5000, "timeout_ms": 1000, "start_period_ms": 0, "retries": 3}
//!     },
//!     {"label": "//lib/b:B", "outputs": [{"path": "lib/b/libB.so", "source": "bazel-bin/lib/b/libB.so"}]}
//!   ]
//! }
//! ```
//!
//! Only `modules` and each module's `label` are required; a field that is not in this list is refused. `path` is relative
//! to the tree and is kept exactly, for RUNPATHs depend on it; an empty `path` is the tree itself. `source` is relative to the
//! folder that the caller names (the file's own, by default), or absolute; a folder stands for all that is in it. `root` marks a base
//! distribution: the stack then becomes the job's `/`. `entrypoint` and the fields after it count for the target that is packed only.

mod document;
mod error;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use petgraph::graph::{DiGraph, NodeIndex};
use serde::{Deserialize, Serialize};

pub(crate) use error::{Arrows, Hint};
pub use error::{BuildGraphError, UnknownTargetError};
pub use plan::{Plan, SharedPath};

use crate::{Label, Limits, Process, Service};

/// A node of the build graph: a target, what it puts into the tree, and what it needs there.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Its name.
    pub label: Label,
    /// The rule that made it, `cc_library`; empty where nobody said.
    pub rule: String,
    /// What its layer holds; a module without outputs makes no layer.
    pub outputs: Vec<Output>,
    /// The modules that must be in the tree with it.
    pub deps: Vec<Label>,
    /// True for a base distribution: the stack then becomes `/`.
    pub root: bool,
    /// How a package of this module is started.
    pub process: Process,
    /// Notes for the manifest of a package of this module.
    pub labels: BTreeMap<String, String>,
    /// Limits of a package of this module.
    pub limits: Limits,
    /// Ports, health check and end, if it is the root of a package.
    pub service: Service,
}

/// One file or folder of a module, and where it is put.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Place in the tree, `lib/b/libB.so`; empty for the tree itself.
    pub path: String,
    /// The file, or a folder that stands for all that is in it.
    pub source: PathBuf,
}

impl Module {
    /// A module of this name, with nothing in it.
    pub fn new(label: Label) -> Self {
        Self {
            label,
            rule: String::new(),
            outputs: Vec::new(),
            deps: Vec::new(),
            root: false,
            process: Process::default(),
            labels: BTreeMap::new(),
            limits: Limits::default(),
            service: Service::default(),
        }
    }
}

/// The modules of a build and their dependencies; always complete and free of cycles.
#[derive(Clone, Debug)]
pub struct BuildGraph {
    graph: DiGraph<Module, ()>,
    by_label: BTreeMap<Label, NodeIndex>,
}

impl BuildGraph {
    /// Checks `modules` and makes a graph of them.
    pub fn new(modules: impl IntoIterator<Item = Module>) -> Result<Self, BuildGraphError> {
        let mut graph = DiGraph::new();
        let mut by_label = BTreeMap::new();
        for module in modules {
            check_outputs(&module)?;
            let label = module.label.clone();
            if by_label.insert(label.clone(), graph.add_node(module)).is_some() {
                return Err(BuildGraphError::Twice(label));
            }
        }
        for (label, &from) in &by_label {
            for dep in graph[from].deps.clone() {
                let Some(&to) = by_label.get(&dep) else {
                    return Err(BuildGraphError::MissingDep {
                        module: label.clone(),
                        hint: nearest_label(&dep, by_label.keys()),
                        dep,
                    });
                };
                graph.update_edge(from, to, ());
            }
        }
        let edges = |label: &Label| graph[by_label[label]].deps.clone();
        if let Some(cycle) = find_cycle(by_label.keys(), edges) {
            return Err(BuildGraphError::Cycle(cycle));
        }
        Ok(Self { graph, by_label })
    }

    /// All modules, by label.
    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.by_label.values().map(|&index| &self.graph[index])
    }

    /// The module of this name.
    pub fn module(&self, label: &Label) -> Option<&Module> {
        Some(&self.graph[*self.by_label.get(label)?])
    }

    /// What `target` needs, in stack order.
    pub fn plan(&self, target: &Label) -> Result<Plan<'_>, UnknownTargetError> {
        let root = self.index(target)?;
        Ok(plan::plan(&self.graph, root))
    }

    /// A shortest way along dependencies, both ends included; `None` if there is none.
    pub fn path(
        &self,
        from: &Label,
        to: &Label,
    ) -> Result<Option<Vec<&Label>>, UnknownTargetError> {
        let (from, to) = (self.index(from)?, self.index(to)?);
        let found = petgraph::algo::astar(&self.graph, from, |node| node == to, |_| 1, |_| 0);
        Ok(found.map(|(_, nodes)| nodes.iter().map(|&node| &self.graph[node].label).collect()))
    }

    fn index(&self, target: &Label) -> Result<NodeIndex, UnknownTargetError> {
        self.by_label.get(target).copied().ok_or_else(|| UnknownTargetError {
            target: target.clone(),
            hint: nearest_label(target, self.by_label.keys()),
        })
    }
}

/// Checks that a module's outputs stay in the tree and don't contradict one another.
fn check_outputs(module: &Module) -> Result<(), BuildGraphError> {
    let mut by_path = BTreeMap::new();
    for output in &module.outputs {
        let path = &output.path;
        if let Some(reason) = bad_tree_path(path) {
            let (module, path) = (module.label.clone(), path.clone());
            return Err(BuildGraphError::BadPath { module, path, reason });
        }
        if by_path.insert(path, &output.source).is_some_and(|other| *other != output.source) {
            let (module, path) = (module.label.clone(), path.clone());
            return Err(BuildGraphError::TwoSources { module, path });
        }
    }
    Ok(())
}

/// Why `path` cannot be a place in the tree.
pub(crate) fn bad_tree_path(path: &str) -> Option<&'static str> {
    if path.starts_with('/') {
        Some("it is absolute")
    } else if path.contains('\0') {
        Some("it holds a NUL")
    } else if !path.is_empty() && path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        Some("a part of it is empty, `.` or `..`")
    } else if path.split('/').any(|part| part.len() > 255) {
        Some("a part of it is longer than 255 bytes")
    } else {
        None
    }
}

/// The first cycle met when walking from `labels` in order: `a, b, a`. Missing nodes are for others to report.
pub(crate) fn find_cycle<'a>(
    labels: impl IntoIterator<Item = &'a Label>,
    deps: impl Fn(&Label) -> Vec<Label>,
) -> Option<Vec<Label>> {
    let mut done = BTreeSet::new();
    for start in labels {
        // The path from `start` to here, with what is left to visit at each step: a stack of our own, for graphs are deep.
        let mut path: Vec<(Label, std::vec::IntoIter<Label>)> = Vec::new();
        let mut on_path = BTreeSet::new();
        let mut next = Some(start.clone());
        loop {
            if let Some(label) = next.take() {
                if on_path.contains(&label) {
                    let from = path.iter().position(|(on, _)| *on == label).unwrap_or(0);
                    let mut cycle: Vec<_> = path.drain(from..).map(|(on, _)| on).collect();
                    cycle.push(label);
                    return Some(cycle);
                }
                if !done.contains(&label) {
                    on_path.insert(label.clone());
                    let rest = deps(&label).into_iter();
                    path.push((label, rest));
                }
            }
            let Some((label, rest)) = path.last_mut() else { break };
            next = rest.next();
            if next.is_none() {
                on_path.remove(label);
                done.insert(label.clone());
                path.pop();
            }
        }
    }
    None
}

/// The known label that a person most likely meant.
pub(crate) fn nearest_label<'a>(
    wanted: &Label,
    known: impl IntoIterator<Item = &'a Label>,
) -> Option<String> {
    let known: Vec<_> = known.into_iter().collect();
    let near = nearest(&wanted.to_string(), known.iter().map(|label| label.to_string()));
    // The right name in the wrong package is a common slip too.
    let elsewhere = || known.iter().find(|label| label.name() == wanted.name());
    near.or_else(|| elsewhere().map(|label| label.to_string()))
}

/// The nearest of `known` to `wanted`, if one is near.
pub(crate) fn nearest(wanted: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let limit = (wanted.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|text| (strsim::damerau_levenshtein(wanted, &text), text))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, text)| text)
}
