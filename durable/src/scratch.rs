//! Folders for a time, that go away whatever becomes of whoever made them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::FileError;
use crate::folder::Folder;
use crate::lock::Lock;
use crate::remove::remove_tree;

/// How long another process may take to make or remove such a folder's beginnings.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder of this process, on a file system of its choice: removed when this is dropped, and by the next
/// [`Scratch::new`] or [`Scratch::sweep`] if the process was killed.
///
/// ```text
/// BELOW/lock        held while a folder is made, and while dead ones are removed
///       ID/lock     held while its process lives
///       ID/…        what that one puts there
/// ```
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: Lock,
}

impl Scratch {
    /// Makes a folder below `below`, which is made if need be, both for their owner only. Removes dead ones first.
    ///
    /// # Errors
    /// It can't be made, or somebody is at it for too long.
    pub fn new(below: &Path) -> Result<Self, FileError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let folder = Folder::create(below, 0o700)?;
        Self::sweep(below)?;
        let _all = Lock::exclusive(&below.join("lock"), PATIENCE)?;
        loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{serial}", std::process::id());
            // Another process may have our number, in a container.
            if folder.stat(&name)?.is_none() {
                let path = folder.create_folder(&name, 0o700)?.path().to_owned();
                let lock = Lock::exclusive(&path.join("lock"), PATIENCE)?;
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folders whose processes have died, unless another process is at it.
    ///
    /// # Errors
    /// One can't be removed.
    pub fn sweep(below: &Path) -> Result<(), FileError> {
        let folder = match Folder::open(below) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            folder => folder?,
        };
        let Some(all) = Lock::try_exclusive(&below.join("lock"))? else { return Ok(()) };
        let dead = dead(&folder)?;
        // Large ones take their time; they are locked themselves.
        drop(all);
        dead.iter().try_for_each(|(path, _lock)| remove_tree(path).map(drop))
    }
}

/// The most that are removed at a time: each holds a descriptor.
const AT_A_TIME: usize = 64;

/// Those that no process holds, locked now.
fn dead(folder: &Folder) -> Result<Vec<(PathBuf, Option<Lock>)>, FileError> {
    let mut dead = Vec::new();
    for name in folder.names()?.into_iter().filter(|name| name != "lock") {
        let path = folder.path().join(&name);
        match folder.folder(&name) {
            Ok(Some(_)) => match Lock::try_exclusive(&path.join("lock"))? {
                Some(lock) => dead.push((path, Some(lock))),
                None => continue,
            },
            Ok(None) => continue,
            // No folder, so none of ours.
            Err(_) => dead.push((path, None)),
        }
        if dead.len() == AT_A_TIME {
            break;
        }
    }
    Ok(dead)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed now is the next one's to try.
        remove_tree(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_dead_leave_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("tmp");
        Scratch::sweep(&below).unwrap();
        let (one, two) = (Scratch::new(&below).unwrap(), Scratch::new(&below).unwrap());
        std::fs::write(one.path().join("file"), "x").unwrap();
        // As if the process had been killed: the lock is gone, the folder is not.
        let dead = two.path().to_owned();
        let kept = dead.with_file_name("dead");
        std::fs::rename(&dead, &kept).unwrap();
        drop(two);
        assert!(kept.exists());
        Scratch::sweep(&below).unwrap();
        assert!(!kept.exists() && one.path().join("file").exists());
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists());
    }
}
