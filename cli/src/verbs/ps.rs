//! `mica ps`: list jobs.

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::bail;
use mica_agent::{HealthState, JobConfig, Phase, Status, restart_pending};
use mica_graph::PackageRef;
use serde::Serialize;

use crate::context::Context;
use crate::output;

/// List jobs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ended jobs too
    #[arg(short, long)]
    all: bool,
    /// Only these: name=, id=, status=, label=NAME[=VALUE], ancestor=PACKAGE, exited=CODE, health=
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = super::run::parse_pair)]
    filters: Vec<(String, String)>,
    /// The last N jobs, ended ones too
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Don't cut ids, packages and commands short
    #[arg(long)]
    no_trunc: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    id: String,
    config: JobConfig,
    status: Option<Status>,
    /// Of a job that fetches its images when they are read: bytes that are here, and in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<[u64; 2]>,
    /// `mica start --all-restartable` starts it.
    restart_pending: bool,
}

/// A job of which this version can't read what it is.
#[derive(Serialize)]
struct Unreadable {
    id: String,
    name: Option<String>,
    unreadable: String,
}

/// A line of the list.
#[derive(Serialize)]
#[serde(untagged)]
enum Line {
    Job(Box<Row>),
    Unreadable(Unreadable),
}

impl Line {
    fn id(&self) -> &str {
        match self {
            Self::Job(row) => &row.id,
            Self::Unreadable(row) => &row.id,
        }
    }
}

const FILTERS: [&str; 7] = ["name", "id", "status", "label", "ancestor", "exited", "health"];

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    if let Some((key, _)) = args.filters.iter().find(|(key, _)| !FILTERS.contains(&&**key)) {
        bail!("`{key}` is not a filter of jobs; use {}", FILTERS.join(", "));
    }
    // Who asks for ended jobs by a filter means them.
    let ended = |(key, value): &(String, String)| {
        key == "exited" || (key == "status" && ["exited", "failed"].contains(&&**value))
    };
    let all = args.all || args.last.is_some() || args.filters.iter().any(ended);
    let mut rows = Vec::new();
    for job in context.jobs()?.jobs()? {
        let row = match job.config().and_then(|config| Ok((config, job.status()?))) {
            Ok((config, status)) => {
                let alive = status.as_ref().is_none_or(|status| !status.is_final());
                let local = if alive { local(context, &config)? } else { None };
                let restart_pending =
                    status.as_ref().is_some_and(|status| restart_pending(&config, status));
                let id = job.id().to_owned();
                let row = Row { id, config, status, local, restart_pending };
                if !(all || alive) || !args.shows(|key, value| row.fits(key, value)) {
                    continue;
                }
                Line::Job(Box::new(row))
            }
            // Removed between the listing and now: no job any more.
            Err(_) if !job.path().exists() => continue,
            Err(error) => {
                let unreadable = format!("{:#}", anyhow::Error::from(error));
                let row = Unreadable { id: job.id().to_owned(), name: job.name(), unreadable };
                if !args.shows(|key, value| row.fits(key, value)) {
                    continue;
                }
                Line::Unreadable(row)
            }
        };
        rows.push(row);
    }
    rows.drain(..rows.len() - args.last.unwrap_or(rows.len()).min(rows.len()));
    if args.json {
        output::json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        output::lines(rows.iter().map(Line::id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let cells: Vec<[String; 6]> = rows.iter().map(|line| line.cells(args.no_trunc)).collect();
    output::table(["ID", "NAME", "PACKAGE", "COMMAND", "CREATED", "STATUS"], &cells)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Of the values of one key any, of several keys all, as with docker.
    fn shows(&self, fits: impl Fn(&str, &str) -> bool) -> bool {
        self.filters.iter().all(|(key, _)| {
            self.filters.iter().any(|(other, value)| other == key && fits(key, value))
        })
    }
}

impl Unreadable {
    fn fits(&self, key: &str, value: &str) -> bool {
        match key {
            "name" => self.name.as_ref().is_some_and(|name| name.contains(value)),
            "id" => self.id.starts_with(value),
            "status" => value == "unreadable",
            _ => false,
        }
    }
}

impl Row {
    fn fits(&self, key: &str, value: &str) -> bool {
        let status = self.status.as_ref();
        match key {
            "name" => self.config.name.as_ref().is_some_and(|name| name.contains(value)),
            "id" => self.id.starts_with(value),
            "status" => word(status) == value,
            "label" => {
                let (name, wanted) = value
                    .split_once('=')
                    .map_or((value, None), |(name, wanted)| (name, Some(wanted)));
                let label = self.config.labels.get(name);
                label.is_some_and(|label| wanted.is_none_or(|wanted| label == wanted))
            }
            "ancestor" => {
                self.config.stack.source == value
                    || self.config.stack.source.split('@').next() == Some(value)
            }
            "exited" => {
                status.is_some_and(|status| status.is_final())
                    && status.and_then(|status| status.exit_code).map(|code| code.to_string())
                        == Some(value.to_owned())
            }
            _ => health(status) == value,
        }
    }
}

/// How far a job is, in one word.
fn word(status: Option<&Status>) -> &'static str {
    match status.map(|status| status.phase) {
        None | Some(Phase::Starting) => "starting",
        Some(Phase::Running) => "running",
        Some(Phase::Paused) => "paused",
        Some(Phase::Restarting) => "restarting",
        Some(Phase::Exited) => "exited",
        Some(Phase::Failed) => "failed",
    }
}

fn health(status: Option<&Status>) -> &'static str {
    match status.and_then(|status| status.health.as_ref()).map(|health| health.state) {
        None => "none",
        Some(HealthState::Starting) => "starting",
        Some(HealthState::Healthy) => "healthy",
        Some(HealthState::Unhealthy) => "unhealthy",
    }
}

