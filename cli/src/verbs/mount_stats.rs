//! `mica stats --mount`: what the kernel asked the server of a mount for.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_agent::MountStats;

use crate::output;

/// Prints the counters of the mount that `dir` is on.
pub(crate) fn show(dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let stats = MountStats::of(dir).with_context(|| format!("cannot ask {}", dir.display()))?;
    let Some(stats) = stats else { bail!("{} is not on a mount of mica's", dir.display()) };
    if json {
        let requests: serde_json::Map<_, _> =
            stats.requests.iter().map(|&(name, count)| (name.to_owned(), count.into())).collect();
        output::json(&serde_json::json!({ "nodes": stats.nodes, "requests": requests }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 2]> = stats
        .requests
        .iter()
        .map(|(name, count)| [(*name).to_owned(), count.to_string()])
        .collect();
    output::table(["OPERATION", "REQUESTS"], &rows)?;
    Ok(ExitCode::SUCCESS)
}
