//! `mica umount`: take down what `mica mount` mounted.

use std::path::PathBuf;
use std::process::ExitCode;

use mica_agent::Unmounted;

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
    let mounts = context.mounts()?;
    let mut exit = ExitCode::SUCCESS;
    for mountpoint in &args.mountpoints {
        match mounts.unmount(mountpoint) {
            Ok(Unmounted::Clean) => {}
            Ok(Unmounted::Lazy) => note(format_args!(
                "{} is in use: it is out of the tree, and served until the last user is gone",
                mountpoint.display()
            )),
            Err(error) => exit = crate::error::report(&error.into(), 1),
        }
    }
    Ok(exit)
}
