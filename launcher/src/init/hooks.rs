//! Runs hooks: programs of the host's that prepare the job's root before the job is in it.
//!
//! A hook gets what an OCI runtime gives it at the stage `createContainer`: the container's state on standard input, with
//! the path of a bundle whose `config.json` names the root.

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Trouble;
use super::targets::Targets;
use crate::cdi::Hook;

/// Inside the job's `/dev`, which is a memory file system of its own.
const BUNDLE: &str = "dev/.bundle";

/// Runs the hooks; `root` is where the new root is attached for now.
pub(super) fn run(hooks: &[Hook], root: &Path, targets: &Targets) -> Result<(), Trouble> {
    let bundle = root.join(BUNDLE);
    let prepare = || {
        rustix::fs::mkdirat(
            targets.root().as_fd(),
            BUNDLE,
            rustix::fs::Mode::from_raw_mode(0o700),
        )?;
        let config = serde_json::json!({"ociVersion": "1.0.2", "root": {"path": root}});
        std::fs::write(bundle.join("config.json"), config.to_string())
    };
    prepare().map_err(|e| Trouble::new("write the bundle for hooks", e))?;
    let state = serde_json::json!({
        "ociVersion": "1.0.2", "id": "mica", "status": "creating", "pid": std::process::id(), "bundle": bundle,
    });
    for hook in hooks {
        run_one(hook, &state.to_string())?;
    }
    std::fs::remove_dir_all(&bundle).map_err(|e| Trouble::new("remove the bundle for hooks", e))
}

fn run_one(hook: &Hook, state: &str) -> Result<(), Trouble> {
    let what = || format!("run the hook {}", hook.path.display());
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        std::os::unix::process::CommandExt::arg0(&mut command, name).args(arguments);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|line| line.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let run = || {
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            match input.write_all(state.as_bytes()) {
                // It needn't read it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                result => result?,
            }
        }
        child.wait_with_output()
    };
    let mut run = run;
    let output = run().map_err(|e: io::Error| Trouble::new(what(), e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    Err(Trouble::new(
        format!("{} ({}: {last})", what(), output.status),
        rustix::io::Errno::CANCELED,
    ))
}
