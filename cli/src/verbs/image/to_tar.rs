//! `mica image to-tar`: an image as the tar that containers know.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_squashfs::{Image, OpenOptions};

/// Write an image's content as a tar
///
/// As a stream processor of containerd it reads the image from standard input:
/// accepts = ["application/vnd.mica.layer.v1.squashfs"], returns = "application/vnd.oci.image.layer.v1.tar",
/// path = "mica", args = ["image", "to-tar"].
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image: a .xar or a squashfs file; - is standard input
    #[arg(value_name = "IMAGE", default_value = "-")]
    image: PathBuf,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let stdout = std::io::stdout();
    if args.output.is_none() && stdout.is_terminal() {
        bail!("a tar is not for a terminal; name a file with -o, or redirect the output");
    }
    let image = if args.image.as_os_str() == "-" {
        // An image is read at any position, a pipe is not.
        let mut file = tempfile::tempfile().context("cannot make a temporary file")?;
        std::io::copy(&mut std::io::stdin().lock(), &mut file)
            .context("cannot keep the image in a temporary file")?;
        Image::from_source(Box::new(file), &OpenOptions::default())?
    } else {
        Image::open(&args.image, &OpenOptions::default())?
    };
    match &args.output {
        Some(path) => {
            let file = std::fs::File::create(path)
                .with_context(|| format!("cannot create {}", path.display()))?;
            let mut out = BufWriter::with_capacity(1 << 18, file);
            mica_fetcher::write_tar(&image, &mut out)?;
            out.flush().with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => {
            let mut out = BufWriter::with_capacity(1 << 18, stdout.lock());
            mica_fetcher::write_tar(&image, &mut out)?;
            out.flush().context("cannot write to standard output")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
