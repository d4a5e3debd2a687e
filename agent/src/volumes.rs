//! Named volumes: folders in the state directory that outlive jobs.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::str::FromStr;

use mica_launcher::Mount;

use crate::files::{FileError, at, create_private_dir};
use crate::removal;
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
    /// Files.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Volumes<'_> {
    fn folder(&self, name: &VolumeName) -> PathBuf {
        self.0.root().join("volumes").join(name.as_str())
    }

    /// The volume's folder, made if it is not there.
    ///
    /// # Errors
    /// The state directory can't be written.
    pub fn create(&self, name: &VolumeName) -> Result<PathBuf, FileError> {
        let data = self.folder(name).join("data");
        create_private_dir(&self.folder(name))?;
        match fs::create_dir(&data) {
            // A job may run as any user of its image.
            Ok(()) => {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(&data, fs::Permissions::from_mode(0o755))
                    .map_err(at("change", &data))?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at("create", &data)(error)),
        }
        Ok(data)
    }

    /// All of them, by name, with their folders.
    ///
    /// # Errors
    /// The state directory can't be read.
    pub fn list(&self) -> Result<Vec<(VolumeName, PathBuf)>, FileError> {
        let dir = self.0.root().join("volumes");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("list", &dir)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at("list", &dir))?;
            let name = entry.file_name().to_str().and_then(|name| name.parse().ok());
            found.extend(name.map(|name: VolumeName| (name, entry.path().join("data"))));
        }
        found.sort();
        Ok(found)
    }

    /// Removes a volume that no job has.
    ///
    /// # Errors
    /// A job has it, or there is none.
    pub fn remove(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let folder = self.folder(name);
        let data = folder.join("data");
        if !data.exists() {
            return Err(VolumeError::Unknown(name.clone()));
        }
        for job in self.0.jobs()? {
            let Ok(config) = job.config() else { continue };
            let uses =
                |mount: &Mount| matches!(mount, Mount::Bind { source, .. } if *source == data);
            if config.spec.mounts.iter().any(uses) {
                let job = job.id().to_owned();
                return Err(VolumeError::InUse { name: name.clone(), job });
            }
        }
        Ok(removal::remove_dir(&folder)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
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
