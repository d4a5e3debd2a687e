//! One action: is it current, and if not, do it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use mica_graph::Digest;
use mica_graph::actions::{Action, Place, Run, Tool};

use super::error::BuildError;
use super::executor::{ExecuteError, Executor, Invocation, Staging};
use super::place::{self, Input};
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
    pub(super) executor: &'b dyn Executor,
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
        let layout = self.executor.layout(&self.tmp.join(number.to_string()));
        let sandbox =
            Sandbox::new(self.tmp, number, action, layout.inputs, |place| self.resolve(place))?;
        let mut said = String::new();
        match &action.run {
            Run::Command { tool, args, env } => {
                said = self.command(*tool, args, env, action, &sandbox)?;
            }
            Run::Copy => {
                let to = sandbox.root.join(&action.outputs[0].path);
                // The input may stand at the same path.
                let copy = sandbox.tmp.join("copy");
                match self.resolve(&action.inputs[0])? {
                    Input::At(from) => place::copy(&from, &copy)?,
                    Input::Link(_) => {
                        let path = self.locate(&action.inputs[0]);
                        return Err(BuildError::Outside { path });
                    }
                }
                fs::rename(&copy, &to).map_err(BuildError::when("write", &to))?;
            }
            Run::Write(text) => {
                let to = sandbox.root.join(&action.outputs[0].path);
                fs::write(&to, text).map_err(BuildError::when("write", &to))?;
            }
        }
        state::forget(self.out, action)?;
        sandbox.take_outputs(self.out, action, &layout.root)?;
        sandbox.remove()?;
        state::remember(self.out, action, key)?;
        Ok(Outcome::Run { said })
    }

    /// Whether the outputs of `action` are those that it would make.
    pub(super) fn is_current(&self, action: &Action) -> Result<bool, BuildError> {
        Ok(state::is_current(self.out, action, self.key(action)?))
    }

    fn locate(&self, place: &Place) -> PathBuf {
        match place {
            Place::Source(path) => self.root.join(path),
            Place::Built(path) => self.out.join(BIN).join(path),
            Place::Host(path) => PathBuf::from(path),
        }
    }

    /// Where an input is, once links are followed. They may lead anywhere only in a repository that is trusted.
    fn resolve(&self, place: &Place) -> Result<Input, BuildError> {
        let path = self.locate(place);
        let strict = self.executor.layout(self.tmp).inputs == Staging::Copies;
        match place {
            Place::Source(_) if strict => Input::beneath(self.root, &path, false),
            Place::Built(_) if strict => Input::beneath(&self.out.join(BIN), &path, true),
            _ => Ok(Input::At(path)),
        }
    }

    /// Runs a tool to its end, in an environment that is the same everywhere. Returns what it printed.
    fn command(
        &self,
        tool: Tool,
        args: &[String],
        env: &BTreeMap<String, String>,
        action: &Action,
        sandbox: &Sandbox,
    ) -> Result<String, BuildError> {
        let folder = sandbox.folder();
        let layout = self.executor.layout(folder);
        let mut words = self.toolchain.command(tool, action)?.to_vec();
        let path = if tool == Tool::Bash {
            OsString::from("/usr/local/bin:/usr/bin:/bin")
        } else {
            // The only place where the folder could get into an output: debug information and `__FILE__`.
            words.push(format!("-ffile-prefix-map={}=.", layout.root.display()).into());
            self.toolchain.path.clone()
        };
        words.extend(args.iter().map(OsString::from));
        let tmp = || layout.tmp.clone().into_os_string();
        let fixed = [
            ("HOME", tmp()),
            ("TMPDIR", tmp()),
            ("LC_ALL", "C".into()),
            ("TZ", "UTC".into()),
            ("PATH", path),
        ];
        let mut all: BTreeMap<OsString, OsString> =
            fixed.into_iter().map(|(name, value)| (name.into(), value)).collect();
        all.extend(env.iter().map(|(name, value)| (name.into(), value.into())));
        let env: Vec<_> = all.into_iter().collect();
        let invocation = Invocation { folder, words: &words, env: &env, shown: &sandbox.shown };
        self.finish(&invocation, action)
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
        let digest = self.resolve(place)?.digest()?;
        lock().insert(place.clone(), digest);
        Ok(digest)
    }

    fn finish(&self, invocation: &Invocation<'_>, action: &Action) -> Result<String, BuildError> {
        let program = PathBuf::from(&invocation.words[0]);
        let (verb, label) = (action.verb, action.label.clone());
        let ran = match self.executor.run(invocation) {
            Ok(ran) => ran,
            Err(ExecuteError::Start(source)) => {
                return Err(BuildError::Start { program, verb, label, source });
            }
            Err(ExecuteError::Confine(source)) => {
                return Err(BuildError::Confine { program, verb, label, source });
            }
            Err(ExecuteError::Deadline(deadline)) => {
                return Err(BuildError::Deadline { program, verb, label, deadline });
            }
        };
        let mut text = String::from_utf8_lossy(&ran.output).trim_end().to_owned();
        if ran.success {
            return Ok(text);
        }
        if let Some(path) = self.undeclared(&text) {
            let label = &action.label;
            text.push_str(&format!("\n{path} is in the workspace, but {label} does not list it, nor does any of its deps"));
        }
        let program = program.file_name().unwrap_or(program.as_os_str());
        let program = program.to_string_lossy().into_owned();
        Err(BuildError::Failed { verb, label, program, status: ran.ended, output: text })
    }

    /// The file that a compiler missed although it is in the workspace: `x.c:1:10: fatal error: lib/x.h: No such file or directory`.
    fn undeclared<'t>(&self, text: &'t str) -> Option<&'t str> {
        let line = text.lines().find(|line| line.ends_with(": No such file or directory"))?;
        let path = line.rsplit(": ").nth(1)?;
        let inside = !path.starts_with('/') && !path.split('/').any(|part| part == "..");
        (inside && self.root.join(path).is_file()).then_some(path)
    }
}
