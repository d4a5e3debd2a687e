//! What one target needs, in stack order.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{Dfs, Walker};

use super::Module;
use crate::Label;

/// A target and all that it needs in the tree.
#[derive(Clone, Debug)]
pub struct Plan<'g> {
    /// The target's own module: its process, labels and limits are the package's.
    pub target: &'g Module,
    /// Every module reachable from it, topmost first, also those that make no layer.
    pub modules: Vec<&'g Module>,
}

/// A path that several modules of a plan fill, from different sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPath<'g> {
    /// The path in the tree.
    pub path: &'g str,
    /// The modules, topmost first: the first one's file is seen.
    pub modules: Vec<&'g Label>,
}

impl<'g> Plan<'g> {
    /// The modules that make a layer, topmost first.
    pub fn layers(&self) -> impl Iterator<Item = &'g Module> {
        self.modules.iter().copied().filter(|module| !module.outputs.is_empty())
    }

    /// The paths that several modules fill from different sources, in the order of the paths. Whether the sources differ in
    /// content, only one who reads them can say; and what is inside a folder is not looked at here.
    pub fn shared_paths(&self) -> Vec<SharedPath<'g>> {
        let mut by_path: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for module in self.layers() {
            for output in &module.outputs {
                by_path.entry(&output.path).or_default().push((&module.label, &output.source));
            }
        }
        by_path.retain(|_, at| at.iter().any(|(_, source)| *source != at[0].1));
        let labels = |at: Vec<(&'g Label, _)>| {
            let mut labels: Vec<_> = at.into_iter().map(|(label, _)| label).collect();
            labels.dedup();
            labels
        };
        by_path.into_iter().map(|(path, at)| SharedPath { path, modules: labels(at) }).collect()
    }
}

/// Kahn's algorithm over what is reachable from `root`, the smallest label first among those that may come next.
pub(super) fn plan(graph: &DiGraph<Module, ()>, root: NodeIndex) -> Plan<'_> {
    let reachable: BTreeSet<NodeIndex> = Dfs::new(graph, root).iter(graph).collect();
    let dependents = |node| {
        graph.neighbors_directed(node, Incoming).filter(|from| reachable.contains(from)).count()
    };
    let mut waiting: BTreeMap<NodeIndex, usize> =
        reachable.iter().map(|&node| (node, dependents(node))).collect();
    let mut ready = BTreeSet::from([(&graph[root].label, root)]);
    let mut modules = Vec::with_capacity(reachable.len());
    while let Some((_, node)) = ready.pop_first() {
        modules.push(&graph[node]);
        for dep in graph.neighbors_directed(node, Outgoing) {
            let left = waiting.entry(dep).or_default();
            *left -= 1;
            if *left == 0 {
                ready.insert((&graph[dep].label, dep));
            }
        }
    }
    Plan { target: &graph[root], modules }
}
