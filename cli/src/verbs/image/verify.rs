//! `mica image verify`: read everything in an image.

use std::num::NonZero;
use std::process::ExitCode;

use mica_squashfs::verify::verify;

use super::ImageFile;
use crate::output::{self, note};

/// Read everything in an image and name what is damaged
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageFile,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZero<usize>>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let verified = verify(&args.image.open()?, args.jobs);
    let lines: Vec<String> =
        verified.damage.iter().map(|damage| format!("{damage}: {}", damage.fault)).collect();
    output::lines(lines.iter().map(String::as_str))?;
    note(format_args!("read {} files, {}", verified.files, output::bytes(verified.bytes)));
    match lines.len() {
        0 => return Ok(ExitCode::SUCCESS),
        1 => note("1 place is damaged"),
        count => note(format_args!("{count} places are damaged")),
    }
    Ok(ExitCode::FAILURE)
}
