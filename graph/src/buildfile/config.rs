//! The configuration that `select()` asks.

use std::collections::BTreeSet;

use crate::build::nearest;

/// What holds for this build: its constraints, fixed before any build file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    os: String,
    cpu: String,
    flags: BTreeSet<String>,
}

const OSES: [&str; 6] = ["linux", "macos", "windows", "android", "freebsd", "none"];
const CPUS: [&str; 9] =
    ["x86_64", "arm64", "aarch64", "x86_32", "i386", "arm", "riscv64", "ppc64le", "s390x"];
/// The repositories in which Bazel and Buck keep their constraints.
const PLATFORMS: [&str; 4] = ["@platforms//", "config//", "ovr_config//", "prelude//"];
/// The key that holds when no other does.
const DEFAULTS: [&str; 2] = ["//conditions:default", "DEFAULT"];

impl Configuration {
    /// A configuration for an operating system and a processor, by the names that Rust has for them.
    pub fn new(os: &str, cpu: &str) -> Self {
        Self { os: os.into(), cpu: canonical(cpu).into(), flags: BTreeSet::new() }
    }

    /// That of the machine this runs on.
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH)
    }

    /// Sets what a `config_setting` asks for with `values` or `define_values`, as in `--define fast=1`.
    #[must_use]
    pub fn with_flag(mut self, name: &str, value: &str) -> Self {
        self.flags.insert(format!("{name}={value}"));
        self
    }

    pub(crate) fn has_flag(&self, name: &str, value: &str) -> bool {
        self.flags.contains(&format!("{name}={value}"))
    }

    /// Whether the constraint `key` holds; `None` if `key` is not a constraint's name.
    pub(crate) fn constraint(&self, key: &str) -> Result<Option<bool>, String> {
        let Some(rest) = PLATFORMS.iter().find_map(|prefix| key.strip_prefix(prefix)) else {
            return Ok(None);
        };
        let (known, mine): (&[&str], _) = match rest.split_once(':') {
            Some(("os", _)) => (&OSES, &self.os),
            Some(("cpu", _)) => (&CPUS, &self.cpu),
            _ => return Err(format!("`{key}` is no constraint: there are os: and cpu:")),
        };
        let value = rest.split_once(':').map_or("", |(_, value)| value);
        let value = if value == "osx" { "macos" } else { value };
        if !known.contains(&value) {
            let hint = nearest(value, known.iter().map(|&word| word.to_owned()));
            let hint = hint.map_or_else(String::new, |hint| format!(" (did you mean `{hint}`?)"));
            return Err(format!("`{key}` is no known constraint{hint}"));
        }
        Ok(Some(canonical(value) == mine))
    }

    /// Whether `key` is the one that holds when no other does.
    pub(crate) fn is_default(key: &str) -> bool {
        DEFAULTS.contains(&key)
    }
}

fn canonical(cpu: &str) -> &str {
    match cpu {
        "arm64" => "aarch64",
        "x86" | "i386" => "x86_32",
        cpu => cpu,
    }
}
