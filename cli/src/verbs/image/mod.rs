//! `mica image`: pack, list and read single images.

mod cat;
mod delta;
pub(crate) mod info;
mod ls;
mod pack;
mod to_tar;
mod unpack;
pub(crate) mod verify;

pub(crate) use unpack::private_folder;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_squashfs::{Image, Inode, InodeKind, OpenOptions};

/// Pack, list and read single images
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Pack a directory into an image
    Pack(pack::Args),
    /// Show an image's header and parameters
    Info(info::Args),
    /// List an image's files
    Ls(ls::Args),
    /// Print files of an image
    Cat(cat::Args),
    /// Unpack an image into a directory
    Unpack(unpack::Args),
    /// Read everything in an image and name what is damaged
    Verify(verify::Args),
    /// Write an image's content as a tar, as containerd wants it
    ToTar(to_tar::Args),
    /// Bytes to ship for a new image to a node that has the old one
    Delta(delta::Args),
}

/// An image file, plain squashfs or XAR.
#[derive(Debug, clap::Args)]
struct ImageFile {
    /// The image: a .xar or a squashfs file
    #[arg(value_name = "IMAGE")]
    path: PathBuf,
    /// Where in the file the file system begins [default: found by the header]
    #[arg(short, long, value_name = "BYTES")]
    offset: Option<u64>,
}

impl ImageFile {
    fn open(&self) -> anyhow::Result<Image> {
        let options = OpenOptions { offset: self.offset, ..OpenOptions::default() };
        Ok(Image::open(&self.path, &options)?)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Pack(args) => pack::run(args),
        Verb::Info(args) => info::run(args),
        Verb::Ls(args) => ls::run(args),
        Verb::Cat(args) => cat::run(args),
        Verb::Unpack(args) => unpack::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::ToTar(args) => to_tar::run(args),
        Verb::Delta(args) => delta::run(args),
    }
}

/// The time after which nothing in an image was changed: `SOURCE_DATE_EPOCH`
/// (<https://reproducible-builds.org/specs/source-date-epoch/>), else 0.
pub(crate) fn source_date_epoch() -> anyhow::Result<u32> {
    match std::env::var_os("SOURCE_DATE_EPOCH") {
        None => Ok(0),
        Some(value) => value.to_str().and_then(|value| value.parse().ok()).with_context(|| {
            format!(
                "SOURCE_DATE_EPOCH={} is not a number of seconds since 1970 that squashfs can hold",
                value.display()
            )
        }),
    }
}

/// The inode at `path`; symlinks in it are not followed, `..` is refused.
fn find(image: &Image, path: &Path) -> anyhow::Result<Inode> {
    lookup(image, path)?.with_context(|| format!("there is no {} in the image", path.display()))
}

/// The same, if there is one.
pub(crate) fn lookup(image: &Image, path: &Path) -> anyhow::Result<Option<Inode>> {
    use std::os::unix::ffi::OsStrExt;
    let mut inode = image.inode(image.root())?;
    for part in path.components() {
        use std::path::Component;
        let name = match part {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => name,
            Component::ParentDir | Component::Prefix(_) => {
                bail!("{} has a `..` in it", path.display())
            }
        };
        let found = match inode.kind {
            InodeKind::Directory { .. } => image.lookup(&inode, name.as_bytes())?,
            _ => None,
        };
        let Some(found) = found else { return Ok(None) };
        inode = image.inode(found)?;
    }
    Ok(Some(inode))
}

/// Hands an inode and all that is below it to `each`, depth first, a directory before what it holds. A directory that
/// is met at a second place is an error.
pub(crate) fn walk(
    image: &Image,
    start: (PathBuf, Inode),
    mut each: impl FnMut(&Path, &Inode) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let (base, inode) = start;
    for entry in mica_squashfs::read::walk_from(image, inode.reference) {
        let entry = entry?;
        match entry.path.is_empty() {
            true => each(&base, &entry.inode)?,
            false => each(&base.join(std::ffi::OsStr::from_bytes(&entry.path)), &entry.inode)?,
        }
    }
    Ok(())
}

/// What an inode is, in a word.
pub(crate) fn kind_word(inode: &Inode) -> &'static str {
    match inode.kind {
        InodeKind::Directory { .. } => "directory",
        InodeKind::File { .. } => "file",
        InodeKind::Symlink { .. } => "symlink",
        InodeKind::BlockDevice { .. } => "block-device",
        InodeKind::CharDevice { .. } => "character-device",
        InodeKind::Fifo => "fifo",
        InodeKind::Socket => "socket",
    }
}
