//! House rules that a machine can check.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates, and of ours those that each may use, as in the design.
const EDGES: [(&str, &[&str]); 9] = [
    ("graph", &[]),
    ("squashfs", &[]),
    ("launcher", &["durable"]),
    ("durable", &[]),
    ("packer", &["graph", "squashfs", "durable"]),
    ("mounter", &["graph", "squashfs"]),
    ("fetcher", &["graph", "squashfs", "durable"]),
    ("agent", &["graph", "durable", "fetcher", "mounter", "launcher"]),
    ("cli", &["graph", "squashfs", "durable", "packer", "fetcher", "mounter", "launcher", "agent"]),
];

/// Longest source file, in lines.
const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a folder whose names end so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_str().is_some_and(|path| path.ends_with(end)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The crates of ours in any table of dependencies: of the crate, of its tests and build script, of some target.
fn ours(manifest: &toml::Table) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        if key.ends_with("dependencies") {
            found.extend(
                table.keys().filter_map(|name| name.strip_prefix("mica-")).map(str::to_owned),
            );
        } else {
            found.extend(ours(table));
        }
    }
    found
}

#[test]
fn crate_edges_are_those_of_the_design() {
    let allowed = BTreeMap::from(EDGES);
    let workspace: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    for member in members {
        let member = member.as_str().unwrap();
        let may =
            allowed.get(member).unwrap_or_else(|| panic!("{member} is no crate of the design"));
        let manifest: toml::Table = read(&root().join(member).join("Cargo.toml")).parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some(format!("mica-{member}").as_str()));
        for used in ours(&manifest) {
            assert!(
                may.contains(&used.as_str()),
                "{member} must not use {used}: the design has no such edge"
            );
        }
    }
    assert_eq!(members.len(), EDGES.len(), "a crate of the design is missing");
}

#[test]
fn anyhow_is_for_the_command_line_only() {
    for (member, _) in EDGES.iter().filter(|(member, _)| *member != "cli") {
        let manifest = read(&root().join(member).join("Cargo.toml"));
        assert!(!manifest.contains("anyhow"), "{member} uses anyhow; its errors are types");
    }
}

#[test]
fn no_source_file_eats_the_rest() {
    for (member, _) in EDGES {
        for path in files(&root().join(member).join("src"), ".rs") {
            let lines = read(&path).lines().count();
            assert!(
                lines <= MAX_LINES,
                "{} has {lines} lines; {MAX_LINES} is the most",
                path.display()
            );
        }
    }
}

#[test]
fn unsafe_code_is_in_one_place_of_a_crate() {
    for (member, _) in EDGES {
        let allows = |path: &&PathBuf| read(path).contains("#![allow(unsafe_code)]");
        let sources = files(&root().join(member).join("src"), ".rs");
        let places: Vec<_> = sources.iter().filter(allows).collect();
        assert!(places.len() <= 1, "{member} allows unsafe code in {places:?}");
    }
}

/// What a document names in backticks or links, if it looks like a file of the repository.
fn named(text: &str, top: &[String]) -> Vec<String> {
    let links =
        text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(path, _)| path);
    let links = links.filter(|path| !path.contains("://") && !path.starts_with('#'));
    let mut code = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            code.extend(line.split('`').skip(1).step_by(2));
        }
    }
    let plain = |path: &&str| path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let ours = |path: &&str| match path.split_once('/') {
        Some((first, _)) => top.iter().any(|name| name == first),
        None => {
            path.ends_with(".md")
                || path.ends_with(".toml") && *path != "mica.toml" && *path != "config.toml"
        }
    };
    let code = code.into_iter().filter(plain).filter(ours);
    links.chain(code).map(|path| path.split('#').next().unwrap_or(path).to_owned()).collect()
}

#[test]
fn documents_name_files_that_exist() {
    let root = root();
    let top = fs::read_dir(&root).unwrap();
    let mut top: Vec<_> =
        top.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // What a build or a test makes there comes and goes.
    top.retain(|name| name != "target");
    let mut documents = files(&root.join("docs"), ".md");
    documents.extend(
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "testdata/README.md"]
            .map(|name| root.join(name)),
    );
    for document in documents {
        for path in named(&read(&document), &top) {
            let exists =
                root.join(&path).exists() || document.parent().unwrap().join(&path).exists();
            assert!(exists, "{} names {path}, which does not exist", document.display());
        }
    }
}

/// The tests that a line of a table of SECURITY.md names: what its last column has in backticks.
fn promised(line: &str) -> Vec<&str> {
    let cells: Vec<_> = line.trim().trim_matches('|').split(" | ").collect();
    let [_, tests] = cells.as_slice() else { return Vec::new() };
    tests.split('`').skip(1).step_by(2).collect()
}

#[test]
fn promises_of_security_name_tests_that_exist() {
    let mut tests = String::new();
    for (member, _) in EDGES {
        for path in files(&root().join(member), ".rs") {
            tests.push_str(&read(&path));
        }
    }
    let security = read(&root().join("SECURITY.md"));
    let tables = security.split("## Jobs").nth(1).unwrap();
    let rows = tables.lines().filter(|line| line.starts_with('|') && !line.starts_with("|-"));
    let mut count = 0;
    for row in rows.filter(|row| !row.contains("| test |")) {
        let named = promised(row);
        assert!(!named.is_empty(), "no test holds this promise: {row}");
        for name in named {
            // Programs of tests without the usual harness have them in tables, by name.
            let exists = [format!("fn {name}("), format!("(\"{name}\",")];
            assert!(
                exists.iter().any(|text| tests.contains(text)),
                "SECURITY.md names a test {name}, which is gone"
            );
            count += 1;
        }
    }
    assert!(count > 50, "only {count} promises were found");
}
