//! Files of JSON lines that are set aside at a bounded size: `<stem>.jsonl` and `<stem>.1.jsonl`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mica_durable::Folder;
use serde::de::DeserializeOwned;

use crate::files::{FileError, at};

pub(crate) fn current(dir: &Path, stem: &str) -> PathBuf {
    dir.join(format!("{stem}.jsonl"))
}

pub(crate) fn previous(dir: &Path, stem: &str) -> PathBuf {
    dir.join(format!("{stem}.1.jsonl"))
}

/// The longest line that counts, in bytes; those of logs and events are shorter.
const LONGEST_LINE: usize = 1 << 20;

/// Reads such a file and the one set aside, from the beginning, and goes on where it stopped when called again.
#[derive(Debug)]
pub struct JsonLines<T> {
    dir: PathBuf,
    stem: &'static str,
    open: Option<(BufReader<File>, u64)>,
    pending: Vec<u8>,
    started: bool,
    entry: PhantomData<T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    pub(crate) fn new(dir: &Path, stem: &'static str) -> Self {
        let dir = dir.to_owned();
        Self { dir, stem, open: None, pending: Vec::new(), started: false, entry: PhantomData }
    }

    /// The entries written since the last call; empty when there is nothing new.
    pub fn read_new(&mut self) -> Result<Vec<T>, FileError> {
        let mut entries = Vec::new();
        if !self.started {
            self.started = true;
            self.open_file(&format!("{}.1.jsonl", self.stem))?;
            self.drain(&mut entries)?;
            self.open = None;
        }
        loop {
            if self.open.is_none() {
                self.open_file(&format!("{}.jsonl", self.stem))?;
            }
            self.drain(&mut entries)?;
            // Was the file set aside while it was read? Then what followed is in a new one.
            let now = fs::metadata(current(&self.dir, self.stem)).ok().map(|meta| meta.ino());
            match (&self.open, now) {
                (Some((_, ino)), Some(now)) if *ino != now => {
                    self.drain(&mut entries)?;
                    self.open = None;
                }
                _ => return Ok(entries),
            }
        }
    }

    fn open_file(&mut self, name: &str) -> Result<(), FileError> {
        let folder = match Folder::open(&self.dir) {
            // Removed meanwhile, with what was in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            folder => folder?,
        };
        if let Some(file) = folder.open_file(name)? {
            let ino = file.metadata().map_err(at("stat", &self.dir.join(name)))?.ino();
            self.open = Some((BufReader::new(file), ino));
        }
        Ok(())
    }

    fn drain(&mut self, entries: &mut Vec<T>) -> Result<(), FileError> {
        let Some((file, _)) = &mut self.open else { return Ok(()) };
        let path = current(&self.dir, self.stem);
        loop {
            let room = LONGEST_LINE.saturating_sub(self.pending.len());
            let read = file.take(room as u64).read_until(b'\n', &mut self.pending);
            let read = read.map_err(at("read", &path))?;
            if !self.pending.ends_with(b"\n") {
                if self.pending.len() >= LONGEST_LINE {
                    // Nobody of ours has written that: up to its end it is passed over.
                    self.pending.clear();
                    self.pending.push(b'?');
                    continue;
                }
                return Ok(()); // end of file, or the first half of a line that is being written
            }
            // A line cut short by a crash of the machine is not worth failing over.
            if let Ok(entry) = serde_json::from_slice(&self.pending) {
                entries.push(entry);
            }
            self.pending.clear();
            if read == 0 {
                return Ok(());
            }
        }
    }
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
        let long = "1".repeat(3 * LONGEST_LINE + 5);
        fs::write(&path, [b"1\n\xff\n{\n", long.as_bytes(), b"\n2\n3"].concat()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [1, 2]);
        // More than there is memory for.
        fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
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
                _ => fs::create_dir(&path).unwrap(),
            }
            assert!(read(dir.path()).is_err(), "{kind}");
        }
        assert!(read(Path::new("/no/such/folder")).unwrap().is_empty());
    }
}
