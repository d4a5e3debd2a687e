//! The folder an action runs in: only its declared inputs are there, as symlinks, and its outputs are taken from there.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use mica_graph::actions::{Action, ActionOutput};

use super::error::BuildError;
use super::state::BIN;

/// The folders of actions that run, in the out folder.
const TMP: &str = "tmp";

pub(super) struct Sandbox {
    /// Where the action runs.
    pub(super) root: PathBuf,
    /// For its temporary files.
    pub(super) tmp: PathBuf,
}

/// Removes what a killed build left, and makes a new folder for the actions of this one.
pub(super) fn sweep(out: &Path) -> Result<PathBuf, BuildError> {
    let path = out.join(TMP);
    fs::create_dir_all(&path).map_err(BuildError::when("make the folder", &path))?;
    for entry in fs::read_dir(&path).map_err(BuildError::when("list", &path))? {
        let entry = entry.map_err(BuildError::when("list", &path))?;
        // A compiler that outlived its mica may still write there; then the next build removes it.
        let _left = fs::remove_dir_all(entry.path());
    }
    for number in 0_u64.. {
        let folder = path.join(number.to_string());
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(BuildError::io("make the folder", &folder, error)),
        }
    }
    unreachable!("a folder has fewer entries than there are numbers")
}

impl Sandbox {
    /// Makes the folder of action `number`, with its inputs; `locate` says where they really are.
    pub(super) fn new(
        tmp: &Path,
        number: usize,
        action: &Action,
        locate: impl Fn(&mica_graph::actions::Place) -> PathBuf,
    ) -> Result<Self, BuildError> {
        let folder = tmp.join(number.to_string());
        let sandbox = Self { root: folder.join("root"), tmp: folder.join("tmp") };
        for path in [&sandbox.root, &sandbox.tmp] {
            fs::create_dir_all(path).map_err(BuildError::when("make the folder", path))?;
        }
        let inputs = action.inputs.iter().map(|input| (input.path(), input));
        let also = action.also.iter().map(|(path, input)| (path.as_str(), input));
        for (path, input) in inputs.chain(also) {
            let link = sandbox.root.join(path);
            make_parent(&link)?;
            symlink(locate(input), &link).map_err(BuildError::when("link", &link))?;
        }
        for output in &action.outputs {
            make_parent(&sandbox.root.join(&output.path))?;
        }
        Ok(sandbox)
    }

    /// Moves the outputs to where they belong.
    pub(super) fn take_outputs(&self, out: &Path, action: &Action) -> Result<(), BuildError> {
        for output in &action.outputs {
            let from = self.root.join(&output.path);
            if let Some(problem) = self.problem(&from)? {
                let (verb, label) = (action.verb, action.label.clone());
                return Err(BuildError::BadOutput {
                    verb,
                    label,
                    path: output.path.clone(),
                    problem,
                });
            }
            set_mode(&from, output)?;
        }
        for output in &action.outputs {
            let from = self.root.join(&output.path);
            let to = out.join(BIN).join(&output.path);
            clear_way(&out.join(BIN), &to)?;
            fs::rename(&from, &to).map_err(BuildError::when("write", &to))?;
        }
        Ok(())
    }

    /// Removes the folder.
    pub(super) fn remove(self) -> Result<(), BuildError> {
        let folder = self.root.parent().unwrap_or(&self.root);
        fs::remove_dir_all(folder).map_err(BuildError::when("remove", folder))
    }

    /// Why an output cannot be kept.
    fn problem(&self, path: &Path) -> Result<Option<&'static str>, BuildError> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some("was not made"));
            }
            Err(error) => return Err(BuildError::io("read", path, error)),
        };
        if meta.is_file() {
            return Ok(None);
        }
        if meta.is_symlink() {
            let target = fs::read_link(path).map_err(BuildError::when("read", path))?;
            let leaves = target.is_absolute() && target.starts_with(&self.root);
            let message = "is a symlink into the folder it was made in";
            return Ok((leaves || !path.exists()).then_some(message));
        }
        if !meta.is_dir() {
            return Ok(Some("is neither a file nor a folder"));
        }
        for entry in fs::read_dir(path).map_err(BuildError::when("list", path))? {
            let entry = entry.map_err(BuildError::when("list", path))?;
            let kind = entry.file_type().map_err(BuildError::when("read", path))?;
            let relative_link = kind.is_symlink()
                && fs::read_link(entry.path()).is_ok_and(|target| !target.starts_with(&self.root));
            if kind.is_file() || relative_link {
                continue;
            }
            if let Some(problem) = self.problem(&entry.path())? {
                return Ok(Some(problem));
            }
        }
        Ok(None)
    }
}

fn make_parent(path: &Path) -> Result<(), BuildError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(BuildError::when("make the folder", parent))
}

/// Modes do not depend on the umask of whoever builds.
fn set_mode(path: &Path, output: &ActionOutput) -> Result<(), BuildError> {
    let meta = fs::metadata(path).map_err(BuildError::when("read", path))?;
    if meta.is_dir() {
        return Ok(());
    }
    let executable = output.executable.unwrap_or(meta.permissions().mode() & 0o111 != 0);
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(BuildError::when("set the mode of", path))
}

/// Removes what an earlier state of the workspace left in the way: a file where a folder must be, a folder where a file.
fn clear_way(bin: &Path, to: &Path) -> Result<(), BuildError> {
    let parent = to.parent().unwrap_or(bin);
    let above = parent.ancestors().take_while(|folder| folder.starts_with(bin));
    for folder in above {
        if fs::symlink_metadata(folder).is_ok_and(|meta| !meta.is_dir()) {
            fs::remove_file(folder).map_err(BuildError::when("remove", folder))?;
        }
    }
    fs::create_dir_all(parent).map_err(BuildError::when("make the folder", parent))?;
    if fs::symlink_metadata(to).is_ok_and(|meta| meta.is_dir()) {
        fs::remove_dir_all(to).map_err(BuildError::when("remove", to))?;
    }
    Ok(())
}
