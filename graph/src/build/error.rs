//! What can be wrong with a build graph.

use std::fmt;

use crate::Label;

/// A set of modules that is not a build graph.
#[derive(Debug, thiserror::Error)]
pub enum BuildGraphError {
    /// The text is not a graph's JSON form.
    #[error("not a build graph")]
    Json(#[source] serde_json::Error),
    /// Written for a later mica.
    #[error("the build graph has schema {0}; this mica reads schema 1")]
    Schema(u32),
    /// Two modules of one name.
    #[error("module {0} is listed twice")]
    Twice(Label),
    /// A dependency that is not in the graph.
    #[error("{module} depends on {dep}, which does not exist{}", Hint(.hint))]
    MissingDep {
        /// Who needs it.
        module: Label,
        /// What is missing.
        dep: Label,
        /// A label that exists and looks like it.
        hint: Option<String>,
    },
    /// Modules that need one another; the first label is repeated at the end.
    #[error("dependency cycle: {}", Arrows(.0))]
    Cycle(Vec<Label>),
    /// An output outside of the tree.
    #[error("{module} has the output `{path}`, which is no place in the tree: {reason}")]
    BadPath {
        /// Whose output it is.
        module: Label,
        /// The path as it was given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// One module that puts two files at one path.
    #[error("{module} puts two different files at `{path}`")]
    TwoSources {
        /// Whose outputs they are.
        module: Label,
        /// The path.
        path: String,
    },
}

/// A target that is not in the graph.
#[derive(Debug, thiserror::Error)]
#[error("there is no target {target}{}", Hint(.hint))]
pub struct UnknownTargetError {
    /// What was asked for.
    pub target: Label,
    /// A label that exists and looks like it.
    pub hint: Option<String>,
}

/// ` (did you mean …?)`, or nothing.
pub(crate) struct Hint<'a, T>(pub(crate) &'a Option<T>);

impl<T: fmt::Display> fmt::Display for Hint<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hint) => write!(f, " (did you mean `{hint}`?)"),
            None => Ok(()),
        }
    }
}

/// `a -> b -> a`.
pub(crate) struct Arrows<'a, T>(pub(crate) &'a [T]);

impl<T: fmt::Display> fmt::Display for Arrows<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            let arrow = if index == 0 { "" } else { " -> " };
            write!(f, "{arrow}{item}")?;
        }
        Ok(())
    }
}
