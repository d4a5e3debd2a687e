//! Versions, tags and references to packages: `A@953bc`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not a name, version or reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a {what}: {reason}")]
pub struct ParseReferenceError {
    text: String,
    what: &'static str,
    reason: &'static str,
}

/// Longest name or version: it becomes part of file names, with room for a suffix.
const MAX_LEN: usize = 128;

fn check_word(text: &str, what: &'static str) -> Result<(), ParseReferenceError> {
    let error = |reason| Err(ParseReferenceError { text: text.to_owned(), what, reason });
    if text.is_empty() {
        return error("it is empty");
    }
    if text.len() > MAX_LEN {
        return error("it is longer than 128 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b)) {
        return error("only ASCII letters, digits and . _ - + are allowed");
    }
    if !text.as_bytes()[0].is_ascii_alphanumeric() {
        return error("it does not start with a letter or digit");
    }
    Ok(())
}

macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseReferenceError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                check_word(text, $what)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

word!(
    /// The name of a package: the target's name, `A` for `//app:A`.
    PackageName,
    "package name"
);
word!(
    /// The commit a build was made from, or any word where there is no commit; also a tag.
    Version,
    "version"
);

/// What a user names: a package, and which of its versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackageRef {
    /// The package.
    pub name: PackageName,
    /// A version, an unambiguous prefix of one, or a tag; `None` means the tag `latest`.
    pub selector: Option<Version>,
}

impl FromStr for PackageRef {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, selector) = match text.split_once('@') {
            Some((name, selector)) => (name, Some(selector.parse()?)),
            None => (text, None),
        };
        Ok(Self { name: name.parse()?, selector })
    }
}

impl fmt::Display for PackageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Some(selector) => write!(f, "{}@{selector}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let full: PackageRef = "A@953bc".parse().unwrap();
        assert_eq!(full.name.as_str(), "A");
        assert_eq!(full.selector.as_ref().map(Version::as_str), Some("953bc"));
        assert_eq!(full.to_string(), "A@953bc");
        assert_eq!("A".parse::<PackageRef>().unwrap().selector, None);
    }

    #[test]
    fn nothing_that_could_leave_a_folder() {
        for bad in ["", "@", "A@", "@v", "../x", "a/b", "A@../..", "A@.", ".hidden", "A@v@w", "a b"]
        {
            assert!(bad.parse::<PackageRef>().is_err(), "{bad}");
        }
        assert!("x".repeat(129).parse::<PackageName>().is_err());
    }
}
