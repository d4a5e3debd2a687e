//! `mica mount`: a package, or image files, as one directory tree.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_agent::{MountConfig, MountInvocation, MountReport, UpperDirs, Verify};
use mica_graph::PackageRef;

use super::{pull, run};
use crate::context::Context;
use crate::registries::RegistryFlags;
use crate::{app, error, hints, output, stacks};

/// Mount a package, or image files, as one directory tree
///
/// Returns when the mount can be used, and prints where it is. Without --upper the mount is read-only.
/// An ordinary user needs fusermount3 (package fuse3); `mica run` needs neither it nor root.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "mica mount [OPTIONS] REF [DIR]\n       mica mount [OPTIONS] --image TOP [--image BASE]... [DIR]"
)]
pub(crate) struct Args {
    /// The package, and the folder to mount it on [default: a new folder]
    #[arg(value_name = "REF] [DIR", num_args = 0..=2)]
    words: Vec<OsString>,
    /// Mount image files instead of a package, topmost first
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Keep changes in this folder, with scratch in a folder beside it named *.work
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Serve in this process, until the mount is taken down
    #[arg(long)]
    foreground: bool,
    /// Unmount when nothing was asked for so many seconds and nothing is in use
    #[arg(long, value_name = "SECONDS")]
    idle_timeout: Option<u64>,
    /// When to compare what is read with the images' chunk tables: never, first-read or always; images of a cache that
    /// another account can change are verified at every read in any case
    #[arg(long, default_value = "first-read", value_name = "WHEN")]
    verify: Verify,
    /// Note in which order the package's blocks are first read; later mounts and jobs read them ahead
    #[arg(long, conflicts_with = "images")]
    record_trace: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
    #[command(flatten)]
    lazy: pull::LazyFlags,
    /// When to ask the registry
    #[arg(long, value_enum, default_value_t = run::PullWhen::Missing, value_name = "WHEN")]
    pull: run::PullWhen,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let config = config(args, context)?;
    let mounts = context.mounts()?;
    let (mount, lock) = mounts.create(&config)?;
    if args.foreground {
        let result = mica_agent::serve_config(&config, &mount.mountpoint()?, print);
        mount.remove(&lock)?;
        result?;
        return Ok(ExitCode::SUCCESS);
    }
    match mica_agent::start_mount(&run::own_program()?, &mount, lock)? {
        MountReport::Ready(path) => print(&path),
        MountReport::Failed(failure) => return Err(error::of_failure(failure)),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(mountpoint: &Path) {
    // Whoever asked for the mount may have gone; it is there all the same.
    let _ = output::exact_lines([mountpoint.to_string_lossy().as_ref()]);
}

fn config(args: &Args, context: &Context) -> anyhow::Result<MountConfig> {
    let (mut stack, dir) = if args.images.is_empty() {
        let (reference, dir) = match &args.words[..] {
            [] => bail!(
                "nothing to mount; name a package (mica mount A@953bc) or an image (mica mount --image FILE)"
            ),
            [reference] => (reference, None),
            [reference, dir, ..] => (reference, Some(dir)),
        };
        let reference: PackageRef = reference.to_string_lossy().parse()?;
        let way = stacks::Way {
            pull: args.pull,
            quiet: args.quiet,
            lazy: &args.lazy,
            verify: args.verify,
            record_trace: args.record_trace,
        };
        (stacks::of_package(context, &reference, &way)?.0, dir)
    } else {
        let dir = match &args.words[..] {
            [] => None,
            [dir] => Some(dir),
            _ => bail!("with --image there is one argument: the folder to mount on"),
        };
        (stacks::of_images(&args.images, args.verify)?, dir)
    };
    stack.upper = args.upper.as_deref().map(upper).transpose()?;
    Ok(MountConfig {
        stack,
        mountpoint: dir.map(|dir| resolve(Path::new(dir))).transpose()?,
        idle_timeout: args.idle_timeout,
    })
}

/// The server has a working directory of its own, so it is told the whole path.
fn resolve(dir: &Path) -> anyhow::Result<PathBuf> {
    dir.canonicalize().with_context(|| format!("cannot mount on {}", dir.display()))
}

fn upper(dir: &Path) -> anyhow::Result<UpperDirs> {
    let upper = std::path::absolute(dir)?;
    let mut work = upper.clone().into_os_string();
    work.push(".work");
    Ok(UpperDirs { upper, work: work.into() })
}

/// The server's own process.
pub(crate) fn serve(words: &[OsString]) -> ExitCode {
    let Some(invocation) = MountInvocation::parse(words) else { return app::not_for_people() };
    app::log_to_file(invocation.log_path());
    mica_agent::serve_mount(invocation, |error| hints::for_chain(error.inner()));
    ExitCode::SUCCESS
}
