//! The folder an action runs in: only its declared inputs are there, and its outputs are taken from there.
//!
//! What an action leaves there is not trusted: a folder on the way to an output may have become a link, an output may be
//! anything, with any mode. Nothing runs there any more when outputs are taken.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use mica_durable::remove_tree;
use mica_graph::actions::{Action, ActionOutput, Place};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2, renameat};

use super::error::BuildError;
use super::executor::{ROOT, Shown, Staging, TMP};
use super::place::{self, Input};
use super::state::BIN;

/// The folders of actions that run, in the out folder.
pub(super) const RUNNING: &str = "tmp";
/// From this size on an input is shown, not copied.
const LARGE: u64 = 1 << 20;

pub(super) struct Sandbox {
    /// Where the action runs.
    pub(super) root: PathBuf,
    /// For its temporary files.
    pub(super) tmp: PathBuf,
    /// Inputs that are not in it.
    pub(super) shown: Vec<Shown>,
    folder: PathBuf,
}

/// Removes what a killed build left, and makes a new folder for the actions of this one.
pub(super) fn sweep(out: &Path) -> Result<PathBuf, BuildError> {
    let path = out.join(RUNNING);
    for entry in fs::read_dir(&path).map_err(BuildError::when("list", &path))? {
        let entry = entry.map_err(BuildError::when("list", &path))?;
        // A compiler that outlived its mica may still write there; then the next build removes it.
        let _left = remove_tree(&entry.path());
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
    /// Makes the folder of action `number`, with its inputs; `resolve` says where they really are.
    pub(super) fn new(
        tmp: &Path,
        number: usize,
        action: &Action,
        staging: Staging,
        resolve: impl Fn(&Place) -> Result<Input, BuildError>,
    ) -> Result<Self, BuildError> {
        let folder = tmp.join(number.to_string());
        let (root, tmp) = (folder.join(ROOT), folder.join(TMP));
        let mut sandbox = Self { root, tmp, shown: Vec::new(), folder };
        for path in [&sandbox.root, &sandbox.tmp] {
            fs::create_dir_all(path).map_err(BuildError::when("make the folder", path))?;
        }
        let inputs = action.inputs.iter().map(|input| (input.path(), input));
        let also = action.also.iter().map(|(path, input)| (path.as_str(), input));
        for (path, input) in inputs.chain(also) {
            sandbox.stage(path, &resolve(input)?, staging)?;
        }
        for output in &action.outputs {
            make_parent(&sandbox.root.join(&output.path))?;
        }
        Ok(sandbox)
    }

    /// Puts an input where the action will look for it.
    fn stage(&mut self, path: &str, input: &Input, staging: Staging) -> Result<(), BuildError> {
        let at = self.root.join(path);
        make_parent(&at)?;
        let source = match (input, staging) {
            (Input::Link(target), _) | (Input::At(target), Staging::Links) => {
                return symlink(target, &at).map_err(BuildError::when("link", &at));
            }
            (Input::At(source), Staging::Copies) => source,
        };
        let meta = fs::metadata(source).map_err(BuildError::when("read", source))?;
        if meta.is_dir() {
            fs::create_dir(&at).map_err(BuildError::when("make the folder", &at))?;
        } else if meta.len() < LARGE || !meta.is_file() {
            return place::copy(source, &at);
        } else {
            fs::File::create_new(&at).map_err(BuildError::when("create", &at))?;
        }
        self.shown.push(Shown { source: source.clone(), path: path.to_owned() });
        Ok(())
    }

    /// The whole of it.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Moves the outputs to where they belong; `seen` is where the action saw its root.
    pub(super) fn take_outputs(
        &self,
        out: &Path,
        action: &Action,
        seen: &Path,
    ) -> Result<(), BuildError> {
        let bad = |output: &ActionOutput, problem| BuildError::BadOutput {
            verb: action.verb,
            label: action.label.clone(),
            path: output.path.clone(),
            problem,
        };
        for output in &action.outputs {
            let from = self.root.join(&output.path);
            self.parent_of(&output.path)?
                .ok_or_else(|| bad(output, "is behind a symlink that the action made"))?;
            if let Some(problem) = self.problem(&from, seen)? {
                return Err(bad(output, problem));
            }
            set_mode(&from, output)?;
        }
        for output in &action.outputs {
            let to = out.join(BIN).join(&output.path);
            let (parent, name) = self
                .parent_of(&output.path)?
                .ok_or_else(|| bad(output, "is behind a symlink that the action made"))?;
            clear_way(&out.join(BIN), &to)?;
            renameat(&parent, name, CWD, &to)
                .map_err(|error| BuildError::io("write", &to, error.into()))?;
        }
        Ok(())
    }

    /// The folder that an output is in, and its name there; `None` if the way there is not what it was. What is not there at
    /// all is told later.
    fn parent_of<'p>(&self, path: &'p str) -> Result<Option<(OwnedFd, &'p OsStr)>, BuildError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags | OFlags::NOFOLLOW, Mode::empty());
        let Ok(root) = root else { return Ok(None) };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&root, parent, flags, Mode::empty(), resolve) {
            Ok(parent) => Ok(Some((parent, OsStr::new(name)))),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR | rustix::io::Errno::XDEV) => {
                Ok(None)
            }
            Err(error) => Err(BuildError::io("open", &self.root.join(parent), error.into())),
        }
    }

    /// Removes the folder.
    pub(super) fn remove(self) -> Result<(), BuildError> {
        remove_tree(&self.folder)?;
        Ok(())
    }

    /// Why an output cannot be kept.
    fn problem(&self, path: &Path, seen: &Path) -> Result<Option<&'static str>, BuildError> {
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
        let leads_here = |target: &Path| target.starts_with(&self.root) || target.starts_with(seen);
        if meta.is_symlink() {
            let target = fs::read_link(path).map_err(BuildError::when("read", path))?;
            let message = "is a symlink into the folder it was made in";
            return Ok((leads_here(&target) || !path.exists()).then_some(message));
        }
        if !meta.is_dir() {
            return Ok(Some("is neither a file nor a folder"));
        }
        for entry in fs::read_dir(path).map_err(BuildError::when("list", path))? {
            let entry = entry.map_err(BuildError::when("list", path))?;
            let kind = entry.file_type().map_err(BuildError::when("read", path))?;
            let relative_link = kind.is_symlink()
                && fs::read_link(entry.path()).is_ok_and(|target| !leads_here(&target));
            if kind.is_file() || relative_link {
                continue;
            }
            if let Some(problem) = self.problem(&entry.path(), seen)? {
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

/// Modes do not depend on the umask of whoever builds. No output is set-user-id: it would be so for all who can reach it.
fn set_mode(path: &Path, output: &ActionOutput) -> Result<(), BuildError> {
    let meta = fs::symlink_metadata(path).map_err(BuildError::when("read", path))?;
    if meta.is_symlink() {
        return Ok(());
    }
    if meta.is_dir() {
        return plain_modes(path);
    }
    let executable = output.executable.unwrap_or(meta.permissions().mode() & 0o111 != 0);
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(BuildError::when("set the mode of", path))
}

/// Takes set-id bits from all that is in a folder.
fn plain_modes(folder: &Path) -> Result<(), BuildError> {
    let plain = |path: &Path, meta: &fs::Metadata| {
        let mode = meta.permissions().mode();
        match mode & 0o7000 == 0 {
            true => Ok(()),
            false => fs::set_permissions(path, Permissions::from_mode(mode & 0o777))
                .map_err(BuildError::when("set the mode of", path)),
        }
    };
    plain(folder, &fs::symlink_metadata(folder).map_err(BuildError::when("read", folder))?)?;
    for entry in fs::read_dir(folder).map_err(BuildError::when("list", folder))? {
        let entry = entry.map_err(BuildError::when("list", folder))?;
        let meta = entry.metadata().map_err(BuildError::when("read", folder))?;
        match (meta.is_dir(), meta.is_symlink()) {
            (true, _) => plain_modes(&entry.path())?,
            (_, true) => {}
            _ => plain(&entry.path(), &meta)?,
        }
    }
    Ok(())
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
        remove_tree(to)?;
    }
    Ok(())
}
