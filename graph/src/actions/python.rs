//! Python: modules as they are, and a small program that starts one with the tree on Python's path.

use std::collections::BTreeSet;

use super::{Action, ActionOutput, Analyzer, Place, Provided, Run};
use crate::buildfile::{BuildFileError, Dep, RuleKind, Target, join};

const RUNTIME: [&str; 4] = ["srcs", "deps", "data", "resources"];

impl Analyzer<'_> {
    pub(super) fn py_library(&mut self, target: &Target) -> Result<Provided, BuildFileError> {
        let imports = self.imports(target)?;
        self.modules.push(self.module(target, &RUNTIME, []));
        Ok(Provided { files: self.files_of(target, &["srcs"]), imports, ..Provided::default() })
    }

    pub(super) fn py_binary(&mut self, target: &Target) -> Result<Provided, BuildFileError> {
        let imports = self.imports(target)?;
        let start = self.start(target)?;
        let path = Self::output_path(target, target.label.name())?;
        let action = Action {
            label: target.label.clone(),
            verb: "write",
            inputs: Vec::new(),
            also: Vec::new(),
            outputs: vec![ActionOutput { path: path.clone(), executable: Some(true) }],
            run: Run::Write(launcher(&path, &start, &imports)),
        };
        self.push_action(target, action)?;
        let program = Place::Built(path.clone());
        let mut module =
            self.module(target, &["main", "srcs", "deps", "data", "resources"], [program.clone()]);
        self.set_process(target, &mut module.module, &path)?;
        self.modules.push(module);
        let mut files = vec![program.clone()];
        files.extend(self.files_of(target, &["srcs"]));
        Ok(Provided { files, executable: Some(program), imports, ..Provided::default() })
    }

    /// Folders for Python's path: those asked for here and below.
    fn imports(&self, target: &Target) -> Result<Vec<String>, BuildFileError> {
        for attr in ["srcs_version", "python_version"] {
            if let Some(version) =
                target.str(attr).filter(|&version| matches!(version, "PY2" | "PY2ONLY"))
            {
                return Err(target
                    .error_at(version, format!("{version} is not supported: Python 3 runs it")));
            }
        }
        let mut imports = Vec::new();
        for import in target.strs("imports") {
            let folder = if import == "." { "" } else { import };
            let folder = join(target.label.package(), folder);
            if let Some(reason) = crate::build::bad_tree_path(&folder) {
                let message = format!("`{import}` is no folder of the tree: {reason}");
                return Err(target.error_at(import, message));
            }
            imports.push(folder);
        }
        for dep in target.deps("deps") {
            match dep {
                Dep::Target(label) => {
                    let rule = self.targets[label].rule;
                    if !matches!(
                        rule.kind,
                        RuleKind::PyLibrary
                            | RuleKind::PyBinary
                            | RuleKind::CcLibrary
                            | RuleKind::Tree
                    ) {
                        let message =
                            format!("{label} is a {}, not a library (is `data` meant?)", rule.name);
                        return Err(target.error_at_label(label, message));
                    }
                    imports.extend(self.provided[label].imports.iter().cloned());
                }
                Dep::File(path) | Dep::Output(_, path) => {
                    return Err(target.error(format!("`{path}` in deps is a file, not a library")));
                }
            }
        }
        let mut seen = BTreeSet::new();
        imports.retain(|folder| seen.insert(folder.clone()));
        Ok(imports)
    }

    /// What the program runs.
    fn start(&self, target: &Target) -> Result<Start, BuildFileError> {
        if let Some(module) = target.str("main_module") {
            return Ok(Start::Module(module.to_owned()));
        }
        let mut files = self.files_of(target, &["main"]);
        if files.is_empty() {
            files = self.files_of(target, &["srcs"]);
            let named = format!("{}.py", join(target.label.package(), target.label.name()));
            if files.len() > 1 {
                files.retain(|place| place.path() == named);
            }
        }
        match files.as_slice() {
            [main] => Ok(Start::File(main.path().to_owned())),
            _ => {
                let message = format!(
                    "which of the sources of {} is to be run? Name it by `main`",
                    target.label
                );
                Err(target.error(message))
            }
        }
    }
}

enum Start {
    File(String),
    Module(String),
}

/// A string of Python with this text; Rust's escapes for what can be in a path are Python's too.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// The program at `path`: it finds the tree from its own place, so it works wherever the tree is mounted.
fn launcher(path: &str, start: &Start, imports: &[String]) -> String {
    let up = path.matches('/').count();
    let imports: Vec<_> = imports.iter().map(|folder| quoted(folder)).collect();
    let imports = imports.join(", ");
    let run = match start {
        Start::File(main) => format!(
            "main = os.path.join(root, {main})\n\
             sys.argv[0] = main\n\
             sys.path[0:1] = [os.path.dirname(main), root] + imports\n\
             runpy.run_path(main, run_name=\"__main__\")\n",
            main = quoted(main)
        ),
        Start::Module(module) => format!(
            "sys.path[0:1] = [root] + imports\n\
             runpy.run_module({module}, run_name=\"__main__\", alter_sys=True)\n",
            module = quoted(module)
        ),
    };
    format!(
        "#!/usr/bin/env python3\n\
         import os\n\
         import runpy\n\
         import sys\n\
         \n\
         root = os.path.dirname(os.path.abspath(__file__))\n\
         for _ in range({up}):\n    root = os.path.dirname(root)\n\
         imports = [os.path.join(root, folder) for folder in [{imports}]]\n\
         {run}"
    )
}
