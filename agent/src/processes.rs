//! The processes of a running job, and what they use, by `/proc`: for hosts that don't count by cgroup.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::state::JobDir;
use crate::status::{Phase, Status};

/// A process of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its id, as the host sees it.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Who it runs as, as the host sees it.
    pub uid: u32,
    /// `R`, `S`, `T`, … as in proc(5).
    pub state: char,
    /// Processor time.
    pub cpu: Duration,
    /// Threads.
    pub threads: u64,
    /// Memory in use, shared parts included, in bytes.
    pub resident: u64,
    /// The command line; of a process without one, its name in brackets.
    pub command: String,
}

/// The processes of a job that runs, its init left out.
pub fn processes(job: &JobDir) -> Vec<ProcessInfo> {
    match job.status() {
        Ok(Some(Status { pid: Some(init), phase: Phase::Running | Phase::Paused, .. }))
            if job.is_owned() =>
        {
            below(Path::new("/proc"), init)
        }
        _ => Vec::new(),
    }
}

/// All descendants of a process: those of a process namespace descend from its init.
fn below(proc: &Path, init: i32) -> Vec<ProcessInfo> {
    let mut all: Vec<ProcessInfo> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            parse(pid, &stat, &status, &words)
        })
        .collect();
    all.sort_by_key(|process| process.pid);
    let mut family = vec![init];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(all.iter().filter(|process| process.parent == parent).map(|p| p.pid));
        next += 1;
    }
    all.retain(|process| process.pid != init && family.contains(&process.pid));
    all
}

/// Clock ticks per second in `/proc`, on every architecture that Linux has users on (times(2), `USER_HZ`).
const TICKS: u64 = 100;

/// By the text of `stat`, `status` and `cmdline` (proc(5)).
fn parse(pid: i32, stat: &str, status: &str, cmdline: &[u8]) -> Option<ProcessInfo> {
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = rss.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let words: Vec<_> =
        cmdline.split(|&b| b == 0).filter(|w| !w.is_empty()).map(String::from_utf8_lossy).collect();
    Some(ProcessInfo {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        uid: uid.split_whitespace().next()?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        cpu: Duration::from_millis(ticks * 1000 / TICKS),
        threads: number(17)?,
        resident: kib.unwrap_or(0) << 10,
        command: if words.is_empty() { format!("[{name}]") } else { words.join(" ") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_by_its_texts() {
        let stat = "42 (a) b) S 7 42 42 0 -1 4194304 1 0 0 0 150 50 0 0 20 0 3 0 100 1 1";
        let status = "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nVmRSS:\t    2048 kB\n";
        let process = parse(42, stat, status, b"sleep\x0060\0").unwrap();
        assert_eq!((process.parent, process.state, process.threads), (7, 'S', 3));
        assert_eq!((process.cpu, process.uid), (Duration::from_secs(2), 1000));
        assert_eq!((process.resident, process.command.as_str()), (2 << 20, "sleep 60"));
        assert_eq!(parse(42, stat, status, b"").unwrap().command, "[a) b]");
        assert_eq!(parse(42, "", status, b""), None);
    }
}
