//! `mica events`: what happened to jobs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use mica_agent::events::Event;

use super::run::parse_duration;
use crate::context::Context;
use crate::output;

/// Show what happens to jobs
///
/// Goes on until it is interrupted, or until the time given by --until.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Begin with what happened since this time: RFC 3339, seconds since 1970, or an age such as 10m
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<jiff::Timestamp>,
    /// End at this time
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    until: Option<jiff::Timestamp>,
    /// Only these: job=ID, name=NAME, event=ACTION
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = super::run::parse_pair)]
    filters: Vec<(String, String)>,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// How often the file is looked at: events are for people and scripts that wait for seconds.
const PERIOD: Duration = Duration::from_millis(50);

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    for (key, _) in &args.filters {
        if !["job", "container", "name", "event", "image"].contains(&key.as_str()) {
            bail!("`{key}` is not a filter of events; use job, name, event or image");
        }
    }
    let mut reader = context.jobs()?.events();
    let since = args.since.unwrap_or_else(jiff::Timestamp::now);
    loop {
        // Asked first: what was written up to that time is read below.
        let over = args.until.is_some_and(|until| jiff::Timestamp::now() >= until);
        for event in reader.read_new()? {
            let late = args.until.is_some_and(|until| event.time > until);
            if event.time >= since && !late && args.shows(&event) {
                print(&event, args.json)?;
            }
        }
        if over {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(PERIOD);
    }
}

impl Args {
    /// Of the values of one key any, of several keys all.
    fn shows(&self, event: &Event) -> bool {
        let fits = |key: &str, value: &str| match key {
            "event" => event.action == value,
            "image" => event.source == value || event.source.split('@').next() == Some(value),
            "name" => event.name.as_deref() == Some(value),
            _ => event.id.starts_with(value) || event.name.as_deref() == Some(value),
        };
        self.filters.iter().all(|(key, _)| {
            self.filters.iter().any(|(other, value)| other == key && fits(key, value))
        })
    }
}

fn print(event: &Event, json: bool) -> anyhow::Result<()> {
    if json {
        return output::exact_lines([serde_json::to_string(event)?]);
    }
    let mut more = vec![format!("source={}", event.source)];
    more.extend(event.name.iter().map(|name| format!("name={name}")));
    more.extend(event.attributes.iter().map(|(name, value)| format!("{name}={value}")));
    let line = format!("{} {} {} ({})", event.time, event.action, event.id, more.join(", "));
    output::lines([line.as_str()])
}

/// A time as `logs` and `events` take it: RFC 3339, seconds since 1970, or an age such as `10m`.
pub(crate) fn parse_moment(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        let nanoseconds = (seconds * 1e9) as i128;
        return jiff::Timestamp::from_nanosecond(nanoseconds).map_err(|error| error.to_string());
    }
    if let Ok(age) = parse_duration(text) {
        let age = jiff::SignedDuration::try_from(age).map_err(|error| error.to_string())?;
        return jiff::Timestamp::now().checked_sub(age).map_err(|error| error.to_string());
    }
    text.parse().map_err(|_| {
        format!("`{text}` is not a time; use one like 2026-01-31T12:00:00Z, or an age such as 10m")
    })
}
