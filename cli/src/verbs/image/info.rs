//! `mica image info`: an image's header and parameters.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use super::ImageFile;
use crate::output;

/// Show an image's header and parameters
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageFile,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Info {
    size: u64,
    offset: u64,
    compression: String,
    /// As recorded; tools leave their default out.
    compressor_options: Option<String>,
    block_size: u32,
    inodes: u32,
    fragments: u32,
    ids: u16,
    bytes_used: u64,
    time: u32,
    xattrs: bool,
    xar: Option<Vec<(String, String)>>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let image = args.image.open()?;
    let superblock = image.superblock();
    let path = &args.image.path;
    let size = path.metadata().with_context(|| format!("cannot stat {}", path.display()))?.len();
    let xar = image.xar_header().map(|header| {
        let fixed = [
            ("UUID", &header.uuid),
            ("VERSION", &header.version),
            ("DEPENDENCIES", &header.dependencies),
            ("XAREXEC_TARGET", &header.xarexec_target),
        ];
        let fixed =
            fixed.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        fixed.chain(header.others.iter().cloned()).collect()
    });
    let info = Info {
        size,
        offset: image.start(),
        compression: image.compression().to_string(),
        compressor_options: image.compressor_options()?.map(|options| options.to_string()),
        block_size: superblock.block_size,
        inodes: superblock.inodes,
        fragments: superblock.fragments,
        ids: superblock.ids,
        bytes_used: superblock.bytes_used,
        time: superblock.mkfs_time,
        xattrs: image.has_xattrs(),
        xar,
    };
    if args.json {
        output::json(&info)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = output::text();
    let kind = if info.xar.is_some() { "XAR, " } else { "" };
    writeln!(out, "format       {kind}squashfs 4.0 at offset {}", info.offset)?;
    writeln!(out, "size         {} ({} bytes)", output::bytes(info.size), info.size)?;
    writeln!(
        out,
        "compression  {}{}, blocks of {}",
        info.compression,
        info.compressor_options
            .filter(|options| !options.is_empty())
            .map_or_else(String::new, |options| format!(" ({options})")),
        output::bytes(info.block_size.into())
    )?;
    writeln!(out, "inodes       {}", info.inodes)?;
    writeln!(out, "fragments    {}", info.fragments)?;
    writeln!(out, "ids          {}", info.ids)?;
    writeln!(out, "xattrs       {}", if info.xattrs { "yes" } else { "no" })?;
    let time = jiff::Timestamp::from_second(info.time.into())?;
    writeln!(out, "made         {time}")?;
    for (key, value) in info.xar.iter().flatten() {
        writeln!(out, "{key}={value:?}")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
