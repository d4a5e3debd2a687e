//! The files of a workspace, as the loader asks for them; folders are listed once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::error::BuildFileError;
use super::{BUILD_FILES, Entry, Workspace, glob, guard, join};

pub(super) struct Files<'w> {
    workspace: &'w dyn Workspace,
    listings: RefCell<HashMap<String, Rc<Vec<Entry>>>>,
}

/// An error in `glob`: a message about the call, or an error that knows its own place.
type GlobError = Result<String, BuildFileError>;

impl<'w> Files<'w> {
    pub(super) fn new(workspace: &'w dyn Workspace) -> Self {
        Self { workspace, listings: RefCell::default() }
    }

    pub(super) fn build_file(&self, folder: &str) -> Result<Option<&'static str>, BuildFileError> {
        let entries = self.list(folder)?;
        let has =
            |name: &&str| entries.iter().any(|entry| !entry.is_folder && entry.name == **name);
        Ok(BUILD_FILES.iter().find(|name| has(name)).copied())
    }

    /// The package that a path belongs to: that of the nearest folder above it with a build file.
    pub(super) fn owner(&self, path: &str) -> Result<Option<String>, BuildFileError> {
        let mut folder = path;
        while let Some((parent, _)) = folder.rsplit_once('/') {
            if self.build_file(parent)?.is_some() {
                return Ok(Some(parent.to_owned()));
            }
            folder = parent;
        }
        Ok(self.build_file("")?.map(|_| String::new()))
    }

    pub(super) fn is_file(&self, path: &str) -> Result<bool, BuildFileError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let entries = self.list(folder)?;
        Ok(entries.iter().any(|entry| !entry.is_folder && entry.name == name))
    }

    pub(super) fn list(&self, folder: &str) -> Result<Rc<Vec<Entry>>, BuildFileError> {
        if let Some(listing) = self.listings.borrow().get(folder) {
            return Ok(Rc::clone(listing));
        }
        let mut entries = self
            .workspace
            .list(folder)
            .map_err(|source| BuildFileError::Read { path: format!("//{folder}"), source })?;
        entries.sort();
        let listing = Rc::new(entries);
        self.listings.borrow_mut().insert(folder.to_owned(), Rc::clone(&listing));
        Ok(listing)
    }

    pub(super) fn read(&self, path: &str) -> Result<Option<String>, BuildFileError> {
        let text = self
            .workspace
            .read(path)
            .map_err(|source| BuildFileError::Read { path: path.to_owned(), source })?;
        if let Some(size) = text.as_ref().map(String::len).filter(|&size| size > guard::MAX_SIZE) {
            return Err(BuildFileError::TooLarge { path: path.to_owned(), size });
        }
        Ok(text)
    }

    /// The files of `package` that match, sorted, relative to it.
    pub(super) fn glob(
        &self,
        package: &str,
        include: &[String],
        exclude: &[String],
    ) -> Result<Vec<String>, GlobError> {
        for pattern in include.iter().chain(exclude) {
            glob::check(pattern).map_err(|why| Ok(format!("bad pattern `{pattern}`: {why}")))?;
        }
        let deep = include.iter().any(|pattern| pattern.contains('/') || pattern == "**");
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let listing = self.list(&join(package, &folder)).map_err(Err)?;
            for entry in listing.iter() {
                let path = join(&folder, &entry.name);
                if !entry.is_folder {
                    let any = |patterns: &[String]| {
                        patterns.iter().any(|pattern| glob::matches(pattern, &path))
                    };
                    if any(include) && !any(exclude) {
                        found.push(path);
                    }
                } else if deep && self.build_file(&join(package, &path)).map_err(Err)?.is_none() {
                    folders.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }
}
