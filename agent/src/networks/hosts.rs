//! A job's `/etc/hosts`: what it was given, and who is on its network.
//!
//! The file is mounted in the job, so it stays the same file while the job runs: a mount doesn't follow a rename. What
//! the job could do to those who write it, it can't:
//!
//! - change it, or make it grow: it is mounted read-only, in the supervisor's own namespace already, so that the kernel
//!   doesn't let the job remount it, whatever capabilities the job has there;
//! - hold its writers up by a lease (fcntl(2), `F_SETLEASE`): its supervisor keeps it open for writing from before the
//!   job starts until the job has ended, and of a file that is open for writing there are none. The others open it
//!   without waiting all the same.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use mica_durable::{Folder, Named};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount,
    unmount,
};

use crate::files::{FileError, at};
use crate::state::JobDir;

const NAME: &str = "hosts";

const BEGIN: &str = "# jobs of this network; mica keeps these lines up to date";
const END: &str = "# end of the jobs of this network";

/// The longest file; those who don't fit in are left out.
const LONGEST: usize = 1 << 20;

/// Where it is kept, to be mounted in the job.
pub(super) fn path(job: &JobDir) -> PathBuf {
    job.path().join(NAME)
}

/// The file while its job runs.
#[derive(Debug)]
pub(super) struct Hosts {
    path: PathBuf,
    /// Keeps leases away.
    _open: File,
    mounted: bool,
}

impl Hosts {
    /// Makes the file as a job starts; whoever a job runs as may read it.
    pub(super) fn create(job: &JobDir) -> Result<Self, FileError> {
        // Always another file: nobody has anything of this one open.
        Folder::open(job.path())?.replace(NAME, b"", 0o644)?;
        let path = path(job);
        Ok(Self { _open: open(&path)?, path, mounted: false })
    }

    /// Makes it read-only for everything that this process starts; in a mount namespace of its own.
    pub(super) fn seal(&mut self) -> Result<(), FileError> {
        let path = &self.path;
        mount_bind(path, path).named("mount", path)?;
        self.mounted = true;
        mount_change(path, MountPropagationFlags::PRIVATE).named("make private", path)?;
        let flags = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        mount_remount(path, flags, c"").named("make read-only", path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if self.mounted {
            // Where this fails it goes with the namespace.
            unmount(&self.path, UnmountFlags::DETACH).ok();
        }
    }
}

/// Opens the file to write it; never waits.
fn open(path: &Path) -> Result<File, FileError> {
    let flags =
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).named("open", path)?);
    if !file.metadata().named("stat", path)?.is_file() {
        return Err(at("write", path)(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    Ok(file)
}

/// Writes the file of a job anew: what the job was given, and the lines of its network.
pub(super) fn update(
    path: &Path,
    base: &str,
    entries: &[(IpAddr, Vec<String>)],
) -> Result<(), FileError> {
    let file = open(path)?;
    let old = file.metadata().named("stat", path)?.len();
    let text = text(base, entries);
    // Written at once over all of the old text, so that a reader meanwhile finds no rest of it.
    let mut bytes = text.clone().into_bytes();
    let padded = usize::try_from(old).unwrap_or(LONGEST).min(LONGEST);
    bytes.resize(bytes.len().max(padded), b'\n');
    file.write_all_at(&bytes, 0).named("write", path)?;
    file.set_len(text.len() as u64).named("write", path)
}

fn text(base: &str, entries: &[(IpAddr, Vec<String>)]) -> String {
    let mut text = String::new();
    for line in base.lines() {
        text.push_str(line);
        text.push('\n');
    }
    // Writing to memory can't fail.
    let _ = writeln!(text, "{BEGIN}");
    for (address, names) in entries {
        let line = format!("{address}\t{}\n", names.join(" "));
        if text.len() + line.len() + END.len() < LONGEST {
            text.push_str(&line);
        }
    }
    let _ = writeln!(text, "{END}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(last: u8, name: &str) -> (IpAddr, Vec<String>) {
        (IpAddr::from([10, 1, 0, last]), vec![name.to_owned()])
    }

    #[test]
    fn what_the_job_was_given_comes_first() {
        let text = text("127.0.0.1\tlocalhost", &[entry(2, "a"), entry(3, "b")]);
        let expected = format!("127.0.0.1\tlocalhost\n{BEGIN}\n10.1.0.2\ta\n10.1.0.3\tb\n{END}\n");
        assert_eq!(text, expected);
    }

    #[test]
    fn the_file_is_bounded() {
        let long = "x".repeat(200);
        let entries: Vec<_> = (0..9000).map(|n| entry((n % 250) as u8, &long)).collect();
        let text = text("", &entries);
        assert!(text.len() <= LONGEST + 1 && text.ends_with(&format!("{END}\n")));
    }

    #[test]
    fn the_file_stays_the_same_file() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "x".repeat(1000)).unwrap();
        let before = path.metadata().unwrap().ino();
        update(&path, "y\n", &[entry(2, "a")]).unwrap();
        update(&path, "y\n", &[]).unwrap();
        assert_eq!(path.metadata().unwrap().ino(), before);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("y\n{BEGIN}\n{END}\n"));
    }

    /// A process that wants a lease on a file, and never gives it back.
    struct Lease {
        process: std::process::Child,
        said: String,
    }

    impl Lease {
        fn take(path: &Path) -> Self {
            use std::io::Read;
            let script = "import fcntl, os, signal, sys\n\
                signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
                fd = os.open(sys.argv[1], os.O_RDONLY)\n\
                try: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK); said = 'taken  '\n\
                except OSError: said = 'refused'\n\
                print(said, end='', flush=True); sys.stdin.read()";
            let mut process = std::process::Command::new("python3")
                .args(["-c", script])
                .arg(path)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = [0; 7];
            process.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
            Self { process, said: String::from_utf8_lossy(&said).trim().to_owned() }
        }
    }

    impl Drop for Lease {
        fn drop(&mut self) {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }

    /// Who holds a lease on the file holds up nobody: there is none while it is open for writing, and else an error.
    #[test]
    fn a_lease_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "").unwrap();
        let kept = open(&path).unwrap();
        assert_eq!(
            Lease::take(&path).said,
            "refused",
            "a lease on a file that is open for writing"
        );
        drop(kept);
        let lease = Lease::take(&path);
        assert_eq!(lease.said, "taken");
        let begun = std::time::Instant::now();
        update(&path, "", &[]).unwrap_err();
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn nothing_but_a_file_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (link, fifo) = (dir.path().join("link"), dir.path().join("fifo"));
        std::os::unix::fs::symlink(dir.path().join("other"), &link).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0)
            .unwrap();
        for path in [link, fifo] {
            update(&path, "", &[]).unwrap_err();
        }
        assert!(!dir.path().join("other").exists());
    }
}
