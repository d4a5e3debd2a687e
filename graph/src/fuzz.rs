//! What is made of foreign text by this crate, each for any bytes: for `fuzz/`, and for the test that runs its seeds.

use std::io;
use std::path::Path;

use crate::actions::analyze;
use crate::buildfile::{Configuration, Entry, Workspace, load};
use crate::{BuildGraph, Digest, Label, Manifest, PackageName, PackageRef, Port, Version};

/// Takes any bytes; panics if something is wrong with what was made of them.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 4] =
    [("build_file", build_file), ("graph", graph), ("manifest", manifest), ("names", names)];

/// A package's manifest: it comes back from its own encoding.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::from_json(data) {
        let again = Manifest::from_json(&manifest.to_json());
        assert_eq!(again.ok(), Some(manifest), "what was read is not read again");
    }
}

/// Labels, references, versions, …: what is printed is read as the same.
pub fn names(data: &[u8]) {
    fn same<T: std::str::FromStr + std::fmt::Display + PartialEq>(text: &str) {
        if let Ok(read) = text.parse::<T>() {
            let printed = read.to_string();
            assert!(printed.parse::<T>().ok() == Some(read), "{text:?} is printed as {printed:?}");
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    same::<Label>(text);
    same::<PackageRef>(text);
    same::<PackageName>(text);
    same::<Version>(text);
    same::<Digest>(text);
    same::<Port>(text);
}

/// A graph of another build tool: any plan of it is made or refused.
pub fn graph(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(graph) = BuildGraph::from_json(text, Path::new("/base")) else { return };
    for module in graph.modules().take(16) {
        if let Ok(plan) = graph.plan(&module.label) {
            assert!(plan.layers().count() <= graph.modules().count());
        }
    }
}

/// A workspace of one build file, which may load itself, and a source.
struct One<'t>(&'t str);

impl Workspace for One<'_> {
    fn read(&self, path: &str) -> io::Result<Option<String>> {
        Ok(matches!(path, "BUILD" | "defs.bzl").then(|| self.0.to_owned()))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<Entry>> {
        let names: &[&str] = if folder.is_empty() { &["BUILD", "defs.bzl", "a.c"] } else { &[] };
        let entry = |name: &&str| Entry { name: (*name).to_owned(), is_folder: false };
        Ok(names.iter().map(entry).collect())
    }
}

/// A build file: its target is analyzed or refused, in bounded time and memory.
pub fn build_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(target) = "//:x".parse() else { return };
    if let Ok(loaded) = load(&One(text), &target, &Configuration::new("linux", "x86_64")) {
        let _refused = analyze(&loaded).is_err();
    }
}
