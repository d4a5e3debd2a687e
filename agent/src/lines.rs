//! Files of JSON lines that are set aside at a bounded size: `<stem>.jsonl` and `<stem>.1.jsonl`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::files::{FileError, at};

pub(crate) fn current(dir: &Path, stem: &str) -> PathBuf {
    dir.join(format!("{stem}.jsonl"))
}

pub(crate) fn previous(dir: &Path, stem: &str) -> PathBuf {
    dir.join(format!("{stem}.1.jsonl"))
}

/// Reads such a file and the one set aside, from the beginning, and goes on where it stopped when called again.
#[derive(Debug)]
pub struct JsonLines<T> {
    dir: PathBuf,
    stem: &'static str,
    open: Option<(BufReader<File>, u64)>,
    pending: String,
    started: bool,
    entry: PhantomData<T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    pub(crate) fn new(dir: &Path, stem: &'static str) -> Self {
        let dir = dir.to_owned();
        Self { dir, stem, open: None, pending: String::new(), started: false, entry: PhantomData }
    }

    /// The entries written since the last call; empty when there is nothing new.
    pub fn read_new(&mut self) -> Result<Vec<T>, FileError> {
        let mut entries = Vec::new();
        if !self.started {
            self.started = true;
            self.open_file(&previous(&self.dir, self.stem))?;
            self.drain(&mut entries)?;
            self.open = None;
        }
        loop {
            if self.open.is_none() {
                self.open_file(&current(&self.dir, self.stem))?;
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

    fn open_file(&mut self, path: &Path) -> Result<(), FileError> {
        match File::open(path) {
            Ok(file) => {
                let ino = file.metadata().map_err(at("stat", path))?.ino();
                self.open = Some((BufReader::new(file), ino));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(at("open", path)(error)),
        }
    }

    fn drain(&mut self, entries: &mut Vec<T>) -> Result<(), FileError> {
        let Some((file, _)) = &mut self.open else { return Ok(()) };
        let path = current(&self.dir, self.stem);
        loop {
            let read = file.read_line(&mut self.pending).map_err(at("read", &path))?;
            if !self.pending.ends_with('\n') {
                return Ok(()); // end of file, or the first half of a line that is being written
            }
            // A line cut short by a crash of the machine is not worth failing over.
            if let Ok(entry) = serde_json::from_str(&self.pending) {
                entries.push(entry);
            }
            self.pending.clear();
            if read == 0 {
                return Ok(());
            }
        }
    }
}
