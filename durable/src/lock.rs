//! Locks between processes: flock(2) on a file that only its owner can open.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{FileError, Named};
use crate::folder::{Folder, open_regular, regular};

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Says whether the process was told to end; a wait for a lock then gives up.
static INTERRUPTED: OnceLock<fn() -> bool> = OnceLock::new();

/// Has every wait for a lock ask `interrupted` whether to give up. For programs that handle SIGTERM and the like
/// themselves: where nobody handles a signal, it ends the process anyway. The first call counts.
pub fn interrupted_by(interrupted: fn() -> bool) {
    INTERRUPTED.set(interrupted).ok();
}

/// A lock on a file. It ends when the last descriptor of this open file is closed, however its holder dies.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock for this process alone, or says `None` if somebody holds it.
    ///
    /// # Errors
    /// The file can't be opened or made, is a link, or no regular file.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>, FileError> {
        Self::attempt(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes the lock together with others who share it, or says `None` if somebody holds it alone.
    ///
    /// # Errors
    /// As of [`Lock::try_exclusive`].
    pub fn try_shared(path: &Path) -> Result<Option<Self>, FileError> {
        Self::attempt(path, FlockOperation::NonBlockingLockShared)
    }

    /// Takes the lock for this process alone, waiting at most `patience` for whoever holds it.
    ///
    /// # Errors
    /// As of [`Lock::try_exclusive`]; `TimedOut` naming the holder; `Interrupted`.
    pub fn exclusive(path: &Path, patience: Duration) -> Result<Self, FileError> {
        Self::wait(path, FlockOperation::NonBlockingLockExclusive, patience)
    }

    /// Takes the lock together with others who share it, waiting at most `patience` for whoever holds it alone.
    ///
    /// # Errors
    /// As of [`Lock::exclusive`].
    pub fn shared(path: &Path, patience: Duration) -> Result<Self, FileError> {
        Self::wait(path, FlockOperation::NonBlockingLockShared, patience)
    }

    /// The same of a file in an open folder that several accounts share: it is made with this mode. Whoever may open it can keep
    /// the others waiting, so it is for those who can spoil anyway what the lock is about.
    ///
    /// # Errors
    /// As of [`Lock::exclusive`]; `name` is not the name of an entry.
    pub fn exclusive_in(
        folder: &Folder,
        name: &str,
        mode: u32,
        patience: Duration,
    ) -> Result<Self, FileError> {
        let path = folder.entry(name.as_ref())?;
        let file = open(folder.as_fd(), Path::new(name), &path, mode)?;
        wait_for(&file, FlockOperation::NonBlockingLockExclusive, patience).named("lock", &path)?;
        Ok(Self(file))
    }

    /// Whether somebody holds the lock for himself alone. Makes no file; where there is none, nobody does. The question is a
    /// shared lock for an instant, so whoever wants it exclusively waits at least that long.
    ///
    /// # Errors
    /// What has the name is no regular file, or can't be opened.
    pub fn is_held(path: &Path) -> Result<bool, FileError> {
        let Some(file) = open_regular(path)? else { return Ok(false) };
        try_lock(&file, FlockOperation::NonBlockingLockShared).map(|free| !free).named("lock", path)
    }

    /// A lock that another process took and passed on.
    pub fn adopted(file: File) -> Self {
        Self(file)
    }

    /// The locked file. The lock lives as long as any copy of it.
    pub fn file(&self) -> &File {
        &self.0
    }

    fn attempt(path: &Path, operation: FlockOperation) -> Result<Option<Self>, FileError> {
        let file = open(CWD, path, path, OWNER)?;
        let locked = try_lock(&file, operation).named("lock", path)?;
        Ok(locked.then_some(Self(file)))
    }

    fn wait(path: &Path, operation: FlockOperation, patience: Duration) -> Result<Self, FileError> {
        let file = open(CWD, path, path, OWNER)?;
        wait_for(&file, operation, patience).named("lock", path)?;
        Ok(Self(file))
    }

    /// Waits for the lock of a file that is open, at most `patience`.
    ///
    /// # Errors
    /// `TimedOut` naming the holder; `Interrupted`; the file system has no locks.
    pub fn exclusive_on(file: &File, patience: Duration) -> io::Result<()> {
        wait_for(file, FlockOperation::NonBlockingLockExclusive, patience)
    }

    /// Takes the lock of a file that is open, and says whether nobody held it.
    ///
    /// # Errors
    /// The file system has no locks.
    pub fn try_exclusive_on(file: &File) -> io::Result<bool> {
        try_lock(file, FlockOperation::NonBlockingLockExclusive)
    }
}

