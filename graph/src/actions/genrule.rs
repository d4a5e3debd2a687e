//! `genrule`: files made by a command.

use std::collections::{BTreeMap, BTreeSet};

use super::expand::shell_word;
use super::{Action, ActionOutput, Analyzer, Place, Provided, Run, Tool};
use crate::buildfile::{BuildFileError, Dep, Target};

impl Analyzer<'_> {
    pub(super) fn genrule(&mut self, target: &Target) -> Result<Provided, BuildFileError> {
        let outs = outs(target)?;
        let sources = self.files_of(target, &["srcs"]);
        let Some(cmd) = target.str("cmd_bash").or(target.str("cmd")) else {
            return Err(target.error(format!("{} needs the attribute `cmd`", target.label)));
        };
        let words =
            |paths: &[String]| paths.iter().map(|path| shell_word(path)).collect::<Vec<_>>();
        let source_paths: Vec<_> = sources.iter().map(|place| place.path().to_owned()).collect();
        let (source_words, out_words) = (words(&source_paths).join(" "), words(&outs).join(" "));
        let folder =
            |path: &str| path.rsplit_once('/').map_or(".", |(folder, _)| folder).to_owned();
        let package = target.label.package();
        let package = if package.is_empty() { "." } else { package };
        let command = self.expand_with(target, cmd, |name| match name {
            "@" if outs.len() == 1 => Some(Ok(out_words.clone())),
            "@" => {
                Some(Err(format!("`$@` is one file, and {} makes {}", target.label, outs.len())))
            }
            "<" if sources.len() == 1 => Some(Ok(source_words.clone())),
            "<" => {
                Some(Err(format!("`$<` is one file, and {} has {}", target.label, sources.len())))
            }
            "SRCS" => Some(Ok(source_words.clone())),
            "OUTS" => Some(Ok(out_words.clone())),
            "@D" if outs.len() == 1 => Some(Ok(shell_word(&folder(&outs[0])))),
            "@D" | "RULEDIR" => Some(Ok(shell_word(package))),
            _ => own_location(target, name, &outs),
        })?;
        let mut inputs: BTreeSet<_> = sources.into_iter().collect();
        for dep in target.deps("tools") {
            match dep {
                Dep::File(path) => _ = inputs.insert(Place::Source(path.clone())),
                Dep::Target(label) | Dep::Output(label, _) => inputs.extend(self.runfiles(label)),
            }
        }
        inputs.retain(|place| !matches!(place, Place::Host(_)));
        let env = BTreeMap::from([
            ("OUT".to_owned(), outs[0].clone()),
            ("OUTS".to_owned(), outs.join(" ")),
            ("SRCS".to_owned(), source_paths.join(" ")),
            ("SOURCE_DATE_EPOCH".to_owned(), "0".to_owned()),
        ]);
        let executable = target.flag("executable").then_some(true);
        let args = ["--noprofile", "--norc", "-e", "-o", "pipefail", "-c", &command];
        let action = Action {
            label: target.label.clone(),
            verb: "generate",
            inputs: inputs.into_iter().collect(),
            also: Vec::new(),
            outputs: outs
                .iter()
                .map(|path| ActionOutput { path: path.clone(), executable })
                .collect(),
            run: Run::Command { tool: Tool::Bash, args: args.map(str::to_owned).to_vec(), env },
        };
        self.push_action(target, action)?;
        let files: Vec<_> = outs.into_iter().map(Place::Built).collect();
        let mut module = self.module(target, &[], files.clone());
        let program = (executable.is_some() && files.len() == 1).then(|| files[0].clone());
        if let Some(program) = &program {
            self.set_process(target, &mut module.module, program.path())?;
        }
        self.modules.push(module);
        Ok(Provided { files, executable: program, ..Provided::default() })
    }
}

/// `$(location x)` where `x` is an output of the rule itself.
fn own_location(target: &Target, name: &str, outs: &[String]) -> Option<Result<String, String>> {
    let (function, label) = name.split_once(' ')?;
    if !matches!(function, "location" | "execpath" | "rootpath") {
        return None;
    }
    let label = crate::Label::parse_in(label.trim(), target.label.package()).ok()?;
    let path = crate::buildfile::join(label.package(), label.name());
    outs.contains(&path).then(|| Ok(shell_word(&path)))
}

fn outs(target: &Target) -> Result<Vec<String>, BuildFileError> {
    let names = target.strs("outs").iter().map(String::as_str).chain(target.str("out"));
    let outs =
        names.map(|name| Analyzer::output_path(target, name)).collect::<Result<Vec<_>, _>>()?;
    if outs.is_empty() {
        return Err(target.error(format!("{} needs the attribute `outs`", target.label)));
    }
    Ok(outs)
}
