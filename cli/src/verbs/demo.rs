//! `mica demo`: the whole road on the example monorepo, twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use include_dir::{Dir, include_dir};
use mica_agent::Status;
use mica_durable::Scratch;
use mica_fetcher::{Cache, Pulled, ServeOptions, Server};
use mica_graph::Label;

use super::pack::{PackedPackage, pack_workspace};
use super::{pull, run};
use crate::args::{Cli, Verb};
use crate::context::Context;
use crate::git;
use crate::output::{self, note};
use crate::places::Places;

/// Build, publish, fetch, mount and run the example monorepo, then change one module
///
/// Everything happens in a scratch folder that is removed afterwards.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

static MONOREPO: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../testdata/monorepo");
const TARGET: &str = "//app:A";

/// The one line that is changed: file, what it says, what it says then.
const CHANGE: [&str; 3] = ["app/A.c", "first edition", "second edition"];

pub(crate) fn run(_: &Args) -> anyhow::Result<ExitCode> {
    let places = Places::find(Path::new("/"), None)?;
    Context::at(places.clone()).jobs()?; // ends what a killed demo left behind
    let scratch = Scratch::new(&places.state.join("tmp"))?;
    let demo = Demo::new(&scratch, places)?;
    note("1. first commit");
    let first = demo.round()?;
    note(format_args!("\n2. one line of {} changes", CHANGE[0]));
    demo.change()?;
    let second = demo.round()?;
    note("");
    print_table(&first, &second)?;
    let [packed, fetched] = [second.package.packed(), second.pulled.fetched_layers()];
    if [packed, fetched] != [1, 1] {
        bail!("one changed line moved more than its layer: {packed} packed, {fetched} fetched");
    }
    Ok(ExitCode::SUCCESS)
}

/// The scratch workspace, its registry and its server.
struct Demo {
    workspace: PathBuf,
    registry: PathBuf,
    server: Server,
    context: Context,
    has_git: bool,
}

/// What one round did.
struct Round {
    package: PackedPackage,
    pulled: Pulled,
    fetch: Duration,
    status: Status,
}

impl Demo {
    fn new(scratch: &Scratch, places: Places) -> anyhow::Result<Self> {
        let workspace = scratch.path().join("monorepo");
        fs::create_dir(&workspace)
            .with_context(|| format!("cannot create {}", workspace.display()))?;
        MONOREPO.extract(&workspace).context("cannot write the example monorepo")?;
        let has_git = git::is_installed();
        if has_git {
            git::run(&workspace, &["init", "--quiet"])?;
            commit(&workspace, "the example monorepo")?;
        } else {
            note("there is no git here: versions are named after the content instead of a commit");
        }
        let registry = scratch.path().join("registry");
        let listener = mica_fetcher::listen("127.0.0.1:0")?;
        let server = Server::spawn(listener, &registry, ServeOptions::default())?;
        let places = Places {
            registry: server.url(),
            cache: scratch.path().join("cache"),
            mirrors: Vec::new(),
            quota: None,
            shared_cache: None,
            ..places
        };
        Ok(Self { workspace, registry, server, context: Context::at(places), has_git })
    }

    fn change(&self) -> anyhow::Result<()> {
        let [file, before, after] = CHANGE;
        let path = self.workspace.join(file);
        let text = fs::read_to_string(&path)?;
        if !text.contains(before) {
            bail!("{file} of the example monorepo no longer says {before}");
        }
        fs::write(&path, text.replacen(before, after, 1))?;
        if self.has_git {
            commit(&self.workspace, "A says something else")?;
        }
        Ok(())
    }

    fn round(&self) -> anyhow::Result<Round> {
        let target: Label = TARGET.parse()?;
        note(format_args!("$ mica pack --target {TARGET} --registry ./registry"));
        let registry = self.registry.to_string_lossy();
        let package = pack_workspace(&self.workspace, &target, &registry, &self.context.places)?;
        package.layers.iter().for_each(|layer| note(format_args!("    {}", layer.line())));
        let reference = format!("{}@{}", package.manifest.name, package.manifest.version);
        let short = output::short_source(&reference);
        note(format_args!("$ mica pull {short} --registry {}", self.server.url()));
        let cache = Cache::open(&self.context.places.cache)?;
        let started = Instant::now();
        let pulled = pull::pull(&self.context, &reference.parse()?, &cache, false, false)?;
        let fetch = started.elapsed();
        let (layers, bytes) = (pulled.fetched_layers(), output::bytes(pulled.fetched_bytes()));
        note(format_args!("    fetched {layers} layers, {bytes}, each byte verified"));
        note(format_args!("$ mica run --rm --memory 256m --pids-limit 64 {short}"));
        let status = self.run_job(&reference)?;
        Ok(Round { package, pulled, fetch, status })
    }

    fn run_job(&self, reference: &str) -> anyhow::Result<Status> {
        let words = ["mica", "run", "--rm", "--memory", "256m", "--pids-limit", "64"];
        let words = words.into_iter().chain(["--best-effort-limits", "--pull", "never", reference]);
        let Verb::Run(args) = Cli::try_parse_from(words)?.verb else {
            bail!("`run` is not a verb")
        };
        let status = run::run_to_end(&args, &self.context)?;
        match status.exit_code {
            Some(0) => Ok(status),
            code => bail!("the job ended with exit code {}", code.unwrap_or_default()),
        }
    }
}

fn commit(workspace: &Path, message: &str) -> anyhow::Result<()> {
    git::run(workspace, &["add", "--all"])?;
    let identity = ["-c", "user.name=mica", "-c", "user.email=mica@localhost"];
    let words =
        ["-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "--message", message];
    git::run(workspace, &[&identity[..], &words[..]].concat())?;
    Ok(())
}

fn print_table(first: &Round, second: &Round) -> anyhow::Result<()> {
    let row = |name: &str, value: &dyn Fn(&Round) -> String| {
        [name.to_owned(), value(first), value(second)]
    };
    let us = |us: Option<u64>| {
        us.map_or("-".to_owned(), |us| output::duration(Duration::from_micros(us)))
    };
    let rows = [
        row("version", &|round| round.package.manifest.version.as_str().chars().take(12).collect()),
        row("layers packed", &|round| round.package.packed().to_string()),
        row("layers reused", &|round| {
            (round.package.layers.len() - round.package.packed()).to_string()
        }),
        row("bytes packed", &|round| output::bytes(round.package.packed_bytes())),
        row("layers fetched", &|round| round.pulled.fetched_layers().to_string()),
        row("bytes fetched", &|round| output::bytes(round.pulled.fetched_bytes())),
        row("time to build", &|round| output::duration(round.package.build)),
        row("time to pack", &|round| output::duration(round.package.elapsed)),
        row("time to fetch", &|round| output::duration(round.fetch)),
        row("time to mount", &|round| us(round.status.timings.mounted_us)),
        row("time to first output", &|round| us(round.status.timings.first_output_us)),
    ];
    output::table(["", "first commit", "one line changed"], &rows)
}
