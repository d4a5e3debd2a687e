//! What jobs print: JSON lines with stream and time, in files of bounded number and size; or the host's journal.
//!
//! `log.jsonl` grows to its largest size and then becomes `log.1.jsonl`, that one `log.2.jsonl`, and so on; of what is dropped
//! at the end `log.dropped` says how much it was. A line is written with one `write(2)`, so a reader sees whole lines or the
//! beginning of the last one, never a mixture. Lines of more than 16 KiB are written in parts, as docker does; all but the
//! last say that they go on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::config::{LogConfig, LogDriver};
use crate::files::{FileError, at};
use crate::journal::Journal;
use crate::lines::{JsonLines, aside, current};

/// Longest entry; longer lines are written in parts.
const MAX_PART: usize = 16 << 10;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The supervisor, about the log itself.
    Notice,
}

/// One line of a job's output, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was read from the job, RFC 3339.
    pub time: jiff::Timestamp,
    /// Where it came from.
    pub stream: Stream,
    /// The line goes on in the next entry of the stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
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

/// How many bytes of the log in the job's folder `dir` were dropped to keep it within its size.
pub fn dropped(dir: &Path) -> u64 {
    let text = fs::read_to_string(dir.join("log.dropped")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The writing end, in the supervisor.
#[derive(Debug)]
pub(crate) struct LogWriter {
    to: Target,
    /// Lines that could not be written, and why not, since that was last said.
    lost: Option<(u64, String)>,
}

#[derive(Debug)]
enum Target {
    Nowhere,
    Journal(Journal),
    Files(Files),
}

#[derive(Debug)]
struct Files {
    dir: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    max_file: u32,
}

impl LogWriter {
    pub(crate) fn open(
        dir: &Path,
        log: &LogConfig,
        job: &[(&str, &str)],
    ) -> Result<Self, FileError> {
        let to = match log.driver {
            LogDriver::None => Target::Nowhere,
            LogDriver::Journald => Target::Journal(Journal::connect(job)?),
            LogDriver::JsonFile => {
                let path = current(dir, STEM);
                let file = append(&path).map_err(at("open", &path))?;
                let size = file.metadata().map_err(at("stat", &path))?.len();
                let dir = dir.to_owned();
                // A limit of the caller's on the size of files only makes them smaller.
                let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
                let max_size = log.max_size.min(limit.unwrap_or(u64::MAX)).max(1);
                Target::Files(Files { dir, file, size, max_size, max_file: log.max_file })
            }
        };
        Ok(Self { to, lost: None })
    }

    fn write(&mut self, stream: Stream, line: &[u8], partial: bool) -> io::Result<()> {
        if let Some((count, why)) = self.lost.take() {
            let text = format!("{count} entries of output could not be written here: {why}\n");
            if let Err(error) = self.put(Stream::Notice, text.as_bytes(), false) {
                self.lost = Some((count + 1, error.to_string()));
                return Ok(());
            }
        }
        let written = self.put(stream, line, partial);
        if let Err(error) = written {
            // Said once, and in the log itself when that can be written again.
            self.lost = Some((1, error.to_string()));
            return Err(error);
        }
        Ok(())
    }

    fn put(&mut self, stream: Stream, line: &[u8], partial: bool) -> io::Result<()> {
        match &mut self.to {
            Target::Nowhere => Ok(()),
            Target::Journal(journal) => journal.send(stream, line, partial),
            Target::Files(files) => {
                let (time, line) = (jiff::Timestamp::now(), Line::new(line));
                files.append(&Entry { time, stream, partial, line })
            }
        }
    }
}

impl Files {
    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let mut text = serde_json::to_vec(entry)?;
        text.push(b'\n');
        if self.size > 0 && self.size + text.len() as u64 > self.max_size {
            self.set_aside()?;
        }
        if let Err(error) = self.file.write_all(&text) {
            // What came of it would run into the next line.
            self.file.set_len(self.size).ok();
            return Err(error);
        }
        self.size += text.len() as u64;
        Ok(())
    }

    fn set_aside(&mut self) -> io::Result<()> {
        let path = |age| aside(&self.dir, STEM, age);
        let oldest = path(self.max_file.max(1) - 1);
        if let Ok(meta) = fs::metadata(&oldest) {
            let all = dropped(&self.dir) + meta.len();
            // That it can't be said is no reason to drop more.
            fs::write(self.dir.join("log.dropped"), all.to_string()).ok();
            fs::remove_file(&oldest)?;
        }
        for age in (1..self.max_file.max(1)).rev() {
            match fs::rename(path(age - 1), path(age)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = append(&path(0))?;
        self.size = 0;
        Ok(())
    }
}

pub(crate) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Cuts what arrives into lines, and long ones into parts.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    begun: Vec<u8>,
}

impl LineSplitter {
    /// Takes the next bytes and writes the lines they complete.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        stream: Stream,
        log: &mut LogWriter,
    ) -> io::Result<()> {
        let mut result = Ok(());
        for mut piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            while !piece.is_empty() {
                let (now, later) = piece.split_at(piece.len().min(MAX_PART - self.begun.len()));
                self.begun.extend_from_slice(now);
                piece = later;
                let whole = self.begun.ends_with(b"\n");
                if whole || self.begun.len() >= MAX_PART {
                    result = result.and(log.write(stream, &self.begun, !whole));
                    self.begun.clear();
                }
            }
        }
        result
    }

    /// Writes what is left when the stream ends without a line feed.
    pub(crate) fn finish(&mut self, stream: Stream, log: &mut LogWriter) -> io::Result<()> {
        let left = std::mem::take(&mut self.begun);
        if left.is_empty() { Ok(()) } else { log.write(stream, &left, false) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(entries: &[Entry]) -> Vec<Vec<u8>> {
        entries.iter().map(|entry| entry.line.bytes()).collect()
    }

    fn open(dir: &Path, max_size: u64, max_file: u32) -> LogWriter {
        let log = LogConfig { max_size, max_file, ..LogConfig::default() };
        LogWriter::open(dir, &log, &[]).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), 1 << 20, 2);
        let mut splitter = LineSplitter::default();
        let mut reader = super::reader(dir.path());
        assert!(reader.read_new().unwrap().is_empty());
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

    /// Whatever is set aside between two looks, a reader that is fast enough sees every entry once and in order; what was
    /// dropped is told.
    #[test]
    fn a_reader_follows_the_log_over_its_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), 1000, 4);
        let mut reader = super::reader(dir.path());
        let (mut written, mut seen) = (Vec::new(), Vec::new());
        for round in 0..60_usize {
            for number in 0..(round * 7) % 23 {
                let text = format!("{round} {number}\n").into_bytes();
                log.write(Stream::Stdout, &text, false).unwrap();
                written.push(text);
            }
            seen.extend(texts(&reader.read_new().unwrap()));
        }
        assert_eq!(seen, written);
        let left = texts(&super::reader(dir.path()).read_new().unwrap());
        assert!(written.ends_with(&left) && left.len() > 30, "{}", left.len());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5, "four files, and a number");
        let entry = fs::metadata(current(dir.path(), STEM)).unwrap().len();
        assert!(dropped(dir.path()) > 3 * entry);
    }

    #[test]
    fn long_lines_are_written_in_parts_that_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), 1 << 20, 2);
        let mut long = vec![b'x'; MAX_PART * 2 + 10];
        long.push(b'\n');
        let mut splitter = LineSplitter::default();
        for chunk in long.chunks(1000) {
            splitter.push(chunk, Stream::Stdout, &mut log).unwrap();
        }
        splitter.push(b"next\n", Stream::Stdout, &mut log).unwrap();
        splitter.finish(Stream::Stdout, &mut log).unwrap();
        let entries = super::reader(dir.path()).read_new().unwrap();
        let partial: Vec<bool> = entries.iter().map(|entry| entry.partial).collect();
        assert_eq!(partial, [true, true, false, false]);
        assert_eq!(texts(&entries[..3]).concat(), long);
    }

    #[test]
    fn a_log_that_could_not_be_written_says_so_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), 1 << 20, 2);
        let Target::Files(files) = &mut log.to else { panic!() };
        let file = std::mem::replace(
            &mut files.file,
            File::options().write(true).open("/dev/full").unwrap(),
        );
        log.write(Stream::Stdout, b"lost\n", false).unwrap_err();
        log.write(Stream::Stdout, b"lost too\n", false).unwrap();
        let Target::Files(files) = &mut log.to else { panic!() };
        files.file = file;
        log.write(Stream::Stdout, b"kept\n", false).unwrap();
        let entries = super::reader(dir.path()).read_new().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].stream, Stream::Notice);
        let text = String::from_utf8(entries[0].line.bytes()).unwrap();
        assert!(text.starts_with("2 entries") && text.contains("No space"), "{text}");
    }
}
