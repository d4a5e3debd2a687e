//! A private network: user-mode, by `pasta` from the package `passt`.
//!
//! `pasta` copies packets between the job's network namespace and sockets of the launcher's, so nothing of it needs root.
//! It doesn't notice when its user is gone, and loses the wish to die with its parent when it enters the job's user
//! namespace. So it runs as a job of its own, which shares everything with the launcher but, where
//! the launcher may make one, has its own process namespace: the init that dies with the launcher takes it along.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, getegid, geteuid};

use crate::caps::CapabilitySet;
use crate::error::LaunchError;
use crate::plan::capabilities;
use crate::process::Process;
use crate::spec::{PortForward, Protocol, Seccomp, Spec};
use crate::{closed, programs};

/// How long `pasta` may take to begin, in seconds.
const PATIENCE: i64 = 20;

/// The address at which a job with a private network finds the host's name server.
pub const PRIVATE_DNS: &str = "169.254.1.1";

/// The arguments of `pasta` for the namespaces of this process.
fn arguments(
    pid: Pid,
    own_users: bool,
    as_root: bool,
    ports: &[PortForward],
    outwards: &[(&'static str, Option<String>)],
) -> Vec<OsString> {
    let ns = |name: &str| format!("/proc/{}/ns/{name}", pid.as_raw_nonzero());
    let pasta = programs::find("pasta").ok().and_then(|path| path.to_str().map(str::to_owned));
    let mut argv: Vec<String> = vec![pasta.unwrap_or_else(|| "pasta".to_owned())];
    let first =
        ["--foreground", "--quiet", "--config-net", "--no-map-gw", "--dns-forward", PRIVATE_DNS];
    argv.extend(first.map(str::to_owned));
    // Says that it is ready by writing its pid.
    argv.extend(["--pid".into(), "/dev/stdout".into(), "--netns".into(), ns("net")]);
    if own_users {
        argv.extend(["--userns".into(), ns("user")]);
    } else {
        argv.push("--netns-only".into());
    }
    if as_root {
        // Otherwise it becomes nobody, who may not enter the job's namespaces.
        argv.extend(["--runas".into(), "0".into()]);
    }
    for (protocol, option) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
        let mut none = true;
        for port in ports.iter().filter(|port| port.protocol == protocol) {
            let address = port.address.map(|address| format!("{address}/")).unwrap_or_default();
            argv.extend([option.into(), format!("{address}{}:{}", port.host, port.job)]);
            none = false;
        }
        if none {
            argv.extend([option.into(), "none".into()]);
        }
    }
    // By the interface that leads outside, and no other: not to the host's other addresses.
    for (option, name) in outwards {
        argv.extend(name.iter().flat_map(|name| [(*option).to_owned(), name.clone()]));
    }
    // Nothing of the host's loopback appears in the job.
    argv.extend(["--tcp-ns", "none", "--udp-ns", "none"].map(str::to_owned));
    argv.into_iter().map(Into::into).collect()
}

/// The program that makes the network of the process `pid`.
pub(crate) fn program(pid: Pid, own_users: bool, ports: &[PortForward], host: bool) -> Process {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let outwards = closed::outwards();
    Process {
        argv: arguments(pid, own_users, uid == 0, ports, if host { &[] } else { &outwards }),
        env: vec![("PATH".into(), programs::USUAL.join(":").into())],
        own_home: false,
        cwd: "/".into(),
        uid,
        gid,
        groups: Vec::new(),
        capabilities: CapabilitySet::ALL,
        seccomp: Seccomp::Unconfined,
        no_new_privileges: true,
        rlimits: Vec::new(),
        clamp_rlimits: false,
        umask: 0o022,
        oom_score_adj: None,
    }
}

/// What the job's capabilities take from the promise that a private network doesn't lead to the host.
pub(crate) fn warning(spec: &Spec) -> Option<String> {
    let held = capabilities(spec).ok()?;
    let names = ["NET_ADMIN", "NET_RAW"].into_iter().filter(|name| held.has(name));
    let names: Vec<&str> = names.filter(|_| !spec.host).collect();
    (!names.is_empty()).then(|| {
        format!(
            "with {} the job can get around the filter of its private network, and reach the host",
            names.join(" and ")
        )
    })
}

/// Where `pasta` says that it is ready, and what it has to complain about.
pub(crate) struct Words {
    ready: File,
    complaints: File,
}

/// The streams for `pasta`, and what to read from.
pub(crate) fn streams() -> io::Result<(crate::launch::Stdio, Words)> {
    let (ready, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (complaints, stderr) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let stdin = OwnedFd::from(File::open("/dev/null")?);
    let stdio = crate::launch::Stdio::Streams { stdin, stdout, stderr };
    Ok((stdio, Words { ready: ready.into(), complaints: complaints.into() }))
}

/// Waits until the network works, but not for ever.
pub(crate) fn wait(words: Words) -> Result<(), LaunchError> {
    let Words { mut ready, mut complaints } = words;
    let mut pid = [0; 16];
    let limit = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    let mut fds = [PollFd::new(&ready, PollFlags::IN)];
    if retry_on_intr(|| poll(&mut fds, Some(&limit))).is_ok_and(|count| count == 0) {
        let late = io::Error::new(
            io::ErrorKind::TimedOut,
            format!("pasta: it did not answer for {PATIENCE} s"),
        );
        return Err(LaunchError::Network(late));
    }
    match ready.read(&mut pid) {
        Ok(length) if length > 0 => Ok(()),
        Err(error) => Err(LaunchError::Network(error)),
        Ok(_) => {
            let mut said = Vec::new();
            // Whatever it managed to say; the pipe may not be closed yet.
            complaints.read_to_end(&mut said).ok();
            let said = String::from_utf8_lossy(&said);
            // It also complains about a missing system log.
            let lines: Vec<_> = said.lines().filter(|line| !line.contains("to syslog")).collect();
            Err(LaunchError::Network(io::Error::other(format!("pasta: {}", lines.join("; ")))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_namespaces() {
        let port = |protocol, address: Option<&str>, host, job| PortForward {
            protocol,
            address: address.map(|a| a.parse().unwrap()),
            host,
            job,
        };
        let ports =
            [port(Protocol::Tcp, Some("127.0.0.1"), 8080, 80), port(Protocol::Tcp, None, 22, 22)];
        let pid = Pid::from_raw(42).unwrap();
        let line = arguments(pid, true, false, &ports, &[("--outbound-if4", Some("eth0".into()))])
            .join(" ".as_ref())
            .into_string()
            .unwrap();
        assert!(line.contains("--netns /proc/42/ns/net --userns /proc/42/ns/user"), "{line}");
        assert!(
            line.contains("--tcp-ports 127.0.0.1/8080:80 --tcp-ports 22:22 --udp-ports none"),
            "{line}"
        );
        assert!(line.contains("--outbound-if4 eth0") && !line.contains("--runas"), "{line}");
    }
}