impl Line {
    fn cells(&self, whole: bool) -> [String; 6] {
        match self {
            Self::Job(row) => cells(row, whole),
            Self::Unreadable(Unreadable { id, name, unreadable }) => {
                let name = name.clone().unwrap_or_else(|| "-".into());
                let none = || "-".to_owned();
                [id.clone(), name, none(), none(), none(), format!("unreadable: {unreadable}")]
            }
        }
    }
}

fn cells(row: &Row, whole: bool) -> [String; 6] {
    let mut command = row.config.spec.argv.join(OsStr::new(" ")).to_string_lossy().into_owned();
    if command.chars().count() > 30 && !whole {
        command = command.chars().take(29).chain(['…']).collect();
    }
    [
        row.id.clone(),
        row.config.name.clone().unwrap_or_else(|| "-".into()),
        if whole {
            row.config.stack.source.clone()
        } else {
            output::short_source(&row.config.stack.source)
        },
        command,
        output::ago(row.config.created_ms),
        match row.local {
            Some([here, all]) if here < all => {
                let percent = here * 100 / all;
                format!("{}, {percent}% local", status_text(row.status.as_ref()))
            }
            _ => {
                let text = status_text(row.status.as_ref());
                match row.restart_pending {
                    true => format!("{text}, restart pending"),
                    false => text,
                }
            }
        },
    ]
}

/// How much of a lazy job's images is here.
fn local(context: &Context, config: &JobConfig) -> anyhow::Result<Option<[u64; 2]>> {
    let Some(lazy) = &config.stack.lazy else { return Ok(None) };
    let (name, selector) = (lazy.name.clone(), Some(lazy.version.clone()));
    let cache = context.cache()?;
    let Ok(manifest) = cache.lookup(&PackageRef { name, selector }) else { return Ok(None) };
    let mut seen = std::collections::HashSet::new();
    let layers = manifest.layers.iter().filter(|layer| seen.insert(layer.digest));
    Ok(Some(
        layers.fold([0, 0], |[here, all], layer| [here + cache.local(layer), all + layer.size]),
    ))
}

fn status_text(status: Option<&Status>) -> String {
    let Some(status) = status else { return "starting".into() };
    let code = status.exit_code.unwrap_or_default();
    let ended = || output::ago(status.finished_ms.unwrap_or_default());
    match status.phase {
        Phase::Starting => "starting".into(),
        Phase::Running | Phase::Paused => {
            let time = output::since(status.started_ms.unwrap_or_default());
            let mut text = format!("running for {time}");
            if status.health.is_some() {
                text.push_str(&format!(" ({})", health(Some(status))));
            }
            if status.phase == Phase::Paused {
                text.push_str(" (paused)");
            }
            text
        }
        Phase::Restarting => format!("restarting ({code}) {}", ended()),
        Phase::Exited if status.oom_killed => format!("exited ({code}, out of memory) {}", ended()),
        Phase::Exited => format!("exited ({code}) {}", ended()),
        Phase::Failed => format!("failed ({code}) {}", ended()),
    }
}
