//! A target: one call of a rule.

use std::collections::BTreeMap;

use starlark::codemap::FileSpan;

use super::error::{BuildFileError, Location};
use super::rules::Rule;
use crate::Label;

/// One call of a rule in a build file, its labels resolved.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name.
    pub label: Label,
    /// The rule called.
    pub rule: &'static Rule,
    pub(super) span: FileSpan,
    pub(super) values: BTreeMap<&'static str, Value>,
    pub(super) deps: BTreeMap<&'static str, Vec<Dep>>,
}

/// What a label in an attribute stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dep {
    /// A file of the workspace, by its path.
    File(String),
    /// A target.
    Target(Label),
    /// One of the files that a target makes: the target, and the file's path.
    Output(Label, String),
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Strs(Vec<String>),
    Dict(BTreeMap<String, String>),
    /// Resolved into [`Target::deps`] when the target is found to be needed.
    Labels(Vec<Label>),
}

impl Target {
    /// Where it is declared.
    pub fn at(&self) -> Location {
        Location::new(&self.span)
    }

    /// An error at the place where it is declared.
    pub fn error(&self, message: impl Into<String>) -> BuildFileError {
        self.at().error(message)
    }

    /// An error at `text` in its declaration, if `text` stands there as a string.
    pub fn error_at(&self, text: &str, message: impl Into<String>) -> BuildFileError {
        Location::of_string(&self.span, text).error(message)
    }

    /// Whether `attr` was given.
    pub fn has(&self, attr: &str) -> bool {
        self.values.contains_key(attr)
    }

    /// A flag; `false` if it was not given.
    pub fn flag(&self, attr: &str) -> bool {
        matches!(self.values.get(attr), Some(Value::Bool(true)))
    }

    /// A whole number.
    pub fn int(&self, attr: &str) -> Option<i64> {
        match self.values.get(attr) {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// A number.
    pub fn float(&self, attr: &str) -> Option<f64> {
        match self.values.get(attr) {
            Some(Value::Float(value)) => Some(*value),
            _ => None,
        }
    }

    /// A string.
    pub fn str(&self, attr: &str) -> Option<&str> {
        match self.values.get(attr) {
            Some(Value::Str(value)) => Some(value),
            _ => None,
        }
    }

    /// A list of strings; empty if it was not given.
    pub fn strs(&self, attr: &str) -> &[String] {
        match self.values.get(attr) {
            Some(Value::Strs(value)) => value,
            _ => &[],
        }
    }

    /// A dict of strings; empty if it was not given.
    pub fn dict(&self, attr: &str) -> BTreeMap<String, String> {
        match self.values.get(attr) {
            Some(Value::Dict(value)) => value.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// The files and targets of an attribute, in the order given.
    pub fn deps(&self, attr: &str) -> &[Dep] {
        self.deps.get(attr).map_or(&[], Vec::as_slice)
    }

    /// The files and targets of several attributes.
    pub fn deps_of<'a>(&'a self, attrs: &'a [&str]) -> impl Iterator<Item = &'a Dep> {
        attrs.iter().flat_map(|attr| self.deps(attr))
    }

    /// The targets in any attribute.
    pub fn all_targets(&self) -> impl Iterator<Item = &Label> {
        self.deps.values().flatten().filter_map(|dep| match dep {
            Dep::Target(label) | Dep::Output(label, _) => Some(label),
            Dep::File(_) => None,
        })
    }

    /// Whether any attribute lists this file.
    pub fn lists_file(&self, path: &str) -> bool {
        self.deps.values().flatten().any(|dep| matches!(dep, Dep::File(file) if file == path))
    }

    /// Whether any attribute lists this output of another target.
    pub fn lists_output(&self, path: &str) -> bool {
        self.deps.values().flatten().any(|dep| matches!(dep, Dep::Output(_, file) if file == path))
    }

    /// An error at a label in its declaration, in whichever way the label is written there.
    pub fn error_at_label(&self, label: &Label, message: String) -> BuildFileError {
        let text = self.span.source_span();
        let forms = [label.to_string(), format!(":{}", label.name()), label.name().to_owned()];
        let form = forms.iter().find(|form| {
            text.contains(&format!("\"{form}\"")) || text.contains(&format!("'{form}'"))
        });
        self.error_at(form.map_or("", String::as_str), message)
    }
}
