//! One action: is it current, and if not, do it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use mica_graph::Digest;
use mica_graph::actions::{Action, Place, Run, Tool};

use super::error::BuildError;
use super::sandbox::Sandbox;
use super::state::{self, BIN};
use super::toolchain::Toolchain;

/// What all actions of a build share.
pub(super) struct Runner<'b> {
    pub(super) root: &'b Path,
    pub(super) out: &'b Path,
    /// Where actions run.
    pub(super) tmp: &'b Path,
    pub(super) toolchain: &'b Toolchain,
    /// Sources hashed in this build: many actions read the same headers.
    pub(super) hashed: Mutex<HashMap<Place, Digest>>,
}

/// What became of an action.
pub(super) enum Outcome {
    /// It was current.
    Reused,
    /// It was done, and its tool said this (warnings, mostly).
    Run { said: String },
}

/// Changes whenever the way actions are run does, so that outputs of an older mica are made anew.
const FORMAT: &[u8] = b"mica action 2\0";

impl Runner<'_> {
    /// Does `action`, unless it is current.
    pub(super) fn run(&self, number: usize, action: &Action) -> Result<Outcome, BuildError> {
        let key = self.key(action)?;
        if state::is_current(self.out, action, key) {
            return Ok(Outcome::Reused);
        }
        let sandbox = Sandbox::new(self.tmp, number, action, |place| self.locate(place))?;
        let mut said = String::new();
        match &action.run {
            Run::Command { tool, args, env } => {
                let mut command = self.command(*tool, action, &sandbox)?;
                command.args(args).envs(env);
                said = self.finish(command, action)?;
            }
            Run::Copy => {
                let from = self.locate(&action.inputs[0]);
                let to = sandbox.root.join(&action.outputs[0].path);
                // The input may stand at the same path, as a symlink.
                fs::copy(&from, sandbox.tmp.join("copy"))
                    .and_then(|_| fs::rename(sandbox.tmp.join("copy"), to))
                    .map_err(BuildError::when("copy", &from))?;
            }
            Run::Write(text) => {
                let to = sandbox.root.join(&action.outputs[0].path);
                fs::write(&to, text).map_err(BuildError::when("write", &to))?;
            }
        }
        state::forget(self.out, action)?;
        sandbox.take_outputs(self.out, action)?;
        sandbox.remove()?;
        state::remember(self.out, action, key)?;
        Ok(Outcome::Run { said })
    }

    fn locate(&self, place: &Place) -> PathBuf {
        match place {
            Place::Source(path) => self.root.join(path),
            Place::Built(path) => self.out.join(BIN).join(path),
            Place::Host(path) => PathBuf::from(path),
        }
    }

    /// The tool, in the sandbox, in an environment that is the same everywhere.
    fn command(
        &self,
        tool: Tool,
        action: &Action,
        sandbox: &Sandbox,
    ) -> Result<Command, BuildError> {
        let words = self.toolchain.command(tool, action)?;
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(&sandbox.root)
            .env_clear()
            .env("HOME", &sandbox.tmp)
            .env("TMPDIR", &sandbox.tmp)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        if tool == Tool::Bash {
            command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
        } else {
            command.env("PATH", &self.toolchain.path);
            // The only place where the folder could get into an output: debug information and `__FILE__`.
            command.arg(format!("-ffile-prefix-map={}=.", sandbox.root.display()));
        }
        Ok(command)
    }

    /// The digest of all that the outputs of `action` depend on.
    fn key(&self, action: &Action) -> Result<Digest, BuildError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(FORMAT);
        let mut word = |text: &[u8]| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text);
        };
        match &action.run {
            Run::Command { tool, args, env } => {
                word(b"command");
                word(self.toolchain.identity(*tool, action)?.as_bytes());
                word(&(args.len() as u64).to_le_bytes());
                args.iter().for_each(|arg| word(arg.as_bytes()));
                for (name, value) in env {
                    word(name.as_bytes());
                    word(value.as_bytes());
                }
            }
            Run::Copy => word(b"copy"),
            Run::Write(text) => {
                word(b"write");
                word(text.as_bytes());
            }
        }
        word(b"outputs");
        for output in &action.outputs {
            word(output.path.as_bytes());
            word(&[output.executable.map_or(2, u8::from)]);
        }
        word(b"inputs");
        for input in &action.inputs {
            word(input.path().as_bytes());
            word(self.digest(input)?.as_bytes());
        }
        word(b"also");
        for (path, input) in &action.also {
            word(path.as_bytes());
            word(input.path().as_bytes());
        }
        Ok(hasher.finalize().into())
    }

    fn digest(&self, place: &Place) -> Result<Digest, BuildError> {
        let lock = || self.hashed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = lock().get(place) {
            return Ok(*known);
        }
        let digest = digest_of(&self.locate(place))?;
        lock().insert(place.clone(), digest);
        Ok(digest)
    }

    /// Runs a tool to its end. Returns what it printed.
    fn finish(&self, mut command: Command, action: &Action) -> Result<String, BuildError> {
        let program = PathBuf::from(command.get_program());
        let output = command.output().map_err(|source| BuildError::Start {
            program: program.clone(),
            verb: action.verb,
            label: action.label.clone(),
            source,
        })?;
        let text = [output.stderr, output.stdout].concat();
        let mut text = String::from_utf8_lossy(&text).trim_end().to_owned();
        if output.status.success() {
            return Ok(text);
        }
        if let Some(path) = self.undeclared(&text) {
            let label = &action.label;
            text.push_str(&format!("\n{path} is in the workspace, but {label} does not list it, nor does any of its deps"));
        }
        let program = program.file_name().unwrap_or(program.as_os_str());
        Err(BuildError::Failed {
            verb: action.verb,
            label: action.label.clone(),
            program: program.to_string_lossy().into_owned(),
            status: output.status,
            output: text,
        })
    }

    /// The file that a compiler missed although it is in the workspace: `x.c:1:10: fatal error: lib/x.h: No such file or directory`.
    fn undeclared<'t>(&self, text: &'t str) -> Option<&'t str> {
        let line = text.lines().find(|line| line.ends_with(": No such file or directory"))?;
        let path = line.rsplit(": ").nth(1)?;
        let inside = !path.starts_with('/') && !path.split('/').any(|part| part == "..");
        (inside && self.root.join(path).is_file()).then_some(path)
    }
}

/// The digest of a file's content and executable bit, or of all that is in a folder.
pub(super) fn digest_of(path: &Path) -> Result<Digest, BuildError> {
    use std::os::unix::fs::PermissionsExt;
    let meta = fs::metadata(path).map_err(BuildError::when("read", path))?;
    let mut hasher = blake3::Hasher::new();
    if meta.is_dir() {
        hasher.update(b"folder");
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(BuildError::when("list", path))? {
            names.push(entry.map_err(BuildError::when("list", path))?.file_name());
        }
        names.sort();
        for name in names {
            let entry = path.join(&name);
            let bytes = name.as_encoded_bytes();
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
            match fs::read_link(&entry) {
                Ok(target) => {
                    let target = target.as_os_str().as_encoded_bytes();
                    hasher.update(b"link").update(&(target.len() as u64).to_le_bytes());
                    hasher.update(target);
                }
                Err(_) => _ = hasher.update(digest_of(&entry)?.as_bytes()),
            }
        }
    } else {
        let executable = meta.permissions().mode() & 0o111 != 0;
        hasher.update(if executable { b"program" } else { b"content" });
        let file = File::open(path).map_err(BuildError::when("open", path))?;
        hasher.update_reader(file).map_err(BuildError::when("read", path))?;
    }
    Ok(hasher.finalize().into())
}
