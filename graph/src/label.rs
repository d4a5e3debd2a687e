//! Labels: the names of modules in a build, `//app:A`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a module: a package (a folder with a `BUILD` file) and a target in it.
///
/// A label may name another repository first (`@numpy//:numpy`), as in Bazel and Buck.
/// Neither part ever holds an empty, `.` or `..` component, so both are safe as relative paths.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    repository: Box<str>,
    package: Box<str>,
    name: Box<str>,
}

/// A text that is not a label.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a label: {reason}")]
pub struct ParseLabelError {
    text: String,
    reason: &'static str,
}

impl Label {
    /// Parses `text` as it stands in the `BUILD` file of `package`: besides the absolute forms,
    /// `:name` and `name` mean a target of that package.
    pub fn parse_in(text: &str, package: &str) -> Result<Self, ParseLabelError> {
        let error = |reason| ParseLabelError { text: text.to_owned(), reason };
        let (repository, rest) = match text.strip_prefix('@') {
            Some(rest) => {
                let rest = rest.strip_prefix('@').unwrap_or(rest);
                let at = rest.find("//").ok_or_else(|| error("a repository is followed by //"))?;
                (&rest[..at], &rest[at..])
            }
            None => ("", text),
        };
        if repository.contains(['/', ':', '@']) || repository == ".." || repository == "." {
            return Err(error("the repository's name is not a plain word"));
        }
        let (package, name) = match rest.strip_prefix("//") {
            Some(rest) => match rest.split_once(':') {
                Some((package, name)) => (package, name),
                None => (rest, rest.rsplit('/').next().unwrap_or(rest)),
            },
            None => (package, rest.strip_prefix(':').unwrap_or(rest)),
        };
        if name.is_empty() {
            return Err(error("it has no target name"));
        }
        if name.contains(':') || package.contains([':', '@']) {
            return Err(error("it has too many colons"));
        }
        if !is_clean_path(name) || !(package.is_empty() || is_clean_path(package)) {
            return Err(error("a part of its path is empty, `.` or `..`"));
        }
        if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(error("it holds white space"));
        }
        Ok(Self { repository: repository.into(), package: package.into(), name: name.into() })
    }

    /// The other repository it is in; empty for the main one.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The folder of the `BUILD` file, relative to the workspace; empty at its root.
    pub fn package(&self) -> &str {
        &self.package
    }

    /// The target's name in its package.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn is_clean_path(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

impl FromStr for Label {
    type Err = ParseLabelError;

    /// Parses an absolute label: `//app:A`, `//app` (short for `//app:app`) or `@repo//app:A`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !(text.starts_with("//") || text.starts_with('@')) {
            let reason = "it does not start with // (as in //app:A)";
            return Err(ParseLabelError { text: text.to_owned(), reason });
        }
        Self::parse_in(text, "")
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.repository.is_empty() {
            write!(f, "@{}", self.repository)?;
        }
        write!(f, "//{}:{}", self.package, self.name)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_one_label() {
        let label: Label = "//app:A".parse().unwrap();
        assert_eq!((label.package(), label.name()), ("app", "A"));
        assert_eq!(Label::parse_in(":A", "app").unwrap(), label);
        assert_eq!(Label::parse_in("A", "app").unwrap(), label);
        assert_eq!("//a/b".parse::<Label>().unwrap().to_string(), "//a/b:b");
        assert_eq!("//:x".parse::<Label>().unwrap().to_string(), "//:x");
        assert_eq!("@np//:np".parse::<Label>().unwrap().to_string(), "@np//:np");
        assert_eq!("@@np//a:b".parse::<Label>().unwrap().to_string(), "@np//a:b");
    }

    #[test]
    fn what_is_not_a_label() {
        for bad in [
            "", "app:A", "//", "//app:", "//a//b:c", "//../x:y", "//a:../b", "//a:b:c", "//a b:c",
            "@x", "@..//a:b", "//a/:b", "///a:b",
        ] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }
}
