//! Folders whose `mica.toml` counts although somebody else could change it: the user has said so.
//!
//! `trusted.toml` in the user's configuration folder, as git's `safe.directory`:
//!
//! ```toml
//! folders = ["/srv/team/monorepo"]
//! ```

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use mica_durable::{FileError, Folder, Named, trusted};
use serde::{Deserialize, Serialize};

use crate::error::Advise as _;

/// The file's name.
const FILE: &str = "trusted.toml";

/// The longest file that makes sense, in bytes.
const LONGEST: u64 = 1 << 20;

/// The folders that a user trusts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrustedFolders {
    #[serde(default)]
    folders: Vec<PathBuf>,
    /// The user's configuration folder, if there is a home.
    #[serde(skip)]
    home: Option<PathBuf>,
}

impl TrustedFolders {
    /// As the user has written them down; nobody else can.
    pub(crate) fn read(home: Option<PathBuf>) -> anyhow::Result<Self> {
        let none = Self { folders: Vec::new(), home: home.clone() };
        let Some(folder) = home.as_deref().map(Folder::open) else { return Ok(none) };
        let folder = match folder {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(none),
            // Without rights to look there is nothing there, as for the shell.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(none),
            folder => folder?,
        };
        let Some(text) = folder.read(FILE, LONGEST)? else { return Ok(none) };
        let path = folder.path().join(FILE);
        check(&path)?;
        let text = String::from_utf8(text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        let read: Self = toml::from_str(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        Ok(Self { home, ..read })
    }

    /// All of them.
    pub(crate) fn list(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Whether this is one of them.
    pub(crate) fn contains(&self, folder: &Path) -> bool {
        let real = folder.canonicalize();
        self.folders.iter().any(|one| one == folder || real.as_ref().is_ok_and(|real| one == real))
    }

    /// Adds a folder.
    pub(crate) fn add(mut self, folder: &Path) -> anyhow::Result<()> {
        let real = folder.canonicalize();
        let real = real.with_context(|| format!("cannot find {}", folder.display()))?;
        if !self.folders.contains(&real) {
            self.folders.push(real);
            self.write()?;
        }
        Ok(())
    }

    /// Removes one, which may be gone.
    pub(crate) fn remove(mut self, folder: &Path) -> anyhow::Result<()> {
        let real = folder.canonicalize().or_else(|_| std::path::absolute(folder))?;
        let before = self.folders.len();
        self.folders.retain(|one| *one != real && one != folder);
        if self.folders.len() == before {
            bail!("{} is not among the trusted folders", real.display());
        }
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        let Some(home) = &self.home else {
            bail!("there is no home to keep trusted folders in; set HOME or XDG_CONFIG_HOME");
        };
        let text = toml::to_string(self).context("cannot write down the trusted folders")?;
        Ok(Folder::create(home, 0o700)?.replace(FILE, text.as_bytes(), 0o600)?)
    }

    /// Fails if somebody else can change the settings file of a workspace and the user has not said that that is fine;
    /// tells whether he has.
    pub(crate) fn check_workspace(&self, file: &Path) -> anyhow::Result<bool> {
        let folder = file.parent().unwrap_or(Path::new("."));
        if self.contains(folder) {
            return Ok(true);
        }
        checked(file).map(|()| false).hint(format!(
            "its settings decide which programs run: `mica config trust {}` if you trust whoever can change it",
            folder.display()
        ))
    }
}

/// Fails if somebody else than the caller and root can change a file that programs and keys come from.
pub(crate) fn check(file: &Path) -> anyhow::Result<()> {
    checked(file).hint("nobody but you and root may be able to change it; look at owners and modes, or is HOME another account's?")
}

fn checked(file: &Path) -> anyhow::Result<()> {
    let checked = trusted::check(file, rustix::process::geteuid().as_raw());
    checked.with_context(|| format!("cannot use {}", file.display()))
}

/// The text of a file that nobody else can change, when it has been checked so; `None` where there is none. A FIFO, a
/// device or something endless in its place is an error.
pub(crate) fn read(file: &Path) -> Result<Option<String>, FileError> {
    let real = match file.canonicalize() {
        // Not there, or somebody else's: a HOME that was left by another account, say.
        Err(error)
            if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) =>
        {
            return Ok(None);
        }
        real => real.named("find", file)?,
    };
    let (folder, name) =
        (real.parent().unwrap_or(Path::new("/")), real.file_name().unwrap_or_default());
    let Some(text) = Folder::open(folder)?.read(name, LONGEST)? else { return Ok(None) };
    let utf8 = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text");
    String::from_utf8(text).map_err(utf8).named("understand", file).map(Some)
}
