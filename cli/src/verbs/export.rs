//! `mica export`: a package in the forms of other tools.

use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_fetcher::TarWriter;
use mica_graph::PackageRef;
use mica_mounter::View;
use mica_packer::{Header, Keep, PackOptions, pack_dir, untar};

use crate::context::Context;
use crate::error::Advise as _;
use crate::output;
use crate::registries::RegistryFlags;
use crate::stacks::{self, Opened};
use crate::verbs::image::private_folder;
use crate::verbs::save::write_archive;

/// Write a package in a form of other tools
///
/// Without --format, an OCI layout in a tar with docker's manifest beside it: `docker load`, `podman load` and skopeo take it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The package
    #[arg(value_name = "REF")]
    reference: PackageRef,
    /// The file, or for dir a folder that is not there; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// The form: an image for containers, a tar of the merged tree, that tree, or one file that runs by itself
    #[arg(long, value_enum, default_value_t = Format::Oci, value_name = "FORM")]
    format: Format,
    /// With --format dir, as root: keep owners, set-id bits, devices and attributes; the folder is then for you alone (0700).
    /// Else files belong to you, and what would give rights to whoever reaches the folder is left out
    #[arg(long)]
    preserve: bool,
    /// Short for --format xar
    #[arg(long, conflicts_with = "format")]
    xar: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// An image for containers
    #[value(alias = "docker", alias = "oci-archive", alias = "docker-archive")]
    Oci,
    /// A tar of the merged tree
    Tar,
    /// The merged tree
    Dir,
    /// One image that runs by itself where XAR's xarexec_fuse is
    Xar,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let package = stacks::open_package(context, &args.reference)?;
    let format = if args.xar { Format::Xar } else { args.format };
    if args.preserve && format != Format::Dir {
        bail!("--preserve goes with --format dir; the other forms keep everything");
    }
    match format {
        Format::Oci => write_archive(&args.output, |out| {
            let images: Vec<_> =
                package.stack.layers.iter().map(|layer| layer.image.clone()).collect();
            Ok(mica_fetcher::export_archive(&package.manifest, &images, out)?)
        })?,
        Format::Tar => write_archive(&args.output, |out| merged(package, out))?,
        Format::Dir => {
            let keep = if args.preserve { everything() } else { Keep::Plain };
            let left_out = unpack(package, args.file("dir")?, keep)?;
            left_out.iter().for_each(output::note);
            if !args.preserve && !left_out.is_empty() {
                output::note("root keeps all of it with --preserve, in a folder for itself");
            }
        }
        Format::Xar => xar(package, args.file("xar")?, context)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn file(&self, form: &str) -> anyhow::Result<&Path> {
        match self.output.as_os_str() == "-" {
            true => bail!("--format {form} needs -o PATH"),
            false => Ok(&self.output),
        }
    }
}

/// The tree that the stack shows, as a tar.
fn merged(package: Opened, out: &mut dyn Write) -> anyhow::Result<()> {
    let view = View::new(package.stack);
    let mut tar = TarWriter::new(out);
    let mut failed = None;
    view.walk(|seen| {
        if failed.is_none() {
            let path = seen.path.as_os_str().as_bytes();
            failed = tar.entry(seen.layer, seen.image, path, &seen.inode).err();
        }
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(tar.finish()?),
    }
}

fn everything() -> Keep {
    if rustix::process::geteuid().is_root() { Keep::Everything } else { Keep::Modes }
}

/// Writes the tree into a new folder, and returns what was left out. With set-id bits and devices, nobody else gets in.
fn unpack(package: Opened, dir: &Path, keep: Keep) -> anyhow::Result<Vec<String>> {
    std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if keep != Keep::Plain {
        private_folder(dir)?;
    }
    let (read, write) = std::io::pipe().context("cannot make a pipe")?;
    std::thread::scope(|scope| {
        let work = move || {
            let mut out = BufWriter::with_capacity(1 << 18, write);
            merged(package, &mut out).and_then(|()| Ok(out.flush()?))
        };
        let writer = std::thread::Builder::new().spawn_scoped(scope, work);
        let writer = writer.context("cannot start the thread that reads the package")?;
        let notices = untar(read, dir, keep);
        let written = writer.join().unwrap_or_else(|_| bail!("the reader of the package panicked"));
        // A reader that gave up is why the writer did.
        let notices = notices?;
        written.map(|()| notices)
    })
}

/// What xarexec_fuse runs: it has the file's own path as its first argument, which the package's program doesn't expect.
const START: &str = "xar_start.sh";

fn xar(package: Opened, file: &Path, context: &Context) -> anyhow::Result<()> {
    let name = format!("{}@{}", package.manifest.name, package.manifest.version);
    if package.manifest.has_root() {
        return Err(anyhow::anyhow!("{name} is a whole system, which a XAR can't run")).hint(
            "`mica export --format oci` writes it for containers; a XAR runs over the host's root",
        );
    }
    let process = &package.manifest.process;
    let target = match &process.entrypoint[..] {
        [program]
            if program.contains('/') && !program.starts_with('/') && process.cmd.is_empty() =>
        {
            program.trim_start_matches("./").to_owned()
        }
        words => {
            let words = words.join(" ");
            return Err(anyhow::anyhow!(
                "a XAR runs one program of its own, and {name} runs `{words}`"
            ))
            .hint(
                "`mica pack --entrypoint PATH` names a program in the package, without arguments",
            );
        }
    };
    let scratch = context.scratch()?;
    let tree = scratch.path().join("tree");
    unpack(package, &tree, everything())?.iter().for_each(output::note);
    let start = tree.join(START);
    if start.symlink_metadata().is_ok() {
        bail!("{name} has a {START} of its own, where a XAR's start goes");
    }
    let script = format!("#!/bin/sh\nshift\nexec \"${{0%/*}}/{}\" \"$@\"\n", in_quotes(&target));
    let executable = || std::fs::Permissions::from_mode(0o755);
    std::fs::write(&start, script)
        .and_then(|()| std::fs::set_permissions(&start, executable()))
        .with_context(|| format!("cannot write {}", start.display()))?;
    let header = Some(Header { target: Some(START.to_owned()) });
    let options = PackOptions { header, chunks: false, ..PackOptions::default() };
    pack_dir(&tree, file, &options)?;
    std::fs::set_permissions(file, executable())
        .with_context(|| format!("cannot make {} executable", file.display()))
}

/// For a shell, between double quotes.
fn in_quotes(text: &str) -> String {
    let special = |char: char| matches!(char, '"' | '\\' | '$' | '`');
    let escape = |char: char| special(char).then_some('\\').into_iter().chain([char]);
    text.chars().flat_map(escape).collect()
}
