//! `mica image pack`: a directory into an image.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mica_packer::{Header, PackOptions, index_path, pack_dir, scan_dir};
use mica_squashfs::codec::Compression;

use crate::output::{self, note};
use crate::verbs::run::parse_size;

/// Pack a directory into an image
///
/// The same content gives the same bytes, whatever the folder, the time or the machine: owners become 0:0 and
/// times 0 (or SOURCE_DATE_EPOCH) unless told otherwise. Prints the image's digest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory that becomes the image's root
    dir: PathBuf,
    /// The image to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Compression
    #[arg(long, value_enum, default_value_t = Comp::Zstd)]
    comp: Comp,
    /// Compression level [default: 3 for zstd]
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// Size of a data block, a power of two from 4k to 1m
    #[arg(long, value_name = "SIZE", default_value = "128k", value_parser = parse_block_size)]
    block_size: u32,
    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Program that stock `xarexec_fuse` runs, relative to the directory
    #[arg(long, value_name = "PATH", conflicts_with = "no_header")]
    xar_target: Option<String>,
    /// Write a plain squashfs image without a XAR header
    #[arg(long)]
    no_header: bool,
    /// Owner and group of everything in the image
    #[arg(long, value_name = "UID:GID", default_value = "0:0", value_parser = parse_owner, conflicts_with = "keep_owner")]
    owner: (u32, u32),
    /// Keep the owners of the files
    #[arg(long)]
    keep_owner: bool,
    /// An earlier image, whose compressed blocks are taken over where the content is the same [default: the one that
    /// is replaced, if it has its FILE.index]
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// Remember in this file what was packed: next time only files that changed since are read, and nothing is
    /// written if none has
    #[arg(long, value_name = "FILE")]
    scan_cache: Option<PathBuf>,
    /// Do not write FILE.chunks (for fetching differences) and FILE.index (for --previous) beside the image
    #[arg(long)]
    no_sidecars: bool,
    /// Do not wait until the image is on the disk, as other packers don't: it survives a killed mica, but perhaps not a
    /// power cut
    #[arg(long)]
    no_sync: bool,
    /// Read the image again, through backhand too, and compare it with the directory
    #[arg(long)]
    verify: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Comp {
    Zstd,
    Gzip,
    Lz4,
    Xz,
    None,
}

impl From<Comp> for Compression {
    fn from(comp: Comp) -> Self {
        match comp {
            Comp::Zstd => Self::Zstd,
            Comp::Gzip => Self::Gzip,
            Comp::Lz4 => Self::Lz4,
            Comp::Xz => Self::Xz,
            Comp::None => Self::None,
        }
    }
}

fn parse_block_size(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    match u32::try_from(size) {
        Ok(size) if size.is_power_of_two() && (4096..=1 << 20).contains(&size) => Ok(size),
        _ => Err(format!("`{text}` is not a power of two from 4k to 1m")),
    }
}

fn parse_owner(text: &str) -> Result<(u32, u32), String> {
    let parsed =
        text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    parsed.ok_or_else(|| format!("`{text}` is not of the form UID:GID"))
}

/// The image that is there already.
fn replaced(output: &Path) -> Option<PathBuf> {
    index_path(output).is_file().then(|| output.to_owned())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = PackOptions {
        compression: args.comp.into(),
        level: args.level,
        block_size: args.block_size,
        jobs: args.jobs.map(usize::from),
        owner: (!args.keep_owner).then_some(args.owner),
        mtime: super::source_date_epoch()?,
        chunks: !args.no_sidecars,
        index: !args.no_sidecars,
        previous: args.previous.clone().or_else(|| replaced(&args.output)),
        scan_cache: args.scan_cache.clone(),
        durable: !args.no_sync,
        header: (!args.no_header).then(|| Header { target: args.xar_target.clone() }),
    };
    let packed = pack_dir(&args.dir, &args.output, &options)?;
    packed.notices.iter().for_each(note);
    if args.verify {
        mica_packer::verify(&args.output, &scan_dir(&args.dir, &options.scan())?)?;
    }
    note(format_args!(
        "{} {} files, {} into {} in {}",
        if packed.unchanged { "nothing changed:" } else { "packed" },
        packed.files,
        output::bytes(packed.bytes_in),
        output::bytes(packed.size),
        output::duration(packed.elapsed),
    ));
    output::lines([packed.digest.to_string().as_str()])?;
    Ok(ExitCode::SUCCESS)
}
