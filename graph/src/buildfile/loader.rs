//! Evaluates packages as they are needed, and resolves the labels of the targets in them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use starlark::PrintHandler;
use starlark::codemap::FileSpan;
use starlark::environment::{FrozenModule, Globals, Module};
use starlark::eval::{Evaluator, ReturnFileLoader};
use starlark::syntax::{AstModule, Dialect, DialectTypes};

use super::config::Configuration;
use super::context::Context;
use super::error::{BuildFileError, Location};
use super::eval::globals;
use super::files::Files;
use super::rules::RuleKind;
use super::target::{Dep, Target, Value};
use super::{Workspace, guard, join};
use crate::Label;
use crate::build::{find_cycle, nearest};

/// The targets that a target needs, by label, and what the build files printed.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The target asked for, aliases followed.
    pub target: Label,
    /// It and all it needs, also what is needed to build only.
    pub targets: BTreeMap<Label, Target>,
    /// The files evaluated, build files and `.bzl` files.
    pub files: Vec<String>,
    /// The lines printed by `print()`.
    pub printed: Vec<String>,
}

/// Evaluates the packages that `target` needs.
pub fn load(
    workspace: &dyn Workspace,
    target: &Label,
    config: &Configuration,
) -> Result<Loaded, BuildFileError> {
    // The evaluator recurses; how deep, is bounded (see `guard`), and this stack is enough for it.
    const STACK: usize = 256 << 20;
    std::thread::scope(|scope| {
        let evaluate = || Loader::new(workspace, config).load(target);
        let thread = std::thread::Builder::new()
            .name("starlark".into())
            .stack_size(STACK)
            .spawn_scoped(scope, evaluate)
            .map_err(BuildFileError::Thread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Rule sets that Bazel and Buck users load; ours are built in.
const BUILT_IN: [&str; 4] = ["@rules_cc//", "@rules_python//", "@rules_shell//", "@prelude//"];

pub(super) struct Loader<'w> {
    pub(super) files: Files<'w>,
    pub(super) config: &'w Configuration,
    globals: Globals,
    packages: RefCell<BTreeMap<String, Rc<Package>>>,
    /// `.bzl` files already evaluated.
    modules: RefCell<HashMap<String, FrozenModule>>,
    /// The files being evaluated, each needed by the one before it.
    open: RefCell<Vec<String>>,
    evaluated: RefCell<Vec<String>>,
    printed: Printed,
}

struct Package {
    file: String,
    targets: BTreeMap<String, Target>,
    /// The names of files that genrules make, and the rule's name.
    outputs: BTreeMap<String, String>,
}

#[derive(Default)]
struct Printed {
    lines: RefCell<Vec<String>>,
    bytes: Cell<usize>,
}

impl PrintHandler for Printed {
    fn println(&self, text: &str) -> starlark::Result<()> {
        const MAX: usize = 1 << 20;
        self.bytes.set(self.bytes.get() + text.len());
        if self.bytes.get() <= MAX {
            self.lines.borrow_mut().push(text.to_owned());
        }
        Ok(())
    }
}

impl<'w> Loader<'w> {
    fn new(workspace: &'w dyn Workspace, config: &'w Configuration) -> Self {
        Self {
            files: Files::new(workspace),
            config,
            globals: globals(),
            packages: RefCell::default(),
            modules: RefCell::default(),
            open: RefCell::default(),
            evaluated: RefCell::default(),
            printed: Printed::default(),
        }
    }

    /// Breadth first from the target, over every label that is a target.
    fn load(&self, target: &Label) -> Result<Loaded, BuildFileError> {
        if !target.repository().is_empty() {
            return Err(BuildFileError::Repository(target.clone()));
        }
        let root = self.actual(target)?;
        let mut targets = BTreeMap::new();
        let mut queue = VecDeque::from([root.label.clone()]);
        let mut seen = BTreeSet::from([root.label.clone()]);
        while let Some(label) = queue.pop_front() {
            let target = self.resolve(self.declared(&label)?)?;
            for dep in target.all_targets() {
                if seen.insert(dep.clone()) {
                    queue.push_back(dep.clone());
                }
            }
            targets.insert(label, target);
        }
        let deps = |label: &Label| -> Vec<Label> {
            targets
                .get(label)
                .map_or_else(Vec::new, |target| target.all_targets().cloned().collect())
        };
        if let Some(cycle) = find_cycle(targets.keys(), deps) {
            return Err(BuildFileError::Cycle(cycle));
        }
        Ok(Loaded {
            target: root.label,
            targets,
            files: self.evaluated.take(),
            printed: self.printed.lines.take(),
        })
    }

    /// The target of this name, as its build file declares it.
    pub(super) fn declared(&self, label: &Label) -> Result<Target, BuildFileError> {
        let package = self.package(label.package())?.ok_or_else(|| self.no_package(label))?;
        package.targets.get(label.name()).cloned().ok_or_else(|| BuildFileError::NoTarget {
            target: label.clone(),
            file: package.file.clone(),
            hint: crate::build::nearest_label(label, package.targets.values().map(|t| &t.label)),
        })
    }

    /// As [`Self::declared`], aliases followed.
    fn actual(&self, label: &Label) -> Result<Target, BuildFileError> {
        let mut target = self.declared(label)?;
        let mut seen = vec![label.clone()];
        while target.rule.kind == RuleKind::Alias {
            let Some(Value::Labels(actual)) = target.values.get("actual") else { break };
            let actual = actual[0].clone();
            let cycle = seen.contains(&actual);
            seen.push(actual.clone());
            if cycle {
                return Err(BuildFileError::Cycle(seen));
            }
            target = match self.find(&target, &actual)? {
                Dep::Target(_) => self.declared(&actual)?,
                Dep::File(path) | Dep::Output(_, path) => {
                    let message = format!("`{path}` is a file, not a target");
                    return Err(target.error_at_label(&actual, message));
                }
            };
        }
        Ok(target)
    }

    /// Finds the file or target behind every label of `target`.
    fn resolve(&self, mut target: Target) -> Result<Target, BuildFileError> {
        for (&attr, value) in &target.values {
            let Value::Labels(labels) = value else { continue };
            let deps = labels.iter().map(|label| self.dep(&target, label));
            let mut deps = deps.collect::<Result<Vec<_>, _>>()?;
            let mut seen = BTreeSet::new();
            deps.retain(|dep| seen.insert(dep.clone()));
            target.deps.insert(attr, deps);
        }
        Ok(target)
    }

    /// What a label stands for, aliases followed.
    fn dep(&self, from: &Target, label: &Label) -> Result<Dep, BuildFileError> {
        match self.find(from, label)? {
            Dep::Target(label) => Ok(Dep::Target(self.actual(&label)?.label)),
            dep => Ok(dep),
        }
    }

    /// What a label stands for; it may be an alias.
    fn find(&self, from: &Target, label: &Label) -> Result<Dep, BuildFileError> {
        if !label.repository().is_empty() {
            let message = BuildFileError::Repository(label.clone()).to_string();
            return Err(from.error_at_label(label, message));
        }
        let Some(package) = self.package(label.package())? else {
            let message = self.no_package(label).to_string();
            return Err(from.error_at_label(label, message));
        };
        if package.targets.contains_key(label.name()) {
            return Ok(Dep::Target(label.clone()));
        }
        let path = join(label.package(), label.name());
        if let Some(maker) = package.outputs.get(label.name()) {
            return Ok(Dep::Output(package.targets[maker].label.clone(), path));
        }
        if let Some(owner) = self.files.owner(&path)?
            && owner != label.package()
        {
            let message = format!("`{path}` belongs to the package //{owner}: name it from there");
            return Err(from.error_at_label(label, message));
        }
        if self.files.is_file(&path)? {
            return Ok(Dep::File(path));
        }
        let message = self.no_dep(&package, label)?;
        Err(from.error_at_label(label, message))
    }

    fn no_dep(&self, package: &Package, label: &Label) -> Result<String, BuildFileError> {
        let names = package.targets.keys().chain(package.outputs.keys()).cloned();
        let folder = label.name().rsplit_once('/').map_or("", |(folder, _)| folder);
        let listing = self.files.list(&join(label.package(), folder))?;
        let files = listing.iter().map(|entry| join(folder, &entry.name));
        let hint = nearest(label.name(), names.chain(files));
        let hint = crate::build::Hint(&hint).to_string();
        Ok(format!("there is no target and no file {label}{hint}"))
    }

    fn no_package(&self, label: &Label) -> BuildFileError {
        let package = label.package().to_owned();
        let (parent, name) = package.rsplit_once('/').unwrap_or(("", &package));
        let siblings = self.files.list(parent).unwrap_or_default();
        let folders =
            siblings.iter().filter(|entry| entry.is_folder).map(|entry| entry.name.clone());
        let hint = nearest(name, folders.filter(|folder| *folder != name));
        let hint = hint.map(|name| format!("//{}", join(parent, &name)));
        BuildFileError::NoPackage { package, hint }
    }

    /// Whether all that a `config_setting` asks for holds.
    pub(super) fn setting_holds(&self, setting: &Target) -> Result<bool, String> {
        if setting.rule.kind != RuleKind::ConfigSetting {
            let (label, rule) = (&setting.label, setting.rule.name);
            return Err(format!("{label} is a {rule}; a key of select is a config_setting"));
        }
        let mut holds = true;
        for constraint in setting.strs("constraint_values") {
            holds &= self.config.constraint(constraint)?.ok_or_else(|| {
                format!("{}: `{constraint}` is no constraint that mica knows", setting.label)
            })?;
        }
        let flags = [setting.dict("values"), setting.dict("define_values")];
        for (name, value) in flags.iter().flatten() {
            holds &= match (name.as_str(), value.split_once('=')) {
                ("define", Some((name, value))) => self.config.has_flag(name, value),
                _ => self.config.has_flag(name, value),
            };
        }
        Ok(holds)
    }

    /// The package in this folder, evaluated once; `None` if the folder has no build file.
    fn package(&self, name: &str) -> Result<Option<Rc<Package>>, BuildFileError> {
        if let Some(package) = self.packages.borrow().get(name) {
            return Ok(Some(Rc::clone(package)));
        }
        let Some(file) = self.files.build_file(name)? else { return Ok(None) };
        let file = join(name, file);
        let text = self.files.read(&file)?;
        let Some(text) = text else { return Ok(None) };
        let (_, targets) = self.evaluate(&file, text, Some(name))?;
        let mut outputs = BTreeMap::new();
        for (name, target) in &targets {
            let outs = target.strs("outs").iter().map(String::as_str).chain(target.str("out"));
            outputs.extend(outs.map(|out| (out.to_owned(), name.clone())));
        }
        let package = Rc::new(Package { file, targets, outputs });
        self.packages.borrow_mut().insert(name.to_owned(), Rc::clone(&package));
        Ok(Some(package))
    }

    /// Evaluates one file: a build file of `package`, or a `.bzl` file.
    fn evaluate(
        &self,
        file: &str,
        text: String,
        package: Option<&str>,
    ) -> Result<(FrozenModule, BTreeMap<String, Target>), BuildFileError> {
        if let Some(from) = self.open.borrow().iter().position(|open| open == file) {
            let mut cycle = self.open.borrow()[from..].to_vec();
            cycle.push(file.to_owned());
            return Err(BuildFileError::LoadCycle(cycle));
        }
        self.open.borrow_mut().push(file.to_owned());
        let result = self.evaluate_open(file, text, package);
        self.open.borrow_mut().pop();
        self.evaluated.borrow_mut().push(file.to_owned());
        result
    }

    fn evaluate_open(
        &self,
        file: &str,
        text: String,
        package: Option<&str>,
    ) -> Result<(FrozenModule, BTreeMap<String, Target>), BuildFileError> {
        guard::check(&text).map_err(|(line, message)| {
            let text = text.lines().nth(line - 1).unwrap_or_default().to_owned();
            Location { file: file.to_owned(), line, column: 1, width: 1, text }.error(message)
        })?;
        let dialect = Dialect {
            enable_keyword_only_arguments: true,
            enable_types: DialectTypes::ParseOnly,
            enable_f_strings: true,
            ..Dialect::Standard
        };
        let ast = AstModule::parse(file, text, &dialect).map_err(|error| at(file, &error))?;
        let loaded = self.loads(file, &ast)?;
        let modules = loaded.iter().map(|(name, module)| (name.as_str(), module)).collect();
        let loader = ReturnFileLoader { modules: &modules };
        let context = Context {
            loader: self,
            package,
            targets: RefCell::default(),
            nested: RefCell::default(),
        };
        let frozen = Module::with_temp_heap(|module| {
            {
                let mut eval = Evaluator::new(&module);
                set_limits(&mut eval)?;
                eval.set_loader(&loader);
                eval.set_print_handler(&self.printed);
                eval.extra = Some(&context);
                eval.eval_module(ast, &self.globals)?;
            }
            module.freeze().map_err(starlark::Error::from)
        });
        match (frozen, context.nested.into_inner()) {
            (_, Some(nested)) => Err(nested),
            (Ok(module), None) => Ok((module, context.targets.into_inner())),
            (Err(error), None) => Err(at(file, &error)),
        }
    }

    /// The modules that a file loads, evaluated.
    fn loads(
        &self,
        file: &str,
        ast: &AstModule,
    ) -> Result<Vec<(String, FrozenModule)>, BuildFileError> {
        const DEEPEST: usize = 64;
        let mut loaded = Vec::new();
        for load in ast.loads() {
            let refuse = |message: String| Location::new(&load.span).error(message);
            let module = if BUILT_IN.iter().any(|prefix| load.module_id.starts_with(prefix)) {
                FrozenModule::from_globals(&self.globals)
                    .map_err(|error| refuse(starlark::Error::from(error).to_string()))?
            } else {
                if self.open.borrow().len() > DEEPEST {
                    return Err(refuse(format!("load() is nested deeper than {DEEPEST} files")));
                }
                let path = load_path(file, load.module_id).map_err(refuse)?;
                self.module(&path)?
                    .ok_or_else(|| refuse(format!("there is no file {path} to load")))?
            };
            loaded.push((load.module_id.to_owned(), module));
        }
        Ok(loaded)
    }

    fn module(&self, path: &str) -> Result<Option<FrozenModule>, BuildFileError> {
        if let Some(module) = self.modules.borrow().get(path) {
            return Ok(Some(module.clone()));
        }
        let Some(text) = self.files.read(path)? else { return Ok(None) };
        let (module, _) = self.evaluate(path, text, None)?;
        self.modules.borrow_mut().insert(path.to_owned(), module.clone());
        Ok(Some(module))
    }
}

/// The file that `load(module)` in `file` means.
fn load_path(file: &str, module: &str) -> Result<String, String> {
    if module.starts_with('@') {
        return Err(format!("`{module}` is in another repository, and mica builds one workspace"));
    }
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let label = Label::parse_in(module, folder).map_err(|error| error.to_string())?;
    if !label.name().ends_with(".bzl") {
        return Err(format!("`{module}` is not a .bzl file"));
    }
    Ok(join(label.package(), label.name()))
}

fn set_limits(eval: &mut Evaluator<'_, '_, '_>) -> starlark::Result<()> {
    const CALLS: usize = 100;
    const HEAP: usize = 256 << 20;
    const STEPS: u64 = 5_000_000;
    eval.set_max_callstack_size(CALLS)
        .and_then(|()| eval.set_max_heap_size(HEAP))
        .and_then(|()| eval.set_max_tick_count(STEPS))
        .map_err(starlark::Error::new_other)
}

/// The crate's error, with its place and the calls that led to it.
fn at(file: &str, error: &starlark::Error) -> BuildFileError {
    let message = error.without_diagnostic().to_string();
    let message = lower_case(message.trim_end().trim_end_matches('.'));
    let frames = error.call_stack().frames.iter();
    let calls: Vec<FileSpan> = frames.filter_map(|frame| frame.location.clone()).collect();
    let Some(span) = error.span().or(calls.last()) else {
        let text = String::new();
        let at = Location { file: file.to_owned(), line: 1, column: 1, width: 1, text };
        return at.error(message);
    };
    let at = Location::new(span);
    let calls = calls.iter().map(Location::new).filter(|call| *call != at).collect();
    BuildFileError::At { at: Box::new(at), message, calls }
}

/// The crate's messages begin with a capital letter, ours don't.
fn lower_case(message: &str) -> String {
    let mut chars = message.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second))
            if first.is_ascii_uppercase() && second.is_ascii_lowercase() =>
        {
            format!("{}{}", first.to_ascii_lowercase(), chars.as_str())
        }
        _ => message.to_owned(),
    }
}
