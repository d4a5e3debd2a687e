//! Serde for what the operating system calls strings: text where it is text, bytes where it isn't.
//!
//! Serde's own form of `OsString` is a list of numbers, and of a `PathBuf` that isn't UTF-8 an error.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

impl Form {
    fn new(value: &OsStr) -> Self {
        match value.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(value.as_bytes().to_vec()),
        }
    }

    fn into_os(self) -> OsString {
        match self {
            Self::Text(text) => text.into(),
            Self::Bytes(bytes) => OsString::from_vec(bytes),
        }
    }
}

pub(crate) fn serialize<T: AsRef<OsStr>, S: Serializer>(
    value: &T,
    to: S,
) -> Result<S::Ok, S::Error> {
    Form::new(value.as_ref()).serialize(to)
}

pub(crate) fn deserialize<'de, T: From<OsString>, D: Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Form::deserialize(from)?.into_os().into())
}

/// The same for lists.
pub(crate) mod list {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(values: &[OsString], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(|v| Form::new(v)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<OsString>, D::Error> {
        Ok(Vec::<Form>::deserialize(from)?.into_iter().map(Form::into_os).collect())
    }
}

/// The same for names with values.
pub(crate) mod pairs {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        values: &[(OsString, OsString)],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(|(name, value)| (Form::new(name), Form::new(value))))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(OsString, OsString)>, D::Error> {
        let pairs = Vec::<(Form, Form)>::deserialize(from)?;
        Ok(pairs.into_iter().map(|(name, value)| (name.into_os(), value.into_os())).collect())
    }
}
