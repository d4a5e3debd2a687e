//! `mica image cat`: print files of an image.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_squashfs::InodeKind;

use super::ImageFile;
use crate::output;

/// Print files of an image
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageFile,
    /// The files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let image = args.image.open()?;
    let mut out = output::stdout();
    let mut buffer = vec![0; 1 << 20];
    for path in &args.paths {
        let inode = super::find(&image, path)?;
        let InodeKind::File { size, .. } = inode.kind else {
            bail!("{} is not a regular file", path.display());
        };
        let mut offset = 0;
        while offset < size {
            let count = image
                .read_at(&inode, offset, &mut buffer)
                .with_context(|| format!("cannot read {}", path.display()))?;
            if count == 0 {
                bail!("{} ends after {offset} of {size} bytes", path.display());
            }
            out.write_all(&buffer[..count])?;
            offset += count as u64;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
