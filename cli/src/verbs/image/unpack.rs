//! `mica image unpack`: an image into a directory.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use mica_squashfs::unpack::{UnpackOptions, unpack};

use super::ImageFile;
use crate::output::{self, note};

/// Unpack an image into a directory
///
/// Files belong to you, without set-id bits, devices and file capabilities, which would give rights to whoever reaches the
/// directory: --preserve restores them. What was not restored is said.
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
    /// As root, restore owners, set-id bits, devices and all attributes; the directory is then for you alone (0700)
    #[arg(long)]
    preserve: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let image = args.image.open()?;
    if args.preserve {
        private_folder(&args.dir)?;
    }
    let unpacked =
        unpack(&image, &args.dir, &UnpackOptions { threads: args.jobs, plain: !args.preserve })
            .with_context(|| format!("cannot unpack {}", args.image.path.display()))?;
    if args.preserve {
        // The image's own root has another mode.
        private_folder(&args.dir)?;
    }
    unpacked.lost.iter().for_each(|lost| {
        note(format_args!(
            "not restored: {} of /{}",
            lost.what,
            String::from_utf8_lossy(&lost.path)
        ))
    });
    if unpacked.owners_lost > 0 {
        note(format_args!("not restored: the owners of {} files", unpacked.owners_lost));
    }
    if !args.preserve && (unpacked.owners_lost > 0 || !unpacked.lost.is_empty()) {
        note("root restores all of it with --preserve, in a directory for itself");
    }
    note(format_args!("unpacked {} files, {}", unpacked.files, output::bytes(unpacked.bytes)));
    Ok(ExitCode::SUCCESS)
}

/// A folder that nobody else gets into.
pub(crate) fn private_folder(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700)))
        .with_context(|| format!("cannot make {} a folder for its owner only", dir.display()))
}
