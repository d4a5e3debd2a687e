//! Which version of mica may do what with a state directory: its file `state.json`.
//!
//! ```json
//! { "version": 1, "compatible": [], "read-only-compatible": [], "incompatible": [] }
//! ```
//!
//! As with file systems, a newer version that keeps more adds the name of a feature to one of the lists. Whoever doesn't
//! know a feature ignores a compatible one, changes nothing where there is a read-only compatible one, and doesn't even
//! read where there is an incompatible one, or where `version` is greater than its own. A folder without the file is one of
//! before it was written: version 1 without features.

use std::io;

use mica_durable::Folder;
use serde::{Deserialize, Serialize};

use crate::files::{FileError, at};

/// The file's name.
const FILE: &str = "state.json";

/// The version that this code writes and reads.
const VERSION: u32 = 1;

/// The features that this code knows.
const KNOWN: [&str; 0] = [];

/// The longest file that makes sense, in bytes.
const LONGEST: u64 = 64 << 10;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Features {
    version: u32,
    #[serde(default)]
    compatible: Vec<String>,
    #[serde(default)]
    read_only_compatible: Vec<String>,
    #[serde(default)]
    incompatible: Vec<String>,
}

/// What may be done with a state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything.
    Full,
    /// Only reading, because of these features.
    ReadOnly(Vec<String>),
}

impl Access {
    /// Fails where nothing may be changed.
    pub(crate) fn writable(&self) -> io::Result<()> {
        match self {
            Self::Full => Ok(()),
            Self::ReadOnly(features) => Err(newer(&features.join(", "))),
        }
    }
}

fn newer(what: &str) -> io::Error {
    let reason = format!("a newer version of mica keeps its jobs there ({what})");
    io::Error::new(io::ErrorKind::Unsupported, reason)
}

/// Reads the file, and writes it where there is none.
pub(crate) fn check(folder: &Folder) -> Result<Access, FileError> {
    let path = folder.path().join(FILE);
    let Some(text) = folder.read(FILE, LONGEST)? else {
        let features = Features { version: VERSION, ..Features::default() };
        let text = serde_json::to_vec_pretty(&features).map_err(at("encode", &path))?;
        folder.replace(FILE, &text, 0o600)?;
        return Ok(Access::Full);
    };
    let features: Features = serde_json::from_slice(&text).map_err(at("understand", &path))?;
    access(features).map_err(at("use", folder.path()))
}

/// What this code may do by what the file says.
fn access(features: Features) -> io::Result<Access> {
    let unknown = |list: Vec<String>| {
        list.into_iter().filter(|feature| !KNOWN.contains(&feature.as_str())).collect::<Vec<_>>()
    };
    if features.version > VERSION {
        return Err(newer(&format!("version {}", features.version)));
    }
    let incompatible = unknown(features.incompatible);
    if !incompatible.is_empty() {
        return Err(newer(&incompatible.join(", ")));
    }
    let read_only = unknown(features.read_only_compatible);
    Ok(if read_only.is_empty() { Access::Full } else { Access::ReadOnly(read_only) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_does_not_know_limits_what_it_may_do() {
        let access = |text: &str| access(serde_json::from_str(text).unwrap());
        assert_eq!(access(r#"{"version":1}"#).unwrap(), Access::Full);
        assert_eq!(access(r#"{"version":1,"compatible":["new"],"more":7}"#).unwrap(), Access::Full);
        let read_only = access(r#"{"version":1,"read-only-compatible":["new"]}"#).unwrap();
        assert!(read_only.writable().unwrap_err().to_string().contains("new"));
        assert!(access(r#"{"version":1,"incompatible":["new"]}"#).is_err());
        assert!(access(r#"{"version":2}"#).is_err());
    }

    #[test]
    fn the_file_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(check(&folder).unwrap(), Access::Full);
        let text = std::fs::read(dir.path().join(FILE)).unwrap();
        assert_eq!(check(&folder).unwrap(), Access::Full);
        assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), text);
        std::fs::write(dir.path().join(FILE), "").unwrap();
        check(&folder).unwrap_err();
    }
}
