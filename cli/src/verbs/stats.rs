//! `mica stats`: what running jobs use.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mica_agent::{JobDir, Phase};
use mica_launcher::{Network, Usage};
use serde::Serialize;

use super::mount_stats;
use crate::context::Context;
use crate::output;

/// Show what running jobs use, again and again
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, or names [default: all]
    jobs: Vec<String>,
    /// Only once
    #[arg(long)]
    no_stream: bool,
    /// Print JSON, once
    #[arg(long)]
    json: bool,
    /// Instead, how often the kernel asked the server of the mount with this folder for what
    #[arg(long, value_name = "DIR", conflicts_with_all = ["jobs", "no_stream"])]
    mount: Option<PathBuf>,
}

/// One job's line.
#[derive(Serialize)]
struct Row {
    id: String,
    name: Option<String>,
    /// Of one processor, in percent, between two looks.
    cpu_percent: Option<f64>,
    memory_limit: Option<u64>,
    net_received: Option<u64>,
    net_sent: Option<u64>,
    usage: Usage,
}

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    if let Some(dir) = &args.mount {
        return mount_stats::show(dir, args.json);
    }
    let mut before = HashMap::new();
    look(args, context, &mut before)?;
    loop {
        std::thread::sleep(PERIOD);
        let rows = look(args, context, &mut before)?;
        if args.json {
            output::json(&rows)?;
            return Ok(ExitCode::SUCCESS);
        }
        if !args.no_stream && io::stdout().is_terminal() {
            // From the top of the screen, as `top` does it.
            output::exact_lines(["\x1b[H\x1b[2J"])?;
        }
        let cells: Vec<[String; 7]> = rows.iter().map(cells).collect();
        let heading = ["ID", "NAME", "CPU %", "MEMORY / LIMIT", "NET I/O", "BLOCK I/O", "PIDS"];
        output::table(heading, &cells)?;
        if args.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

type Times = HashMap<String, (Instant, Duration)>;

fn look(args: &Args, context: &Context, before: &mut Times) -> anyhow::Result<Vec<Row>> {
    let state = context.jobs()?;
    let jobs = match args.jobs.is_empty() {
        true => state.jobs()?,
        false => args.jobs.iter().map(|word| state.find(word)).collect::<Result<_, _>>()?,
    };
    Ok(jobs.iter().filter_map(|job| row(job, before)).collect())
}

/// `None` for a job that doesn't run.
fn row(job: &JobDir, before: &mut Times) -> Option<Row> {
    let config = job.config().ok()?;
    let status = job.status().ok()??;
    if !matches!(status.phase, Phase::Running | Phase::Paused) {
        return None;
    }
    let mut usage = status.cgroup.as_ref().map(|group| group.usage()).unwrap_or_default();
    let processes = mica_agent::processes(job);
    let sum = |each: fn(&mica_agent::ProcessInfo) -> u64| processes.iter().map(each).sum();
    // What this host doesn't count by cgroup: the living alone, shared pages several times.
    usage.cpu = usage.cpu.or(Some(processes.iter().map(|process| process.cpu).sum()));
    usage.memory = usage.memory.or(Some(sum(|process| process.resident)));
    usage.pids = usage.pids.or(Some(sum(|process| process.threads)));
    let now = Instant::now();
    let cpu_percent = usage.cpu.and_then(|cpu| {
        let (then, used) = before.insert(job.id().to_owned(), (now, cpu))?;
        let ran = cpu.saturating_sub(used).as_secs_f64();
        Some(ran / now.duration_since(then).as_secs_f64() * 100.0)
    });
    // The counters of the host's network say nothing of one job.
    let own = status.pid.filter(|_| config.spec.namespaces.network != Network::Host);
    let (net_received, net_sent) = own.and_then(network).unzip();
    Some(Row {
        id: job.id().to_owned(),
        name: config.name,
        cpu_percent,
        memory_limit: config.spec.limits.memory,
        net_received,
        net_sent,
        usage,
    })
}

/// Bytes received and sent by the interfaces of a process's network, the loopback left out (proc_pid_net(5)).
fn network(pid: i32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> =
            counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        (name.trim() != "lo").then(|| Some((*counters.first()?, *counters.get(8)?)))?
    };
    Some(text.lines().filter_map(interface).fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1)))
}

fn cells(row: &Row) -> [String; 7] {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), output::bytes);
    let pair = |a, b| format!("{} / {}", size(a), size(b));
    [
        row.id.clone(),
        row.name.clone().unwrap_or_else(|| "-".into()),
        row.cpu_percent.map_or_else(|| "-".into(), |percent| format!("{percent:.2}%")),
        pair(row.usage.memory, row.memory_limit),
        pair(row.net_received, row.net_sent),
        pair(row.usage.io_read, row.usage.io_written),
        row.usage.pids.map_or_else(|| "-".into(), |pids| pids.to_string()),
    ]
}
