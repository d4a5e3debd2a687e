//! Scripts, files as they are, and folders as they are.

use super::{Action, ActionOutput, Analyzer, Place, Provided, Run};
use crate::buildfile::{BuildFileError, Target, join};

impl Analyzer<'_> {
    pub(super) fn sh_binary(&mut self, target: &Target) -> Result<Provided, BuildFileError> {
        let sources = self.files_of(target, &["main", "srcs"]);
        let [script] = sources.as_slice() else {
            let message =
                format!("{} needs one script in `srcs`, not {}", target.label, sources.len());
            return Err(target.error(message));
        };
        let path = Self::output_path(target, target.label.name())?;
        let action = Action {
            label: target.label.clone(),
            verb: "copy",
            inputs: vec![script.clone()],
            also: Vec::new(),
            outputs: vec![ActionOutput { path: path.clone(), executable: Some(true) }],
            run: Run::Copy,
        };
        self.push_action(target, action)?;
        let program = Place::Built(path.clone());
        let attrs = ["main", "srcs", "deps", "data", "resources"];
        let mut module = self.module(target, &attrs, [program.clone()]);
        self.set_process(target, &mut module.module, &path)?;
        self.modules.push(module);
        Ok(Provided {
            files: vec![program.clone()],
            executable: Some(program),
            ..Provided::default()
        })
    }

    pub(super) fn filegroup(&mut self, target: &Target) -> Provided {
        self.modules.push(self.module(target, &["srcs", "data"], []));
        Provided { files: self.files_of(target, &["srcs"]), ..Provided::default() }
    }

    pub(super) fn tree(&mut self, target: &Target) -> Result<Provided, BuildFileError> {
        let dir = target.str("dir").unwrap_or_default();
        let place = if dir.starts_with('/') {
            Place::Host(dir.to_owned())
        } else {
            Place::Source(Self::output_path(target, dir)?)
        };
        let base = target.rule.name == "mica_base";
        let default =
            if base { String::new() } else { join(target.label.package(), target.label.name()) };
        let at = target.str("at").map_or(default, |at| at.trim_matches('/').to_owned());
        if let Some(reason) = crate::build::bad_tree_path(&at) {
            return Err(target.error_at(&at, format!("`{at}` is no place in the tree: {reason}")));
        }
        let mut module = self.module(target, &["deps"], []);
        module.module.root = base || target.flag("root");
        module.outputs.push((at, place));
        self.modules.push(module);
        Ok(Provided::default())
    }
}
