//! `mica ps`: list jobs.

use std::ffi::OsStr;
use std::process::ExitCode;

use mica_agent::{JobConfig, Phase, Status};
use serde::Serialize;

use crate::context::Context;
use crate::output;

/// List jobs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ended jobs too
    #[arg(short, long)]
    all: bool,
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
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let mut rows = Vec::new();
    for job in context.jobs()?.jobs()? {
        // Removed between the listing and now: no job any more.
        let Ok(config) = job.config() else { continue };
        let status = job.status()?;
        let alive = status.as_ref().is_none_or(|status| !status.is_final());
        if args.all || alive {
            rows.push(Row { id: job.id().to_owned(), config, status });
        }
    }
    if args.json {
        output::json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        output::lines(rows.iter().map(|row| row.id.as_str()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let cells: Vec<[String; 6]> = rows.iter().map(cells).collect();
    output::table(["ID", "NAME", "PACKAGE", "COMMAND", "CREATED", "STATUS"], &cells)?;
    Ok(ExitCode::SUCCESS)
}

fn cells(row: &Row) -> [String; 6] {
    let mut command = row.config.spec.argv.join(OsStr::new(" ")).to_string_lossy().into_owned();
    if command.chars().count() > 30 {
        command = command.chars().take(29).chain(['…']).collect();
    }
    [
        row.id.clone(),
        row.config.name.clone().unwrap_or_else(|| "-".into()),
        output::short_source(&row.config.source),
        command,
        output::ago(row.config.created_ms),
        status_text(row.status.as_ref()),
    ]
}

fn status_text(status: Option<&Status>) -> String {
    let Some(status) = status else { return "starting".into() };
    let code = status.exit_code.unwrap_or_default();
    let ended = || output::ago(status.finished_ms.unwrap_or_default());
    match status.phase {
        Phase::Starting => "starting".into(),
        Phase::Running => {
            format!("running for {}", output::since(status.started_ms.unwrap_or_default()))
        }
        Phase::Exited if status.oom_killed => format!("exited ({code}, out of memory) {}", ended()),
        Phase::Exited => format!("exited ({code}) {}", ended()),
        Phase::Failed => format!("failed ({code}) {}", ended()),
    }
}
