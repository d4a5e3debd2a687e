//! `mica save` and `mica load`: packages as one file.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_graph::PackageRef;

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

/// Writes beside the file and puts it in its place at the end: a save that fails leaves what was there.
fn to_named<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let cannot = || format!("cannot write {}", path.display());
    let new = tempfile::Builder::new()
        .prefix(".mica-save-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .with_context(cannot)?;
    let mut out = BufWriter::with_capacity(1 << 18, new);
    let result = write(&mut out)?;
    let new = out.into_inner().map_err(|error| error.into_error()).with_context(cannot)?;
    new.as_file().sync_all().with_context(cannot)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    new.as_file().set_permissions(mode).with_context(cannot)?;
    new.persist(path).with_context(cannot)?;
    Ok(result)
}

pub(crate) fn load(args: &LoadArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let cache = context.cache()?;
    let mut archive = match args.input.as_os_str() == "-" {
        true => from_stdin(&context.places.cache)?,
        false => File::open(&args.input)
            .with_context(|| format!("cannot open {}", args.input.display()))?,
    };
    let loaded = mica_fetcher::load(&cache, &mut archive)
        .with_context(|| format!("cannot load {}", args.input.display()))?;
    let names: Vec<String> = loaded.iter().map(|m| format!("{}@{}", m.name, m.version)).collect();
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
