//! Errors that point into a build file.

use std::fmt;
use std::io;

use starlark::codemap::FileSpan;

use crate::Label;
use crate::build::{Arrows, Hint};

/// Why the targets of a workspace could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum BuildFileError {
    /// A build file says something that cannot be.
    #[error("{at}: {message}{}", Excerpt(.at, .calls))]
    At {
        /// Where.
        at: Box<Location>,
        /// What is wrong.
        message: String,
        /// The calls that led there, outermost first, if it is inside a macro.
        calls: Vec<Location>,
    },
    /// A package without a build file.
    #[error("there is no package //{package}: no BUILD file in {}{}", folder(.package), Hint(.hint))]
    NoPackage {
        /// The package.
        package: String,
        /// A package that looks like it.
        hint: Option<String>,
    },
    /// A package without the target.
    #[error("there is no target {target} in {file}{}", Hint(.hint))]
    NoTarget {
        /// What was asked for.
        target: Label,
        /// The build file.
        file: String,
        /// A target that looks like it.
        hint: Option<String>,
    },
    /// A target that is not of this workspace.
    #[error("{0} is in another repository, and mica builds one workspace")]
    Repository(Label),
    /// Targets that need one another; the first label is repeated at the end.
    #[error("dependency cycle: {}", Arrows(.0))]
    Cycle(Vec<Label>),
    /// Files that load one another; the first one is repeated at the end.
    #[error("load() cycle: {}", Arrows(.0))]
    LoadCycle(Vec<String>),
    /// A file that is larger than any build file.
    #[error("{path} has {size} bytes; a build file may have {max}", max = super::guard::MAX_SIZE)]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        size: usize,
    },
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread could be started to evaluate in.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

fn folder(package: &str) -> &str {
    if package.is_empty() { "the workspace's root" } else { package }
}

/// A place in a build file, with the text that is there.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    /// The file, relative to the workspace.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// How many characters of the line are meant.
    pub width: usize,
    /// The line.
    pub text: String,
}

impl Location {
    pub(crate) fn new(span: &FileSpan) -> Self {
        let resolved = span.resolve_span();
        let text = span.file.source_line(resolved.begin.line).to_owned();
        let end = if resolved.end.line == resolved.begin.line {
            resolved.end.column
        } else {
            text.chars().count()
        };
        Self {
            file: span.filename().to_owned(),
            line: resolved.begin.line + 1,
            column: resolved.begin.column + 1,
            width: end.saturating_sub(resolved.begin.column).max(1),
            text,
        }
    }

    /// The place of a string in the text of `span`, as it stands there in quotes; else of the span itself.
    pub(crate) fn of_string(span: &FileSpan, string: &str) -> Self {
        let quoted = |quote| format!("{quote}{string}{quote}");
        let text = span.source_span();
        let found = ['"', '\'']
            .into_iter()
            .find_map(|quote| text.find(&quoted(quote)))
            .and_then(|at| u32::try_from(at).ok());
        let Some(at) = found else { return Self::new(span) };
        let begin = span.span.begin() + at;
        let end = begin + u32::try_from(string.len() + 2).unwrap_or(0);
        Self::new(&span.file.file_span(starlark::codemap::Span::new(begin, end)))
    }

    pub(crate) fn error(&self, message: impl Into<String>) -> BuildFileError {
        BuildFileError::At {
            at: Box::new(self.clone()),
            message: message.into(),
            calls: Vec::new(),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The line meant, with a mark under it, and the calls that led there.
struct Excerpt<'a>(&'a Location, &'a [Location]);

/// More of a line than this is of no use on a screen.
const MAX_TEXT: usize = 160;

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Location { line, column, width, text, .. } = self.0;
        if *column <= MAX_TEXT {
            let shown: String = text.trim_end().chars().take(MAX_TEXT).collect();
            // Tabs are kept in the margin, so that the mark stands under what it means.
            let margin: String =
                text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let width = (*width).min(shown.chars().count().saturating_sub(column - 1)).max(1);
            let gutter = line.to_string().len();
            let space = if shown.is_empty() { "" } else { " " };
            write!(f, "\n{line} |{space}{shown}")?;
            write!(f, "\n{:gutter$} | {margin}{}", "", "^".repeat(width))?;
        }
        for call in self.1 {
            write!(f, "\ncalled from {call}")?;
        }
        Ok(())
    }
}
