//! `BUILD` files into targets.
//!
//! A package is a folder with a `BUILD.bazel`, `BUILD` or `BUCK` file (the first of these counts). The file is Starlark, run by the
//! `starlark` crate: functions, comprehensions, `load()` of `.bzl` files, macros. Each call of a rule declares one [`Target`].
//! What is here, in the words of Bazel and Buck:
//!
//! - the rules in [`RULES`], also under `native.`, with the attributes listed there; an attribute that is not listed is refused, never ignored,
//!   but for those that say nothing about what is built (`visibility`, `tags`, …);
//! - `glob(include, exclude = [], allow_empty = True)`: files of this package, never of a package below it;
//! - `select({…})`: the [`Configuration`] is fixed before evaluation, so `select` is an ordinary function that returns one of its values,
//!   and everything that works on that value works on a `select`. A key is a constraint (`@platforms//os:linux`), a `config_setting`
//!   target, or the default; exactly one key must hold;
//! - `load("//tools:defs.bzl", "f")`, `load(":defs.bzl", "f")`; the rule sets that Bazel users load (`@rules_cc`, `@rules_python`,
//!   `@rules_shell`) give the rules of this list;
//! - `package()`, `licenses()`, `exports_files()` say nothing that is needed here, and are accepted;
//! - `package_name()`, `struct()`, `print()` (handed to the caller), `fail()`.
//!
//! Only packages that the target needs are evaluated. Nothing does I/O: files come from a [`Workspace`].
//!
//! A build file may be wrong in any way, or generated and huge: its size, the depth of its nesting, its calls and its steps are bounded, its
//! memory roughly (the evaluator looks every thousand steps). It is no enemy, though: a genrule may run anything.

mod config;
mod context;
mod error;
mod eval;
mod files;
mod glob;
mod guard;
mod loader;
mod rules;
mod target;

use std::io;

pub use config::Configuration;
pub use error::{BuildFileError, Location};
pub use loader::{Loaded, load};
pub use rules::{AttrDef, AttrKind, RULES, Rule, RuleKind};
pub use target::{Dep, Target};

/// Where the build files and sources are. Paths are relative to the workspace, with `/` between parts; its own root is the empty path.
pub trait Workspace: Sync {
    /// The text of a file; `None` if there is no such file.
    fn read(&self, path: &str) -> io::Result<Option<String>>;

    /// The entries of a folder, in any order; empty if there is no such folder.
    fn list(&self, folder: &str) -> io::Result<Vec<Entry>>;
}

/// An entry of a folder of the workspace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Whether it is a folder (or a symlink to one).
    pub is_folder: bool,
}

/// The names a build file may have, the first one first.
pub const BUILD_FILES: [&str; 3] = ["BUILD.bazel", "BUILD", "BUCK"];

/// Joins a folder and a name, either of which may be empty.
pub(crate) fn join(folder: &str, name: &str) -> String {
    match (folder, name) {
        ("", name) => name.to_owned(),
        (folder, "") => folder.to_owned(),
        (folder, name) => format!("{folder}/{name}"),
    }
}
