//! Programs of the host's that the launcher runs: where they are found, and how long they may take.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, MemfdFlags, access};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, kill_process_group, pidfd_open};

/// Where programs of the system are that ordinary users don't always have in their PATH.
pub(crate) const USUAL: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// What is kept of what a program says.
const LONGEST: usize = 1 << 20;

/// The program of this name: the first in PATH, or else in the usual folders, that nobody but the caller and root can
/// change.
///
/// # Errors
/// `NotFound`.
pub(crate) fn find(name: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    find_in(name, folders.chain(USUAL.map(PathBuf::from)))
}

fn find_in(name: &str, folders: impl Iterator<Item = PathBuf>) -> io::Result<PathBuf> {
    let owners = owners();
    let usable = |path: &PathBuf| {
        path.is_file()
            && access(path, Access::EXEC_OK).is_ok()
            && owners.iter().any(|uid| mica_durable::trusted::check(path, *uid).is_ok())
    };
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no program {name}"));
    folders.map(|folder| folder.join(name)).find(usable).ok_or_else(missing)
}

/// Whose programs count beside root's: the caller's; and in a user namespace, where root may have no number, those of
/// whoever has none.
fn owners() -> Vec<u32> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let all = read("/proc/self/uid_map").split_whitespace().eq(["0", "0", "4294967295"]);
    let nobody = read("/proc/sys/kernel/overflowuid").trim().parse().ok().filter(|_| !all);
    std::iter::once(geteuid().as_raw()).chain(nobody).collect()
}

/// Runs a program with this on its standard input, and returns what it says on its output. It has until `patience` is
/// over; then it is ended with all that it started, unless that made itself a process group of its own.
///
/// # Errors
/// It can't be started, fails (with the first line of what it complained about), or takes too long.
pub(crate) fn run(
    program: &Path,
    arguments: &[&str],
    input: &[u8],
    patience: Duration,
) -> io::Result<Vec<u8>> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A file: nobody has to wait for it to be read.
    let mut stdin = File::from(rustix::fs::memfd_create("mica-input", MemfdFlags::CLOEXEC)?);
    stdin.write_all(input)?;
    stdin.rewind()?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", USUAL.join(":"))
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let ended = follow(&mut child, Instant::now() + patience);
    if ended.is_err() {
        if let Some(group) = Pid::from_raw(child.id() as i32) {
            kill_process_group(group, Signal::KILL).ok();
        }
        // It has been killed.
        child.wait()?;
    }
    let (said, complained) = ended.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => {
            io::Error::new(error.kind(), format!("{name} did not end within {patience:?}"))
        }
        _ => error,
    })?;
    if child.wait()?.success() {
        return Ok(said);
    }
    let text = String::from_utf8_lossy(&complained);
    let line: String = text.lines().next().unwrap_or("it failed").chars().take(500).collect();
    Err(io::Error::other(format!("{name}: {line}")))
}

/// Collects what a program says until it has ended.
fn follow(child: &mut Child, deadline: Instant) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let pid = Pid::from_raw(child.id() as i32).ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mut said = (Vec::new(), Vec::new());
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let mut streams = [
        (Some(File::from(std::os::fd::OwnedFd::from(stdout))), &mut said.0),
        (Some(File::from(std::os::fd::OwnedFd::from(stderr))), &mut said.1),
    ];
    let mut ended = false;
    // What it started may keep the streams open: with its own end, and what it wrote until then, it's over.
    while !ended {
        let open: Vec<usize> = (0..2).filter(|&index| streams[index].0.is_some()).collect();
        let mut fds: Vec<PollFd<'_>> = open
            .iter()
            .filter_map(|&index| streams[index].0.as_ref())
            .map(|file| PollFd::new(file, PollFlags::IN))
            .collect();
        fds.push(PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN));
        if !wait_until(&mut fds, deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        ended = ready[open.len()] && !ready[..open.len()].contains(&true);
        for index in open.into_iter().zip(&ready).filter(|(_, ready)| **ready).map(|(i, _)| i) {
            let (file, kept) = &mut streams[index];
            let mut bytes = [0; 4096];
            let length = file.as_mut().map_or(Ok(0), |file| file.read(&mut bytes))?;
            if length == 0 {
                *file = None;
            }
            let room = LONGEST.saturating_sub(kept.len()).min(length);
            kept.extend_from_slice(&bytes[..room]);
        }
    }
    Ok(said)
}

/// Waits for one of the descriptors; false when the time is up.
pub(crate) fn wait_until(fds: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    Ok(retry_on_intr(|| poll(fds, Some(&left)))? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn shell(script: &str, patience: Duration) -> io::Result<String> {
        run(Path::new("/bin/sh"), &["-c", script], b"input", patience)
            .map(|said| String::from_utf8_lossy(&said).into_owned())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_a_program_says_and_how_it_fails() {
        assert_eq!(shell("cat; echo noise >&2", LONG).unwrap(), "input");
        let error = shell("echo why >&2; echo more >&2; exit 3", LONG).unwrap_err();
        assert_eq!(error.to_string(), "sh: why");
        // Much of it, on both streams, and nobody who reads the input.
        let much = shell("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2", LONG).unwrap();
        assert_eq!(much.len(), LONGEST);
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let alive = folder.path().join("alive");
        let begun = Instant::now();
        let script = format!(
            "(exec 3>{}; flock 3; touch {}; sleep 1000) & sleep 1000",
            alive.display(),
            folder.path().join("begun").display()
        );
        let error = shell(&script, Duration::from_millis(1500)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(folder.path().join("begun").exists(), "it was slow to start");
        // The lock goes with the last process of the group.
        assert!(shell(&format!("flock -w 20 {} true", alive.display()), LONG).is_ok());
    }

    #[test]
    fn what_it_leaves_running_is_not_waited_for() {
        let begun = Instant::now();
        assert_eq!(shell("sleep 5 & echo done", LONG).unwrap(), "done\n");
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn programs_that_others_can_change_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str, folder_mode: u32, mode: u32| {
            let at = folder.path().join(name);
            std::fs::create_dir(&at).unwrap();
            std::fs::write(at.join("tool"), "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(at.join("tool"), PermissionsExt::from_mode(mode)).unwrap();
            std::fs::set_permissions(&at, PermissionsExt::from_mode(folder_mode)).unwrap();
            at
        };
        let bad = [place("a", 0o777, 0o755), place("b", 0o755, 0o757), place("c", 0o755, 0o644)];
        let good = place("d", 0o755, 0o755);
        let found = find_in("tool", bad.iter().cloned().chain([good.clone()]));
        assert_eq!(found.unwrap(), good.join("tool"));
        let error = find_in("tool", bad.into_iter()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
