//! `mica prune`: remove what nobody uses.

use std::process::ExitCode;
use std::time::Duration;

use mica_fetcher::PruneOptions;

use crate::context::Context;
use crate::output::{self, note};

/// Remove images that no package needs
///
/// What a job or mount uses stays. Prints the number of bytes reclaimed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also forget packages that are not in use
    #[arg(short, long)]
    all: bool,
    /// With --all: only what was not used for so long, as in until=24h
    #[arg(long, value_name = "until=TIME", requires = "all", value_parser = parse_until)]
    filter: Option<Duration>,
    /// Do not ask (mica never does; for fingers used to docker)
    #[arg(short, long)]
    force: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

/// `until=90s`, `until=24h`, `until=7d`.
fn parse_until(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not of the form until=24h");
    let time = text.strip_prefix("until=").ok_or_else(wrong)?;
    let digits = time.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &time[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    context.jobs()?; // what killed jobs held is free then
    let pruned = context.cache()?.prune(&PruneOptions {
        all: args.all,
        unused_for: args.filter.unwrap_or_default(),
        keep_parts: Duration::from_secs(24 * 3600),
        dry_run: args.dry_run,
        ..PruneOptions::default()
    })?;
    let does = if args.dry_run { "would remove" } else { "removed" };
    for (name, version) in &pruned.versions {
        note(format_args!("{does} {name}@{version}"));
    }
    note(format_args!("{does} {} images, {}", pruned.blobs.len(), output::bytes(pruned.bytes)));
    output::lines([pruned.bytes.to_string().as_str()])?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_until("until=24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["24h", "until=", "until=h", "until=1y", "until=99999999999999999999d"] {
            assert!(parse_until(bad).is_err(), "{bad}");
        }
    }
}
