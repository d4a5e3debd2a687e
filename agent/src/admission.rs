//! Who may ask a supervisor for something: the owner's processes, from outside of all jobs.
//!
//! A job of root without a user namespace is uid 0 as well, so the user alone says nothing; what tells a job's processes
//! from others are their namespaces. A command proves where it is: with each request it passes descriptors of its own pid
//! and user namespaces (`/proc/self/ns/…`), which must be those in which the job was started. A process in a job has others,
//! and no way to a descriptor of these: the kernel asks for ptrace rights over a process that is in them. Nothing is looked
//! up by process id, so nothing depends on ids that come round again.
//!
//! A mount namespace of the command's own is fine: private ones are given to services and logins. Only a job of root's with
//! the host's pid namespace (`--pid host`) is in the same two; that one is known by its control group, or by a smaller
//! capability bounding set in another mount namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::status::Failure;

/// The file system of namespaces (`NSFS_MAGIC`).
const NSFS: rustix::fs::FsWord = 0x6e73_6673;

/// A namespace, by device and inode.
type Namespace = (u64, u64);

/// Where a job was started.
#[derive(Debug)]
pub(crate) struct Admission {
    pid: Namespace,
    user: Namespace,
    mount: Namespace,
    /// The bounding set of capabilities.
    bounding: u64,
    /// Control groups of jobs that this process is in: mica in a job of mica's.
    groups: Vec<String>,
}

/// What a command passes with each request, after the request's own descriptors.
pub(crate) fn proof() -> io::Result<[OwnedFd; 2]> {
    let open = |name: &str| File::open(format!("/proc/self/ns/{name}")).map(OwnedFd::from);
    Ok([open("pid")?, open("user")?])
}

impl Admission {
    /// Of those who are where this process is now.
    pub(crate) fn here() -> io::Result<Self> {
        let [pid, user] = proof()?;
        let none = || io::Error::from(io::ErrorKind::Unsupported);
        Ok(Self {
            pid: namespace(&pid).ok_or_else(none)?,
            user: namespace(&user).ok_or_else(none)?,
            mount: namespace(File::open("/proc/self/ns/mnt")?).ok_or_else(none)?,
            bounding: bounding(&fs::read_to_string("/proc/self/status")?).unwrap_or_default(),
            groups: job_groups(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default()),
        })
    }

    /// What speaks against whoever has connected, as far as that can be seen without a proof.
    pub(crate) fn check_peer(&self, socket: impl AsFd) -> Result<(), Failure> {
        let Ok(peer) = sockopt::socket_peercred(&socket) else { return Err(refusal("unknown")) };
        if peer.uid != rustix::process::geteuid() {
            return Err(refusal("another user"));
        }
        if self.is_in_a_job(peer.pid) { Err(refusal(JOB)) } else { Ok(()) }
    }

    /// Whether a process is in a job that has our pid and user namespaces.
    fn is_in_a_job(&self, pid: Pid) -> bool {
        // While it lives, its number is its own.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
        let folder = format!("/proc/{pid}");
        let read = |name: &str| fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default();
        let strange = |group: &String| !self.groups.contains(group);
        let grouped = job_groups(&read("cgroup")).iter().any(strange);
        let mount = File::open(format!("{folder}/ns/mnt")).ok().and_then(namespace);
        let weaker =
            bounding(&read("status")).is_some_and(|set| set & self.bounding != self.bounding);
        let confined = weaker && mount.is_some_and(|mount| mount != self.mount);
        grouped || confined || has_ended(&process)
    }

    /// Takes the proof off the descriptors of a request.
    pub(crate) fn check_proof(&self, descriptors: &mut Vec<OwnedFd>) -> Result<(), Failure> {
        let mut proof = descriptors.split_off(descriptors.len().saturating_sub(2)).into_iter();
        let mut next = || proof.next().and_then(namespace);
        if (next(), next()) == (Some(self.pid), Some(self.user)) {
            return Ok(());
        }
        Err(refusal(JOB))
    }
}

const JOB: &str = "a process in other namespaces than those where the job was started";

fn refusal(who: &str) -> Failure {
    Failure {
        chain: vec![format!("it takes no requests from {who}")],
        hint: Some("no job can control another one; run mica where the job was started".into()),
        exit_code: 125,
    }
}

/// The identity of the namespace that a descriptor is of, if it is one of a namespace.
fn namespace(descriptor: impl AsFd) -> Option<Namespace> {
    if rustix::fs::fstatfs(&descriptor).ok()?.f_type != NSFS {
        return None;
    }
    let stat = rustix::fs::fstat(&descriptor).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// A pidfd becomes readable when its process ends.
fn has_ended(process: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)) != Ok(0)
}

/// The bounding set in the text of `/proc/PID/status`.
fn bounding(status: &str) -> Option<u64> {
    let word = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(word.trim(), 16).ok()
}

/// The groups of jobs in the text of `/proc/PID/cgroup`.
fn job_groups(text: &str) -> Vec<String> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let is_job = |name: &&str| {
        let id = name.strip_prefix("mica-");
        id.is_some_and(|id| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    paths.flat_map(|path| path.split('/')).filter(is_job).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_the_namespaces_themselves() {
        let admission = Admission::here().unwrap();
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let mut request = vec![null()];
        request.extend(proof().unwrap());
        admission.check_proof(&mut request).unwrap();
        assert_eq!(request.len(), 1, "the request's own stay");
        // None, none of namespaces, and others than ours.
        let [pid, user] = proof().unwrap();
        let other =
            |name: &str| OwnedFd::from(File::open(format!("/proc/self/ns/{name}")).unwrap());
        for mut wrong in [
            vec![],
            vec![null()],
            vec![null(), null()],
            vec![pid.try_clone().unwrap(), other("mnt")],
            vec![user, pid],
        ] {
            admission.check_proof(&mut wrong).unwrap_err();
        }
    }

    #[test]
    fn jobs_are_known_by_their_groups() {
        let text = "12:pids:/user/mica-0123456789ab\n0::/user.slice/mica-0123456789ab/sub\n";
        assert_eq!(job_groups(text), ["mica-0123456789ab", "mica-0123456789ab"]);
        assert!(job_groups("0::/user.slice/mica-builder/mica-0123\n").is_empty());
    }

    #[test]
    fn this_process_is_in_no_job_and_another_user_is_another_user() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let admission = Admission::here().unwrap();
        admission.check_peer(&ours).unwrap();
        let stricter = Admission { bounding: u64::MAX, mount: (0, 0), ..admission };
        stricter.check_peer(&theirs).unwrap_err();
    }
}
