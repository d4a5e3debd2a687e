//! `mica save` and `mica load`: packages as one file.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_graph::PackageRef;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::context::Context;
use crate::output::{self, note};

/// Write packages of the cache into one file, an OCI image layout in a tar
///
/// Layers that several packages share are in it once. `mica load` takes them in on a machine without a network.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The packages
    #[arg(required = true, value_name = "REF")]
    references: Vec<PackageRef>,
    /// The file; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Leave out what this package has: whoever loads the file must have it
    #[arg(long, value_name = "REF")]
    since: Vec<PackageRef>,
}

/// Take the packages of a file written by `mica save` into the cache
///
/// Prints what it held.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// The file; - is standard input
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    input: PathBuf,
    /// Take them also in place of other content that their versions have here
    #[arg(long)]
    replace: bool,
}

pub(crate) fn save(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let cache = context.cache()?;
    let saved = write_archive(&args.output, |out| {
        Ok(mica_fetcher::save(&cache, &args.references, &args.since, out)?)
    })?;
    note(format_args!("saved {} blobs, {}", saved.blobs, output::bytes(saved.bytes)));
    Ok(ExitCode::SUCCESS)
}

/// Writes an archive to a file, or to standard output for `-`.
pub(crate) fn write_archive<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if path.as_os_str() != "-" {
        return to_named(path, write);
    }
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        bail!("an archive is not for a terminal; name a file with -o, or redirect the output");
    }
    let mut out = BufWriter::with_capacity(1 << 18, stdout.lock());
    let written = write(&mut out)?;
    out.flush().context("cannot write to standard output")?;
    Ok(written)
}

/// Writes beside the file and puts it in its place at the end: a save that fails leaves what was there. Until then the new file has
/// no name, where the file system can do that, so that a killed save leaves nothing either.
fn to_named<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let cannot = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let named = || tempfile::Builder::new().prefix(".mica-save-").tempfile_in(folder);
    let (file, mut name) = match rustix::fs::open(folder, flags, Mode::from_raw_mode(0o644)) {
        Ok(file) => (File::from(file), None),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let (file, name) = named().with_context(cannot)?.into_parts();
            (file, Some(name))
        }
        Err(error) => return Err(error).with_context(cannot),
    };
    let mut out = BufWriter::with_capacity(1 << 18, file);
    let result = write(&mut out)?;
    let file = out.into_inner().map_err(|error| error.into_error()).with_context(cannot)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .and_then(|()| file.sync_all())
        .with_context(cannot)?;
    if name.is_none() {
        // A link cannot take the place of a file, a rename can.
        let free = named().with_context(cannot)?.into_temp_path();
        std::fs::remove_file(&free).with_context(cannot)?;
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, from, CWD, &*free, AtFlags::SYMLINK_FOLLOW).with_context(cannot)?;
        name = Some(free);
    }
    if let Some(name) = name {
        name.persist(path).with_context(cannot)?;
    }
    Ok(result)
}

pub(crate) fn load(args: &LoadArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let cache = context.cache()?.replacing(args.replace);
    let mut archive = match args.input.as_os_str() == "-" {
        true => from_stdin(&context.places.cache)?,
        false => File::open(&args.input)
            .with_context(|| format!("cannot open {}", args.input.display()))?,
    };
    let loaded = mica_fetcher::load(&cache, &mut archive, &context.places.trust)
        .with_context(|| format!("cannot load {}", args.input.display()))?;
    let names: Vec<String> = loaded.iter().map(ToString::to_string).collect();
    output::lines(names.iter().map(String::as_str))?;
    Ok(ExitCode::SUCCESS)
}

/// Standard input as a file that can be read twice: itself, if it is one.
fn from_stdin(cache: &Path) -> anyhow::Result<File> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        bail!("no archive comes from a terminal; name a file with -i");
    }
    let fd = rustix::io::dup(&stdin).context("cannot read standard input")?;
    let mut own = File::from(fd);
    if own.metadata().is_ok_and(|meta| meta.is_file()) && own.stream_position().is_ok() {
        return Ok(own);
    }
    // Beside the cache, where there is room for images.
    let mut file = tempfile::tempfile_in(cache)
        .with_context(|| format!("cannot make a temporary file in {}", cache.display()))?;
    std::io::copy(&mut own, &mut file).context("cannot keep standard input in a file")?;
    Ok(file)
}
