//! Files of JSON lines that are set aside at a bounded size: `<stem>.jsonl`, `<stem>.1.jsonl`, `<stem>.2.jsonl`, …

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mica_durable::Folder;
use serde::de::DeserializeOwned;

use crate::files::{FileError, at};

/// More files than these are never set aside.
pub(crate) const MAX_FILES: u32 = 1000;

/// No line is longer, whoever wrote it.
const LONGEST: u64 = 1 << 20;

pub(crate) fn current(dir: &Path, stem: &str) -> PathBuf {
    dir.join(format!("{stem}.jsonl"))
}

/// The file that was set aside `age` files ago; 0 is the current one.
pub(crate) fn aside(dir: &Path, stem: &str, age: u32) -> PathBuf {
    if age == 0 { current(dir, stem) } else { dir.join(format!("{stem}.{age}.jsonl")) }
}

/// Reads such files from the oldest to the current one, and goes on where it stopped when called again.
#[derive(Debug)]
pub struct JsonLines<T> {
    dir: PathBuf,
    stem: &'static str,
    /// What is left to be read, the oldest first.
    open: VecDeque<Opened>,
    pending: Vec<u8>,
    /// No more than so many files are read, the newest of them.
    files: usize,
    entry: PhantomData<T>,
}

#[derive(Debug)]
struct Opened {
    file: BufReader<File>,
    inode: u64,
    /// So much has been read.
    read: u64,
}

impl<T: DeserializeOwned> JsonLines<T> {
    pub(crate) fn new(dir: &Path, stem: &'static str) -> Self {
        let (dir, open) = (dir.to_owned(), VecDeque::new());
        Self { dir, stem, open, pending: Vec::new(), files: usize::MAX, entry: PhantomData }
    }

    /// The same without the older of more files than these.
    pub fn newest(mut self, files: usize) -> Self {
        self.files = files;
        self
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        (0..=MAX_FILES).take_while(|age| aside(&self.dir, self.stem, *age).exists()).count()
    }

    /// The entries written since the last call; empty when there is nothing new.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn read_new(&mut self) -> Result<Vec<T>, FileError> {
        let mut entries = Vec::new();
        self.each_new(|entry| {
            entries.push(entry);
            Ok::<_, FileError>(())
        })?;
        Ok(entries)
    }

    /// Hands the entries written since the last call to `each`. What is written meanwhile is for the next call, however fast
    /// that is.
    ///
    /// # Errors
    /// A file can't be read; what `each` returns.
    pub fn each_new<E: From<FileError>>(
        &mut self,
        mut each: impl FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.open.is_empty() {
            self.open = self.newer_than(None)?;
        }
        // The last one may have been set aside since.
        let last = self.open.back().map(|last| last.inode);
        let newer = self.newer_than(last)?;
        let mut limit = None;
        if newer.is_empty()
            && let Some(last) = self.open.back()
        {
            let path = current(&self.dir, self.stem);
            limit = Some(last.file.get_ref().metadata().map_err(at("stat", &path))?.len());
        }
        self.open.extend(newer);
        loop {
            let more = self.open.len() > 1;
            let Some(first) = self.open.front_mut() else { break };
            let limit = if more { u64::MAX } else { limit.unwrap_or(u64::MAX) };
            drain(&self.dir, first, &mut self.pending, limit, &mut each)?;
            if !more {
                break;
            }
            // Half a line at the end of a file that is no longer written is one that was cut short.
            self.pending.clear();
            self.open.pop_front();
        }
        Ok(())
    }

    /// Opens the files that are newer than this one, the oldest first; all of them if it is gone.
    fn newer_than(&self, inode: Option<u64>) -> Result<VecDeque<Opened>, FileError> {
        let mut files: VecDeque<Opened> = VecDeque::new();
        let folder = match Folder::open(&self.dir) {
            // Removed meanwhile, with what was in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
            folder => folder?,
        };
        // From the newest on: when files are set aside meanwhile, one may be met twice, but none is missed.
        for age in 0..=MAX_FILES {
            let path = aside(&self.dir, self.stem, age);
            let Some(file) = folder.open_file(path.file_name().unwrap_or_default())? else {
                if age == 0 { continue } else { break }
            };
            let found = file.metadata().map_err(at("stat", &path))?.ino();
            if Some(found) == inode {
                break;
            }
            if files.iter().all(|other| other.inode != found) {
                files.push_front(Opened { file: BufReader::new(file), inode: found, read: 0 });
            }
            if files.len() >= self.files {
                break;
            }
        }
        Ok(files)
    }
}

/// Reads the whole lines up to an offset.
fn drain<T: DeserializeOwned, E: From<FileError>>(
    dir: &Path,
    opened: &mut Opened,
    pending: &mut Vec<u8>,
    limit: u64,
    each: &mut impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    while opened.read < limit {
        let room = LONGEST.saturating_sub(pending.len() as u64).max(1);
        let line = opened.file.by_ref().take(room).read_until(b'\n', pending);
        let count = line.map_err(at("read", dir))?;
        opened.read += count as u64;
        if !pending.ends_with(b"\n") {
            if pending.len() as u64 >= LONGEST {
                // Nobody of ours has written that: up to its end it is passed over.
                pending.clear();
                pending.push(b'?');
                continue;
            }
            return Ok(()); // end of file, or the first half of a line that is being written
        }
        // A line cut short by a crash of the machine is not worth failing over.
        if let Ok(entry) = serde_json::from_slice(pending) {
            pending.clear();
            each(entry)?;
        }
        pending.clear();
        if count == 0 {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    fn read(dir: &Path) -> Result<Vec<u32>, FileError> {
        JsonLines::new(dir, "x").read_new()
    }

    #[test]
    fn what_is_no_line_of_ours_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let long = "1".repeat(3 * LONGEST as usize + 5);
        std::fs::write(&path, [b"1\n\xff\n{\n", long.as_bytes(), b"\n2\n3"].concat()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [1, 2]);
        // More than there is memory for.
        std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_file_holds_nobody_up() {
        for kind in ["fifo", "link", "folder"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.jsonl");
            match kind {
                "fifo" => mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap(),
                "link" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                _ => std::fs::create_dir(&path).unwrap(),
            }
            assert!(read(dir.path()).is_err(), "{kind}");
        }
        assert!(read(Path::new("/no/such/folder")).unwrap().is_empty());
    }
}
