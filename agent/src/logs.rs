//! What jobs print: JSON lines with stream and time, in two files of bounded size.
//!
//! `log.jsonl` grows to [`ROTATE_AT`] and then becomes `log.1.jsonl`, in place of the one before. A line is
//! written with one `write(2)`, so a reader sees whole lines or the beginning of the last one, never a mixture.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::files::{FileError, at};
use crate::lines::{JsonLines, current, previous};

/// Size at which the log is set aside, in bytes.
pub const ROTATE_AT: u64 = 16 << 20;

/// Longest entry; longer lines are cut into several.
const MAX_LINE: usize = 64 << 10;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a job's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was read from the job, RFC 3339.
    pub time: jiff::Timestamp,
    /// Where it came from.
    pub stream: Stream,
    /// The text, with its line feed if it had one.
    #[serde(flatten)]
    pub line: Line,
}

/// A line's bytes: as text where they are UTF-8, else as base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// UTF-8.
    Log(String),
    /// Anything else.
    Base64(String),
}

impl Line {
    fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Log(text.to_owned()),
            Err(_) => Self::Base64(STANDARD.encode(bytes)),
        }
    }

    /// The bytes the job wrote.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Log(text) => text.clone().into_bytes(),
            Self::Base64(text) => STANDARD.decode(text).unwrap_or_default(),
        }
    }
}

/// The log's files are called so.
const STEM: &str = "log";

/// A reader of the log in the job's folder `dir`.
pub fn reader(dir: &Path) -> JsonLines<Entry> {
    JsonLines::new(dir, STEM)
}

/// The writing end, in the supervisor.
#[derive(Debug)]
pub(crate) struct LogWriter {
    dir: PathBuf,
    file: File,
    size: u64,
}

impl LogWriter {
    pub(crate) fn open(dir: &Path) -> Result<Self, FileError> {
        let path = current(dir, STEM);
        let file = append(&path).map_err(at("open", &path))?;
        let size = file.metadata().map_err(at("stat", &path))?.len();
        Ok(Self { dir: dir.to_owned(), file, size })
    }

    fn write(&mut self, stream: Stream, line: &[u8]) -> io::Result<()> {
        let entry = Entry { time: jiff::Timestamp::now(), stream, line: Line::new(line) };
        let mut text = serde_json::to_vec(&entry)?;
        text.push(b'\n');
        if self.size > 0 && self.size + text.len() as u64 > ROTATE_AT {
            fs::rename(current(&self.dir, STEM), previous(&self.dir, STEM))?;
            self.file = append(&current(&self.dir, STEM))?;
            self.size = 0;
        }
        self.file.write_all(&text)?;
        self.size += text.len() as u64;
        Ok(())
    }
}

pub(crate) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Cuts what arrives into lines.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Takes the next bytes and writes the lines they complete.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        stream: Stream,
        log: &mut LogWriter,
    ) -> io::Result<()> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= MAX_LINE {
                log.write(stream, &self.partial)?;
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// Writes what is left when the stream ends without a line feed.
    pub(crate) fn finish(&mut self, stream: Stream, log: &mut LogWriter) -> io::Result<()> {
        if !self.partial.is_empty() {
            log.write(stream, &self.partial)?;
            self.partial.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(entries: &[Entry]) -> Vec<Vec<u8>> {
        entries.iter().map(|entry| entry.line.bytes()).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path()).unwrap();
        let mut splitter = LineSplitter::default();
        let mut reader = super::reader(dir.path());
        splitter.push(b"one\ntw", Stream::Stdout, &mut log).unwrap();
        assert_eq!(texts(&reader.read_new().unwrap()), [b"one\n".to_vec()]);
        splitter.push(b"o\n\xff\n", Stream::Stdout, &mut log).unwrap();
        splitter.push(b"end", Stream::Stdout, &mut log).unwrap();
        splitter.finish(Stream::Stdout, &mut log).unwrap();
        assert_eq!(
            texts(&reader.read_new().unwrap()),
            [b"two\n".to_vec(), b"\xff\n".to_vec(), b"end".to_vec()]
        );
        assert!(reader.read_new().unwrap().is_empty());
    }

    #[test]
    fn a_reader_follows_the_log_over_its_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path()).unwrap();
        let mut reader = super::reader(dir.path());
        log.write(Stream::Stdout, b"first\n").unwrap();
        assert_eq!(reader.read_new().unwrap().len(), 1);
        log.write(Stream::Stdout, b"second\n").unwrap();
        log.size = ROTATE_AT;
        log.write(Stream::Stderr, b"third\n").unwrap();
        assert_eq!(texts(&reader.read_new().unwrap()), [b"second\n".to_vec(), b"third\n".to_vec()]);
        assert_eq!(super::reader(dir.path()).read_new().unwrap().len(), 3);
    }

    #[test]
    fn long_lines_are_cut_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path()).unwrap();
        let long = vec![b'x'; MAX_LINE * 2 + 10];
        let mut splitter = LineSplitter::default();
        for chunk in long.chunks(1000) {
            splitter.push(chunk, Stream::Stdout, &mut log).unwrap();
        }
        splitter.finish(Stream::Stdout, &mut log).unwrap();
        let entries = super::reader(dir.path()).read_new().unwrap();
        assert_eq!(texts(&entries).concat(), long);
    }
}
