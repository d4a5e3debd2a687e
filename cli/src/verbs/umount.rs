//! `mica umount`: take down what `mica mount` mounted.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::context::Context;

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
        if let Err(error) = mounts.unmount(mountpoint) {
            exit = crate::error::report(&error.into(), 1);
        }
    }
    Ok(exit)
}