/// Nobody but the owner may open a lock.
const OWNER: u32 = 0o600;

/// The lock file, made if need be. Whoever can open a file can lock it: hence its mode is set, also of one that is there.
fn open(at: BorrowedFd<'_>, name: &Path, path: &Path, mode: u32) -> Result<File, FileError> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let made = regular(at, name, path.to_owned(), OFlags::RDWR | OFlags::CREATE, mode)?;
    let file = made.ok_or_else(gone).named("open", path)?;
    let metadata = file.metadata().named("stat", path)?;
    // Made by an earlier version, or under a strange umask.
    if metadata.mode() & 0o777 != mode && metadata.uid() == rustix::process::geteuid().as_raw() {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).named("set the mode of", path)?;
    }
    Ok(file)
}

fn try_lock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// flock(2) knows no deadline, and a signal ends it only where the handler was installed so: hence short pauses.
fn wait_for(file: &File, operation: FlockOperation, patience: Duration) -> io::Result<()> {
    // One beyond the end of time is none.
    let deadline = Instant::now().checked_add(patience);
    let mut pause = Duration::from_micros(200);
    loop {
        if try_lock(file, operation)? {
            return Ok(());
        }
        if INTERRUPTED.get().is_some_and(|interrupted| interrupted()) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted by a signal"));
        }
        let left = deadline
            .map_or(LONGEST_PAUSE, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            let reason = format!("{} has held it for {patience:?}", holder(file)?);
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Who holds a lock on the file, in words, by /proc/locks (proc_locks(5)).
fn holder(file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    let device = metadata.dev();
    let place = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device),
        metadata.ino()
    );
    let locks = read_small(Path::new("/proc/locks"));
    // `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`; a waiter's line has an arrow.
    let pid = locks.lines().filter(|line| !line.contains("->")).find_map(|line| {
        let mut words = line.split_whitespace().skip(4);
        let pid = words.next()?;
        (words.next()? == place).then(|| pid.to_owned())
    });
    let Some(pid) = pid.filter(|pid| pid != "0" && pid != "-1") else {
        return Ok("another process".to_owned());
    };
    let name = read_small(&Path::new("/proc").join(&pid).join("comm"));
    let name: String = name.trim_end().chars().filter(|c| !c.is_control()).collect();
    Ok(if name.is_empty() { format!("process {pid}") } else { format!("process {pid} ({name})") })
}

fn read_small(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn a_wait_ends_and_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::exclusive(&path, NOW).unwrap();
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        assert!(Lock::try_shared(&path).unwrap().is_none());
        let begun = Instant::now();
        let error = Lock::exclusive(&path, Duration::from_millis(50)).unwrap_err();
        assert!(begun.elapsed() >= Duration::from_millis(50));
        assert_eq!(error.source.kind(), io::ErrorKind::TimedOut);
        let said = error.source.to_string();
        assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
        assert!(Lock::is_held(&path).unwrap());
        drop(held);
        assert!(
            !Lock::is_held(&path).unwrap() && !Lock::is_held(&folder.path().join("x")).unwrap()
        );
        assert!(!folder.path().join("x").exists());
        let one = Lock::shared(&path, NOW).unwrap();
        let two = Lock::shared(&path, NOW).unwrap();
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        drop((one, two));
        assert!(Lock::try_exclusive(&path).unwrap().is_some());
    }

    #[test]
    fn only_the_owner_can_open_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        drop(Lock::exclusive(&path, NOW).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_file_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        symlink(&target, folder.path().join("link")).unwrap();
        assert!(Lock::try_exclusive(&folder.path().join("link")).is_err());
        assert!(!target.exists());
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(Lock::try_exclusive(&fifo).is_err());
    }
}
