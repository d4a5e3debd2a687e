//! `mica version`: which mica this is.

use std::process::ExitCode;

use serde_json::json;

use crate::output;

/// Show which mica this is
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (version, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    if args.json {
        output::json(&json!({ "version": version, "arch": arch, "kernel": kernel }))?;
    } else {
        output::lines([format!("mica {version} ({arch}, Linux {kernel})").as_str()])?;
    }
    Ok(ExitCode::SUCCESS)
}
