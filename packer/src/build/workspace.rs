//! A workspace that is a folder on disk.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mica_graph::buildfile::{Entry, Workspace};

/// A folder on disk as a [`Workspace`]. The out folder, `.git` and `.mica` are not part of it, nor is anything that is not
/// beneath it: a link may lead to another file or folder of the workspace; one that leads out of it is a file that can be
/// packed as a link, and not be read or looked into.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
    out: PathBuf,
}

/// More than any build file may have; only the evaluator knows the exact bound.
const MAX_READ: u64 = 64 << 20;

impl Folder {
    /// The workspace in `root`, whose outputs go to `out`.
    pub fn new(root: &Path, out: &Path) -> Self {
        Self { root: root.to_owned(), out: out.to_owned() }
    }
}

impl Folder {
    /// Whether a path of ours, links followed, is beneath the workspace. `None` where there is nothing.
    fn is_inside(&self, path: &Path) -> io::Result<Option<bool>> {
        match path.canonicalize() {
            Ok(real) => Ok(Some(real.starts_with(self.root.canonicalize()?))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Workspace for Folder {
    fn read(&self, path: &str) -> io::Result<Option<String>> {
        let path = self.root.join(path);
        match self.is_inside(&path)? {
            None => return Ok(None),
            Some(false) => return Err(leads_out(&path)),
            Some(true) => {}
        }
        // What is no file holds nobody.
        let nonblock = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        let file =
            fs::OpenOptions::new().read(true).custom_flags(nonblock.bits() as i32).open(&path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        let mut text = String::new();
        file.take(MAX_READ).read_to_string(&mut text)?;
        Ok(Some(text))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<Entry>> {
        let path = self.root.join(folder);
        match self.is_inside(&path)? {
            None => return Ok(Vec::new()),
            Some(false) => return Err(leads_out(&path)),
            Some(true) => {}
        }
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if name == ".git" || name == ".mica" || entry.path() == self.out {
                continue;
            }
            let Ok(name) = name.into_string() else {
                let message = format!("the name of {} is not UTF-8", entry.path().display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            };
            let mut is_folder = entry.file_type()?.is_dir();
            if entry.file_type()?.is_symlink() {
                is_folder = entry.path().is_dir() && self.is_inside(&entry.path())? == Some(true);
                if is_folder && path.canonicalize()?.starts_with(entry.path().canonicalize()?) {
                    let message =
                        format!("{} is a symlink to a folder it is in", entry.path().display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
            listed.push(Entry { name, is_folder });
        }
        Ok(listed)
    }
}

fn leads_out(path: &Path) -> io::Error {
    let message = format!("{} leads out of the workspace", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, message)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
