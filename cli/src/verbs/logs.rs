//! `mica logs`: what a job printed.

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use mica_agent::LogDriver;
use mica_agent::logs::{Entry, Stream};

use super::events::parse_moment;
use crate::context::Context;
use crate::error::Advise;
use crate::output::{self, note};

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
    match job.config()?.log.driver {
        LogDriver::JsonFile => {}
        LogDriver::None => bail!("job {} keeps no log (--log-driver none)", job.id()),
        LogDriver::Journald => {
            let hint = format!("`journalctl CONTAINER_ID={}` shows it", job.id());
            return Err(anyhow::anyhow!("the log of job {} is in the journal", job.id()))
                .hint(hint);
        }
    }
    let reader = || mica_agent::logs::reader(job.path());
    let mut printer = Printer::new(args);
    let mut newest = usize::MAX;
    if let Some(tail) = args.tail {
        let mut all = 0_usize;
        // As far back as need be.
        for files in 1..=reader().count().max(1) {
            (all, newest) = (0, files);
            let mut counter = Printer::new(args);
            reader().newest(files).each_new(|entry| {
                all += usize::from(counter.begins(&entry));
                Ok::<_, anyhow::Error>(())
            })?;
            if all > tail {
                break;
            }
        }
        printer.skip = all.saturating_sub(tail);
        // What is printed meanwhile is for those who follow.
        printer.left = if args.follow { usize::MAX } else { all };
    }
    let dropped = mica_agent::logs::dropped(job.path());
    if dropped > 0 && printer.skip == 0 && args.since.is_none() {
        let size = output::bytes(dropped);
        note(format_args!(
            "mica: {size} of older output were dropped (--log-opt max-size, max-file)"
        ));
    }
    match args.follow {
        true => mica_agent::follow(&job, newest, |entry| printer.print(&entry))?,
        false => reader()
            .newest(newest)
            .each_new(|entry| Ok::<_, anyhow::Error>(printer.print(&entry)?))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts the parts of long lines together again.
struct Printer<'a> {
    args: &'a Args,
    /// So many lines are not shown.
    skip: usize,
    /// So many lines are looked at.
    left: usize,
    streams: HashMap<&'static str, Begun>,
}

/// A line that goes on.
#[derive(Clone, Copy, Default)]
struct Begun {
    partial: bool,
    shown: bool,
}

impl<'a> Printer<'a> {
    fn new(args: &'a Args) -> Self {
        Self { args, skip: 0, left: usize::MAX, streams: HashMap::new() }
    }

    /// Whether an entry is the beginning of a line that would be shown.
    fn begins(&mut self, entry: &Entry) -> bool {
        let begun = self.streams.entry(name(entry.stream)).or_default();
        let first = !begun.partial;
        if first {
            begun.shown = self.args.shows(entry);
        }
        begun.partial = entry.partial;
        first && begun.shown
    }

    /// The job's standard error goes to ours, as with docker.
    fn print(&mut self, entry: &Entry) -> io::Result<()> {
        let first = self.begins(entry);
        let begun = self.streams.entry(name(entry.stream)).or_default();
        if first && (self.skip > 0 || self.left == 0) {
            begun.shown = false;
        }
        if first {
            self.skip = self.skip.saturating_sub(1);
            self.left = self.left.saturating_sub(1);
        }
        if !begun.shown {
            return Ok(());
        }
        let mut line = Vec::new();
        if self.args.timestamps && first {
            write!(line, "{} ", entry.time)?;
        }
        if entry.stream == Stream::Notice {
            line.extend(b"mica: ");
        }
        line.extend(entry.line.bytes());
        match entry.stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&line)?;
                out.flush()
            }
            Stream::Stderr | Stream::Notice => io::stderr().lock().write_all(&line),
        }
    }
}

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
        Stream::Notice => "notice",
    }
}

impl Args {
    fn shows(&self, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
    }
}
