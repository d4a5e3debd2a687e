//! `mica umount`: take down what `mica mount` mounted.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mica_agent::{Holder, Holders, TakenDown};

use crate::context::Context;
use crate::output::note;

/// Unmount what `mica mount` mounted
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it is mounted
    #[arg(required = true, value_name = "DIR")]
    mountpoints: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    // What a killed server left is taken down by its name here, not behind the back of whoever asks for it.
    let mounts = context.mounts_as_they_are()?;
    let mut exit = ExitCode::SUCCESS;
    for mountpoint in &args.mountpoints {
        match mounts.unmount(mountpoint) {
            Ok(TakenDown::Gone) => {}
            Ok(TakenDown::Held(holders)) => note(held(mountpoint, &holders)),
            Err(error) => exit = crate::error::report(&error.into(), 1),
        }
    }
    mounts.reconcile()?;
    Ok(exit)
}

/// Says who keeps the server of a mount that is out of the tree.
fn held(mountpoint: &Path, Holders { users, copies }: &Holders) -> String {
    let point = mountpoint.display();
    let all = |holders: &[Holder]| {
        let mut names: Vec<_> =
            holders.iter().take(5).map(|h| format!("{} ({})", h.pid, h.name)).collect();
        names.extend((holders.len() > 5).then(|| format!("{} more", holders.len() - 5)));
        names.join(", ")
    };
    match (users.is_empty(), copies.is_empty()) {
        (false, _) => format!(
            "{point} is in use: it is out of the tree, and served until the last user is gone: {}",
            all(users)
        ),
        (true, false) => format!(
            "{point} is out of the tree; mount namespaces that have a copy of it: {}",
            all(copies)
        ),
        (true, true) => {
            format!("{point} is out of the tree, and served until the last user is gone")
        }
    }
}
