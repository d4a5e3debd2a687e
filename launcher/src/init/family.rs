//! A program with all that it started.

use std::fs;

use rustix::process::Pid;

use crate::sys;

/// Killing takes several looks: what is found may fork before it is hit.
const ROUNDS: usize = 16;

/// Kills the leader of a session, all that is in its session, and what descends from these.
///
/// What has left the session and whose parents have ended is not found.
pub(super) fn kill(leader: Pid) {
    let leader = leader.as_raw_nonzero().get();
    for _ in 0..ROUNDS {
        let members = members(&processes(), leader);
        if members.is_empty() {
            return;
        }
        for pid in members.into_iter().filter_map(Pid::from_raw) {
            // It may have ended already.
            sys::kill(Some(pid), libc::SIGKILL).ok();
        }
    }
}

/// A process that has not ended.
#[derive(Clone, Copy)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let each = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        parse(pid, &fs::read_to_string(entry.path().join("stat")).ok()?)
    });
    each.collect()
}

/// By the text of proc(5)'s `stat`; `None` for a zombie.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(Process { pid, parent, session })
}

fn members(all: &[Process], leader: i32) -> Vec<i32> {
    let of_session = all.iter().filter(|p| p.pid == leader || p.session == leader);
    let mut found: Vec<i32> = of_session.map(|process| process.pid).collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = all.iter().filter(|p| p.parent == parent).map(|process| process.pid);
        let new: Vec<i32> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_and_its_descendants() {
        let stat =
            |parent, session, state: &str| format!("1 (a) b) {state} {parent} 9 {session} 0 -1");
        let all: Vec<Process> = [
            (10, stat(1, 10, "S")),
            (11, stat(10, 10, "S")),
            (12, stat(1, 10, "R")),  // its parent has ended
            (13, stat(11, 13, "S")), // a session of its own
            (14, stat(1, 1, "S")),
            (15, stat(10, 10, "Z")),
        ]
        .iter()
        .filter_map(|(pid, text)| parse(*pid, text))
        .collect();
        let mut found = members(&all, 10);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 13]);
    }
}
