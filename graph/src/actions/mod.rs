//! Targets into actions: what must be compiled, linked, copied and run, and the modules that come of it.
//!
//! Pure: an [`Action`] is a list of arguments, inputs and outputs, which somebody else runs. The rules of the game:
//!
//! - an action runs in an empty folder of its own, in which its inputs, and nothing else, stand at their workspace-relative paths;
//!   it leaves its outputs at theirs. No argument names the workspace or the machine, so the same inputs give the same bytes anywhere;
//! - an output of the package `lib/b` named `libB.so` is `lib/b/libB.so`, in that folder, in the tree and so in the image;
//! - a `cc_library` is one shared object, with its file name as SONAME; whoever links it gets a RUNPATH relative to itself (`$ORIGIN/../lib/b`).
//!   Undefined symbols are an error at link time, so no needed dependency can be missing in the stack;
//! - a module's `deps` are what must be in the tree with it: `deps` and `data`. What a target needs only to be built
//!   (`srcs` of a C program, `srcs` and `tools` of a genrule) is no edge of the module graph.

mod cc;
mod expand;
mod files;
mod genrule;
mod package;
mod python;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::Label;
use crate::build::{BuildGraph, BuildGraphError, Module, Output};
use crate::buildfile::{BuildFileError, Dep, Loaded, RuleKind, Target, join};

/// Where a file comes from. Its path in an action's folder and in the tree is the same for the first two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A file of the workspace.
    Source(String),
    /// An output of an action.
    Built(String),
    /// A folder of the machine, by its absolute path.
    Host(String),
}

impl Place {
    /// The path, relative to the workspace but for [`Place::Host`].
    pub fn path(&self) -> &str {
        match self {
            Self::Source(path) | Self::Built(path) | Self::Host(path) => path,
        }
    }
}

/// One step of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// The target it is done for.
    pub label: Label,
    /// What it does, in a word: `compile`, `link`, `copy`, `write`, `generate`.
    pub verb: &'static str,
    /// The files it may read, sorted.
    pub inputs: Vec<Place>,
    /// Inputs that stand at a second path in the action's folder too.
    pub also: Vec<(String, Place)>,
    /// What it makes.
    pub outputs: Vec<ActionOutput>,
    /// How.
    pub run: Run,
}

/// A file that an action makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionOutput {
    /// Its path.
    pub path: String,
    /// Whether it can be executed; `None` leaves it as the action made it.
    pub executable: Option<bool>,
}

/// How an action makes its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// By a program.
    Command {
        /// Which one.
        tool: Tool,
        /// Its arguments.
        args: Vec<String>,
        /// Environment, besides that which every action has.
        env: BTreeMap<String, String>,
    },
    /// By copying its only input.
    Copy,
    /// By writing this text.
    Write(String),
}

/// A program of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// The C compiler.
    Cc,
    /// The C++ compiler.
    Cxx,
    /// The shell that genrules are written for.
    Bash,
}

/// All actions of a target and of what it needs, and the modules they make.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// The target.
    pub target: Label,
    /// The actions; each after those that make its inputs.
    pub actions: Vec<Action>,
    /// The modules; each after those it depends on. The outputs' sources are still [`Place`]s.
    pub modules: Vec<AnalyzedModule>,
}

/// A module whose outputs are still to be found on disk.
#[derive(Clone, Debug)]
pub struct AnalyzedModule {
    /// The module, without outputs.
    pub module: Module,
    /// Its outputs: path in the tree, and where they come from.
    pub outputs: Vec<(String, Place)>,
}

impl Analysis {
    /// The build graph, once it is known where a place is on disk.
    pub fn into_graph(
        self,
        locate: impl Fn(&Place) -> PathBuf,
    ) -> Result<BuildGraph, BuildGraphError> {
        BuildGraph::new(self.modules.into_iter().map(|AnalyzedModule { module, outputs }| {
            Module {
                outputs: outputs
                    .into_iter()
                    .map(|(path, place)| Output { path, source: locate(&place) })
                    .collect(),
                ..module
            }
        }))
    }
}

/// What the actions of a loaded target are.
pub fn analyze(loaded: &Loaded) -> Result<Analysis, BuildFileError> {
    let mut analyzer = Analyzer {
        targets: &loaded.targets,
        provided: BTreeMap::new(),
        made: BTreeMap::new(),
        actions: Vec::new(),
        modules: Vec::new(),
    };
    for label in dependencies_first(loaded) {
        analyzer.target(&loaded.targets[&label])?;
    }
    let root = &loaded.targets[&loaded.target];
    if root.rule.kind == RuleKind::ConfigSetting {
        return Err(root.error(format!("{} is a config_setting: nothing to build", root.label)));
    }
    analyzer.check_folders()?;
    Ok(Analysis {
        target: loaded.target.clone(),
        actions: analyzer.actions,
        modules: analyzer.modules,
    })
}

/// The labels, each after those it depends on. There are no cycles: the loader has looked.
fn dependencies_first(loaded: &Loaded) -> Vec<Label> {
    let mut order = Vec::with_capacity(loaded.targets.len());
    let mut done = BTreeSet::new();
    let mut stack = vec![(loaded.target.clone(), false)];
    while let Some((label, children_done)) = stack.pop() {
        if children_done {
            order.push(label);
        } else if done.insert(label.clone()) {
            let deps: BTreeSet<_> = loaded.targets[&label].all_targets().cloned().collect();
            stack.push((label, true));
            stack.extend(deps.into_iter().rev().map(|dep| (dep, false)));
        }
    }
    order
}

/// What a target offers to those that depend on it.
#[derive(Clone, Debug, Default)]
struct Provided {
    /// Its files: what a label of it in `srcs` or `$(location)` stands for.
    files: Vec<Place>,
    /// The file to run, if it is a program.
    executable: Option<Place>,
    cc: cc::CcInfo,
    /// Folders for Python's path, of this target and all below it.
    imports: Vec<String>,
}

