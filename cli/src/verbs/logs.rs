//! `mica logs`: what a job printed.

use std::io::{self, Write};
use std::process::ExitCode;

use mica_agent::logs::{Entry, Stream};

use super::events::parse_moment;
use crate::context::Context;

/// Show what a job printed
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, beginning of an id, or name of the job
    job: String,
    /// Go on until the job ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Only lines since this time: RFC 3339, seconds since 1970, or an age such as 10m
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<jiff::Timestamp>,
    /// Only lines up to this time
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    until: Option<jiff::Timestamp>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let job = context.jobs()?.find(&args.job)?;
    let mut entries = mica_agent::logs::reader(job.path()).read_new()?;
    entries.retain(|entry| args.shows(entry));
    let skip = entries.len() - args.tail.unwrap_or(usize::MAX).min(entries.len());
    if !args.follow {
        entries[skip..].iter().try_for_each(|entry| args.print(entry))?;
        return Ok(ExitCode::SUCCESS);
    }
    // Read again from the start, so that no line falls between the two readings.
    let mut seen = 0;
    mica_agent::follow(&job, |entry| {
        if !args.shows(&entry) {
            return Ok(());
        }
        seen += 1;
        if seen > skip { args.print(&entry) } else { Ok(()) }
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn shows(&self, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
    }

    /// The job's standard error goes to ours, as with docker.
    fn print(&self, entry: &Entry) -> io::Result<()> {
        let mut line = Vec::new();
        if self.timestamps {
            write!(line, "{} ", entry.time)?;
        }
        line.extend(entry.line.bytes());
        match entry.stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&line)?;
                out.flush()
            }
            Stream::Stderr => io::stderr().lock().write_all(&line),
        }
    }
}
