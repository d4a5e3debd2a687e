//! `mica image unpack`: an image into a directory.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use mica_squashfs::unpack::{UnpackOptions, unpack};

use super::ImageFile;
use crate::output::{self, note};

/// Unpack an image into a directory
///
/// As root everything is restored; an ordinary user is told what was not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageFile,
    /// The directory: new, or empty
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZero<usize>>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let image = args.image.open()?;
    let unpacked = unpack(&image, &args.dir, &UnpackOptions { threads: args.jobs })
        .with_context(|| format!("cannot unpack {}", args.image.path.display()))?;
    unpacked.lost.iter().for_each(|lost| {
        note(format_args!(
            "not restored: {} of /{}",
            lost.what,
            String::from_utf8_lossy(&lost.path)
        ))
    });
    if unpacked.owners_lost > 0 {
        note(format_args!(
            "not restored: the owners of {} files, which need root",
            unpacked.owners_lost
        ));
    }
    note(format_args!("unpacked {} files, {}", unpacked.files, output::bytes(unpacked.bytes)));
    Ok(ExitCode::SUCCESS)
}
