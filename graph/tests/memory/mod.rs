//! A workspace in memory.
#![allow(dead_code)] // each test file uses a part of it

use std::collections::BTreeMap;
use std::io;

use mica_graph::actions::{Analysis, analyze};
use mica_graph::buildfile::{BuildFileError, Configuration, Entry, Loaded, Workspace, load};

/// Files by path.
pub(crate) struct Memory(BTreeMap<String, String>);

impl Memory {
    /// A workspace of these files.
    pub(crate) fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(files.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect())
    }

    /// Loads a target, for Linux on x86_64.
    pub(crate) fn load(&self, target: &str) -> Result<Loaded, BuildFileError> {
        let config = Configuration::new("linux", "x86_64").with_flag("fast", "1");
        load(self, &target.parse().unwrap(), &config)
    }

    /// Loads and analyzes a target.
    pub(crate) fn analyze(&self, target: &str) -> Result<Analysis, BuildFileError> {
        analyze(&self.load(target)?)
    }

    /// The error that loading or analyzing a target gives, as people see it.
    pub(crate) fn error(&self, target: &str) -> String {
        self.analyze(target).unwrap_err().to_string()
    }
}

impl Workspace for Memory {
    fn read(&self, path: &str) -> io::Result<Option<String>> {
        Ok(self.0.get(path).cloned())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<Entry>> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut entries: Vec<_> = self
            .0
            .keys()
            .filter_map(|path| path.strip_prefix(&prefix))
            .map(|rest| match rest.split_once('/') {
                Some((name, _)) => Entry { name: name.to_owned(), is_folder: true },
                None => Entry { name: rest.to_owned(), is_folder: false },
            })
            .collect();
        entries.dedup();
        Ok(entries)
    }
}
