//! The compilers and the shell of the machine.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use mica_graph::Digest;
use mica_graph::actions::{Action, Tool};

use super::error::BuildError;

/// The programs that actions run; what is `None` is not there, which matters only when it is needed.
#[derive(Clone, Debug, Default)]
pub struct Toolchain {
    /// The C compiler, with first arguments if it has any (`ccache gcc`).
    pub cc: Option<Vec<OsString>>,
    /// The C++ compiler.
    pub cxx: Option<Vec<OsString>>,
    /// The shell for genrules.
    pub bash: Option<Vec<OsString>>,
    /// The `PATH` that compilers are started with, for they start others.
    pub path: OsString,
    identities: Identities,
}

/// What each tool says it is, asked once.
#[derive(Clone, Debug, Default)]
struct Identities([OnceLock<Digest>; 3]);

impl Toolchain {
    /// `$CC` and `$CXX`, or what `$PATH` has.
    pub fn from_env() -> Self {
        Self::find(|name| std::env::var_os(name))
    }

    /// As [`Self::from_env`], in an environment of the caller's choice.
    pub fn find(env: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = env("PATH").unwrap_or_default();
        let named = |variable: &str| {
            let words = env(variable)?;
            let words: Vec<_> = words.to_str()?.split_whitespace().map(OsString::from).collect();
            let program = look_up(words.first()?, &path)?;
            Some(std::iter::once(program.into()).chain(words.into_iter().skip(1)).collect())
        };
        let first_of = |names: &[&str]| {
            let found = names.iter().find_map(|name| look_up(OsStr::new(name), &path))?;
            Some(vec![found.into()])
        };
        let tool = |variable: &str, names: &[&str]| match env(variable) {
            // A variable that names nothing is an error to report, not a reason to take another compiler.
            Some(value) if !value.is_empty() => named(variable),
            _ => first_of(names),
        };
        Self {
            cc: tool("CC", &["cc", "gcc", "clang"]),
            cxx: tool("CXX", &["c++", "g++", "clang++"]),
            bash: first_of(&["bash"]).or_else(|| {
                let usual = Path::new("/bin/bash");
                usual.exists().then(|| vec![usual.into()])
            }),
            path,
            identities: Identities::default(),
        }
    }

    /// The command line that `action` is to start with.
    pub(super) fn command(&self, tool: Tool, action: &Action) -> Result<&[OsString], BuildError> {
        let (found, name, package, variable) = match tool {
            Tool::Cc => (&self.cc, "C compiler", "gcc", "CC"),
            Tool::Cxx => (&self.cxx, "C++ compiler", "g++", "CXX"),
            Tool::Bash => (&self.bash, "bash", "bash", "PATH"),
        };
        let missing = || BuildError::NoTool {
            verb: action.verb,
            label: action.label.clone(),
            tool: name,
            package,
            variable,
        };
        found.as_deref().ok_or_else(missing)
    }

    /// A digest that changes when the tool does: its command line and what it answers to `--version`.
    pub(super) fn identity(&self, tool: Tool, action: &Action) -> Result<Digest, BuildError> {
        let command = self.command(tool, action)?;
        let once = &self.identities.0[tool as usize];
        if let Some(known) = once.get() {
            return Ok(*known);
        }
        let program = PathBuf::from(&command[0]);
        let output = Command::new(&command[0])
            .args(&command[1..])
            .arg("--version")
            .env_clear()
            .env("PATH", &self.path)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| BuildError::Start {
                program,
                verb: action.verb,
                label: action.label.clone(),
                source,
            })?;
        let mut hasher = blake3::Hasher::new();
        for word in command {
            hasher.update(word.as_encoded_bytes()).update(b"\0");
        }
        hasher.update(&output.stdout);
        Ok(*once.get_or_init(|| hasher.finalize().into()))
    }
}

fn look_up(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        let program = PathBuf::from(program);
        return is_program(&program).then_some(program);
    }
    // An entry that depends on where we stand may be a folder of the workspace.
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
