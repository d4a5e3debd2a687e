//! Subordinate ids: the further users and groups that an ordinary user may map in a user namespace, as `/etc/subuid` and
//! `/etc/subgid` grant them and the set-user-ID programs `newuidmap` and `newgidmap` check.
//!
//! Those programs have to run outside of the namespace while a process inside waits, so a helper is forked first:
//!
//! ```text
//! fork ----------------------> helper: waits for a byte
//! unshare(user namespace)
//! a byte --------------------> newuidmap, newgidmap on the parent
//! waits for it, goes on <----- exit code: which of them worked
//! ```

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use mica_launcher::{IdMapping, IdRange};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::sys;

/// A first id and how many follow.
type Range = (u32, u32);

/// What a user may map beside the own id; never without any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubIds {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

/// An account without subordinate ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("/etc/subuid and /etc/subgid grant no ids to {0}")]
pub struct NoSubIds(String);

/// Which maps the helper has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) uids: bool,
    pub(crate) gids: bool,
}

impl SubIds {
    /// Those of the calling user; `None` if it has none, or not of both kinds.
    pub(crate) fn of_caller() -> Option<Self> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let uid = rustix::process::geteuid().as_raw();
        Self::parse(&read("/etc/subuid"), &read("/etc/subgid"), &read("/etc/passwd"), uid)
    }

    fn parse(subuid: &str, subgid: &str, passwd: &str, uid: u32) -> Option<Self> {
        let name = user_name(passwd, uid);
        let (uids, gids) = (ranges(subuid, name, uid), ranges(subgid, name, uid));
        (!uids.is_empty() && !gids.is_empty()).then_some(Self { uids, gids })
    }

    /// Those that an account may have, for jobs whose root is the first of them.
    ///
    /// # Errors
    /// None are granted to it.
    pub fn of(account: &str) -> Result<IdMapping, NoSubIds> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let range = |text: &str| {
            let mut inside = 0;
            let range = |(outside, count)| {
                let range = IdRange { inside, outside, count };
                inside += count;
                range
            };
            // No account has this number.
            ranges(text, Some(account), u32::MAX).into_iter().map(range).collect::<Vec<_>>()
        };
        let (uids, gids) = (range(&read("/etc/subuid")), range(&read("/etc/subgid")));
        if uids.is_empty() || gids.is_empty() {
            return Err(NoSubIds(account.to_owned()));
        }
        Ok(IdMapping::Ranges { uids, gids })
    }

    /// Forks the helper for this process, which must have one thread.
    pub(crate) fn helper(&self) -> Result<Helper, Errno> {
        let (ours, mut theirs) = UnixStream::pair().map_err(|_| Errno::MFILE)?;
        let pid = rustix::process::getpid().as_raw_nonzero().to_string();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let helper = sys::fork(|| {
            // Nothing of the caller's is kept open, and the end of the other side, if that is killed, must be seen.
            let theirs = &mut theirs;
            if sys::let_go_of_all_but(theirs.as_raw_fd()).is_err()
                || !theirs.read(&mut [0]).is_ok_and(|count| count == 1)
            {
                return 3;
            }
            let map = |program, own, ranges| u8::from(!run(program, &pid, own, ranges));
            map("newuidmap", uid, &self.uids) | map("newgidmap", gid, &self.gids) << 1
        })?;
        Ok(Helper { pid: helper, go: ours, ended: false })
    }
}

/// The forked process. One that is dropped is not needed, and ends.
pub(crate) struct Helper {
    pid: Pid,
    go: UnixStream,
    ended: bool,
}

/// How long the two programs may take, which look at the host's accounts.
const PATIENCE: Duration = Duration::from_secs(20);

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended by itself.
            rustix::process::kill_process(self.pid, rustix::process::Signal::KILL).ok();
            retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty())).ok();
        }
    }
}

impl Helper {
    /// Lets it write the maps of this process, which is in its namespace now.
    pub(crate) fn map(mut self) -> Mapped {
        // One that is gone has mapped nothing, as its exit code says.
        let _ = self.go.write_all(b"g");
        // It closes its end when it ends.
        let ends = self.go.set_read_timeout(Some(PATIENCE)).and_then(|()| self.go.read(&mut [0]));
        let mut code = 3;
        if ends.is_ok() {
            let status = retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
            self.ended = true;
            code = status.ok().flatten().and_then(|(_, status)| status.exit_status()).unwrap_or(3);
        }
        Mapped { uids: code & 1 == 0, gids: code & 2 == 0 }
    }
}

fn run(program: &str, pid: &str, own: u32, ranges: &[Range]) -> bool {
    let mut command = Command::new(program);
    command.arg(pid).args(["0".to_owned(), own.to_string(), "1".to_owned()]);
    let mut inside = 1;
    for (first, count) in ranges {
        command.args([inside, *first, *count].map(|number| number.to_string()));
        inside += count;
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The ranges that lines of `NAME:FIRST:COUNT` grant to a user, by its name or number. Lines of another form, and ranges
/// that leave the space of ids, are left out.
fn ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<Range> {
    let number = uid.to_string();
    let mut total = 1_u32;
    let mut found = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [who, first, count] = fields[..] else { continue };
        if Some(who) != name && who != number {
            continue;
        }
        let (Ok(first), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else { continue };
        let sum = total.checked_add(count);
        if count == 0 || first.checked_add(count).is_none() {
            continue;
        }
        let Some(sum) = sum else { break };
        total = sum;
        found.push((first, count));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_by_name_and_by_number() {
        let passwd = "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        let subuid = "# a comment\nbob:1:2\nann:100000:65536\n1000:300000:10\nann:x:1\nann:1:0\n\
            ann:4294967295:2\nann:5\n";
        let ids = SubIds::parse(subuid, "ann:200000:65536", passwd, 1000).unwrap();
        assert_eq!(ids.uids, [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ids.gids, [(200_000, 65_536)]);
        assert_eq!(SubIds::parse(subuid, "", passwd, 1000), None);
        assert_eq!(SubIds::parse(subuid, subuid, passwd, 1001), None);
        assert_eq!(ranges("9:1:4294967290\n9:1:100", None, 9), [(1, 4_294_967_290)]);
    }
}