struct Analyzer<'t> {
    targets: &'t BTreeMap<Label, Target>,
    provided: BTreeMap<Label, Provided>,
    /// Every output of every action, and whose it is.
    made: BTreeMap<String, Label>,
    actions: Vec<Action>,
    modules: Vec<AnalyzedModule>,
}

impl Analyzer<'_> {
    fn target(&mut self, target: &Target) -> Result<(), BuildFileError> {
        for dep in target.all_targets() {
            if self.targets[dep].rule.kind == RuleKind::ConfigSetting {
                let message = format!("{dep} is a config_setting: only select() can use it");
                return Err(target.error_at_label(dep, message));
            }
        }
        let provided = match target.rule.kind {
            RuleKind::CcLibrary => self.cc_library(target)?,
            RuleKind::CcBinary => self.cc_binary(target)?,
            RuleKind::PyLibrary => self.py_library(target)?,
            RuleKind::PyBinary => self.py_binary(target)?,
            RuleKind::ShBinary => self.sh_binary(target)?,
            RuleKind::Filegroup => self.filegroup(target),
            RuleKind::Genrule => self.genrule(target)?,
            RuleKind::Tree => self.tree(target)?,
            RuleKind::Package => self.package(target)?,
            // An alias is never depended on: its label is resolved to what it stands for.
            RuleKind::Alias | RuleKind::ConfigSetting => Provided::default(),
        };
        self.provided.insert(target.label.clone(), provided);
        Ok(())
    }

    /// The path of an output of `target`.
    fn output_path(target: &Target, name: &str) -> Result<String, BuildFileError> {
        let path = join(target.label.package(), name);
        match crate::build::bad_tree_path(&path) {
            None if !path.is_empty() => Ok(path),
            _ => Err(target.error_at(name, format!("`{name}` cannot be the name of an output"))),
        }
    }

    fn push_action(&mut self, target: &Target, action: Action) -> Result<(), BuildFileError> {
        for output in &action.outputs {
            let owner = self.made.insert(output.path.clone(), target.label.clone());
            if let Some(owner) = owner {
                let path = &output.path;
                return Err(
                    target.error(format!("{} and {owner} both make `{path}`", target.label))
                );
            }
        }
        self.actions.push(action);
        Ok(())
    }

    /// A path cannot be a file for one action and a folder for another.
    fn check_folders(&self) -> Result<(), BuildFileError> {
        for (path, label) in &self.made {
            let mut folder = path.as_str();
            while let Some((parent, _)) = folder.rsplit_once('/') {
                if let Some(owner) = self.made.get(parent) {
                    let message =
                        format!("{label} makes `{path}`, but {owner} makes a file `{parent}`");
                    return Err(self.targets[label].error(message));
                }
                folder = parent;
            }
        }
        Ok(())
    }

    /// The files behind attributes: sources, and the files of targets.
    fn files_of(&self, target: &Target, attrs: &[&str]) -> Vec<Place> {
        let mut files = Vec::new();
        for dep in target.deps_of(attrs) {
            match dep {
                Dep::File(path) => files.push(Place::Source(path.clone())),
                Dep::Target(label) => files.extend(self.provided[label].files.iter().cloned()),
                Dep::Output(_, path) => files.push(Place::Built(path.clone())),
            }
        }
        files
    }

    /// The module of `target`, its runtime dependencies being the targets in `attrs`, its outputs `files` and the plain files in `data`.
    fn module(
        &self,
        target: &Target,
        attrs: &[&str],
        files: impl IntoIterator<Item = Place>,
    ) -> AnalyzedModule {
        let mut module = Module::new(target.label.clone());
        target.rule.name.clone_into(&mut module.rule);
        let mut outputs: Vec<_> = files.into_iter().collect();
        for dep in target.deps_of(attrs) {
            match dep {
                Dep::Target(label) | Dep::Output(label, _) => {
                    if !module.deps.contains(label) {
                        module.deps.push(label.clone());
                    }
                }
                Dep::File(path) => outputs.push(Place::Source(path.clone())),
            }
        }
        let mut seen = BTreeSet::new();
        outputs.retain(|place| seen.insert(place.path().to_owned()));
        let outputs = outputs.into_iter().map(|place| (place.path().to_owned(), place)).collect();
        AnalyzedModule { module, outputs }
    }

    /// Sets how a program is started: by its own path, with the `args` and `env` it was given.
    fn set_process(
        &self,
        target: &Target,
        module: &mut Module,
        program: &str,
    ) -> Result<(), BuildFileError> {
        // A word without a slash would be looked up in PATH.
        let program = if program.contains('/') { program.into() } else { format!("./{program}") };
        module.process.entrypoint = vec![program];
        module.process.cmd = self.expand_all(target, target.strs("args"))?;
        for (name, value) in target.dict("env") {
            module.process.env.insert(name, self.expand(target, &value)?);
        }
        Ok(())
    }

    /// A target and all that its modules need at run time: what must stand beside a program for it to run.
    fn runfiles(&self, label: &Label) -> BTreeSet<Place> {
        let by_label: BTreeMap<_, _> =
            self.modules.iter().map(|module| (&module.module.label, module)).collect();
        let mut files = BTreeSet::new();
        let mut seen = BTreeSet::from([label]);
        let mut todo = vec![label];
        while let Some(label) = todo.pop() {
            let Some(module) = by_label.get(label) else { continue };
            files.extend(module.outputs.iter().map(|(_, place)| place.clone()));
            todo.extend(module.module.deps.iter().filter(|dep| seen.insert(dep)));
        }
        files
    }
}
