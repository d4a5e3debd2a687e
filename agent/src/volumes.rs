//! Named volumes: folders in the state directory that outlive jobs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mica_durable::Folder;
use mica_launcher::Mount;
use serde_json::Value;

use crate::files::FileError;
use crate::job::JobDir;
use crate::state::StateDir;

/// What a volume may be called, as with docker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeName(String);

impl VolumeName {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names of things that users keep, as docker has them.
pub(crate) fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(good)
}

impl FromStr for VolumeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !is_name(text) {
            return Err(format!(
                "`{text}` is not a volume's name (letters, digits, `_`, `.`, `-`); a path begins with / or ./"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The volumes of a state directory.
#[derive(Debug)]
pub struct Volumes<'a>(pub(crate) &'a StateDir);

/// A volume that cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such volume.
    #[error("there is no volume {0}")]
    Unknown(VolumeName),
    /// A job has it, running or ended.
    #[error("volume {name} is in use by job {job}")]
    InUse {
        /// The volume.
        name: VolumeName,
        /// Who has it.
        job: String,
    },
    /// A job may have it: what that one has can't be read.
    #[error("job {0} cannot be read, and may have the volume")]
    Unreadable(String),
    /// Files.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Volumes<'_> {
    /// The folder that holds them all.
    pub fn path(&self) -> PathBuf {
        self.0.root().join("volumes")
    }

    fn folder(&self, name: &VolumeName) -> PathBuf {
        self.path().join(name.as_str())
    }

    /// The volume's folder, made if it is not there.
    ///
    /// # Errors
    /// The state directory can't be written.
    pub fn create(&self, name: &VolumeName) -> Result<PathBuf, FileError> {
        self.0.writable()?;
        let volumes = Folder::open(self.0.root())?.create_folder("volumes", 0o700)?;
        let folder = volumes.create_folder(name.as_str(), 0o700)?;
        // A job may run as any user of its image.
        Ok(folder.create_folder("data", 0o755)?.path().to_owned())
    }

    /// All of them, by name, with their folders.
    ///
    /// # Errors
    /// The state directory can't be read.
    pub fn list(&self) -> Result<Vec<(VolumeName, PathBuf)>, FileError> {
        let Some(folder) = Folder::open(self.0.root())?.folder("volumes")? else {
            return Ok(Vec::new());
        };
        let names = folder.names()?.into_iter();
        let volume = |name: std::ffi::OsString| {
            let path = folder.path().join(&name).join("data");
            Some((name.to_str()?.parse::<VolumeName>().ok()?, path))
        };
        Ok(names.filter_map(volume).collect())
    }

    /// Removes a volume that no job has.
    ///
    /// # Errors
    /// A job has it, or there is none.
    pub fn remove(&self, name: &VolumeName) -> Result<(), VolumeError> {
        self.0.writable()?;
        let folder = self.folder(name);
        let data = folder.join("data");
        if !data.exists() {
            return Err(VolumeError::Unknown(name.clone()));
        }
        for job in self.0.jobs()? {
            let job = match uses(&job, &data) {
                Some(false) => continue,
                Some(true) => job.id().to_owned(),
                None if !job.path().exists() => continue,
                None => return Err(VolumeError::Unreadable(job.id().to_owned())),
            };
            return Err(VolumeError::InUse { name: name.clone(), job });
        }
        Ok(self.0.throw_away(&folder, &format!("volume-{name}"))?)
    }
}

/// Whether a job has the volume with this folder. Of a job that a newer version has made that is so if the folder is named
/// anywhere; `None` where nothing can be told.
fn uses(job: &JobDir, data: &Path) -> Option<bool> {
    if let Ok(config) = job.config() {
        let uses = |mount: &Mount| matches!(mount, Mount::Bind { source, .. } if source == data);
        return Some(config.spec.mounts.iter().any(uses));
    }
    let mut parts = vec![job.raw_config()?];
    while let Some(part) = parts.pop() {
        match part {
            Value::String(text) if Path::new(&text) == data => return Some(true),
            Value::Array(list) => parts.extend(list),
            Value::Object(map) => parts.extend(map.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(&root.path().join("state")).unwrap();
        let name: VolumeName = "data".parse().unwrap();
        let volumes = state.volumes();
        assert!(matches!(volumes.remove(&name), Err(VolumeError::Unknown(_))));
        let folder = volumes.create(&name).unwrap();
        assert_eq!(volumes.create(&name).unwrap(), folder);
        assert_eq!(volumes.list().unwrap(), [(name.clone(), folder.clone())]);
        volumes.remove(&name).unwrap();
        assert!(!folder.exists());
        for bad in ["", "..", "a/b", "-x", "a b"] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
        }
    }
}
