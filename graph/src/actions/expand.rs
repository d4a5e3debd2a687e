//! `$(location //lib:x)` and its relatives in the strings of a target.

use super::{Analyzer, Place};
use crate::Label;
use crate::buildfile::{BuildFileError, Target};

impl Analyzer<'_> {
    pub(super) fn expand_all(
        &self,
        target: &Target,
        texts: &[String],
    ) -> Result<Vec<String>, BuildFileError> {
        texts.iter().map(|text| self.expand(target, text)).collect()
    }

    /// Replaces `$(location …)`; `$$` is a dollar sign, any other one stays.
    pub(super) fn expand(&self, target: &Target, text: &str) -> Result<String, BuildFileError> {
        self.expand_with(target, text, |_| None)
    }

    /// As [`Self::expand`]; `variable` knows what else may follow a `$`: the text in `$(…)`, or one of `@` and `<`.
    pub(super) fn expand_with(
        &self,
        target: &Target,
        text: &str,
        variable: impl Fn(&str) -> Option<Result<String, String>>,
    ) -> Result<String, BuildFileError> {
        let refuse = |message: String| target.error_at(text, message);
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some(inside) = rest.strip_prefix('(') {
                let end = inside.find(')').ok_or_else(|| refuse("`$(` is not closed".into()))?;
                let name = &inside[..end];
                match variable(name) {
                    Some(value) => out.push_str(&value.map_err(refuse)?),
                    None => out.push_str(&self.location(target, name)?),
                }
                rest = &inside[end + 1..];
            } else if let Some(value) = rest.get(..1).and_then(&variable) {
                out.push_str(&value.map_err(refuse)?);
                rest = &rest[1..];
            } else {
                out.push('$');
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn location(&self, target: &Target, name: &str) -> Result<String, BuildFileError> {
        let refuse = |message: String| target.error_at(name, message);
        let (function, label) = name.split_once(' ').unwrap_or((name, ""));
        let many = match function {
            "location" | "execpath" | "rootpath" | "exe" => false,
            "locations" | "execpaths" | "rootpaths" => true,
            _ => return Err(refuse(format!("`$({name})` is not known here; `$$` gives a `$`"))),
        };
        let label = Label::parse_in(label.trim(), target.label.package())
            .map_err(|error| refuse(error.to_string()))?;
        let places = self.named(target, &label).ok_or_else(|| {
            refuse(format!("`$({name})`: {label} is not among the labels of {}", target.label))
        })?;
        if !many && places.len() != 1 {
            return Err(refuse(format!("`$({name})`: {label} is {} files", places.len())));
        }
        let paths: Vec<_> = places.iter().map(|place| shell_word(place.path())).collect();
        Ok(paths.join(" "))
    }

    /// The files of a label, if `target` lists it in any attribute.
    fn named(&self, target: &Target, label: &Label) -> Option<Vec<Place>> {
        let path = crate::buildfile::join(label.package(), label.name());
        if target.lists_file(&path) {
            return Some(vec![Place::Source(path)]);
        }
        if target.lists_output(&path) {
            return Some(vec![Place::Built(path)]);
        }
        let listed = target.all_targets().find(|listed| *listed == label);
        let provided = &self.provided.get(listed?)?;
        match &provided.executable {
            Some(executable) => Some(vec![executable.clone()]),
            None => Some(provided.files.clone()),
        }
    }
}

/// A path as one word of a shell's command.
pub(super) fn shell_word(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+,=@%".contains(c);
    if path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}
