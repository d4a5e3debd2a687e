//! The host's journal as a job's log: journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), one datagram an entry.
//!
//! Written here: what the crates for it bring along is a hundred times these lines.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::files::{FileError, at};
use crate::logs::Stream;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// A journal that is busy for so long gets no entry; the next one tells of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    /// The fields that all entries have, encoded.
    fields: Vec<u8>,
    /// It was busy just now, and isn't asked.
    busy_until: Option<Instant>,
}

impl Journal {
    pub(crate) fn connect(fields: &[(&str, &str)]) -> Result<Self, FileError> {
        Self::at(Path::new(SOCKET), fields)
    }

    fn at(path: &Path, fields: &[(&str, &str)]) -> Result<Self, FileError> {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.connect(path)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = connect().map_err(at("connect to the journal at", path))?;
        let mut encoded = Vec::new();
        fields.iter().for_each(|(name, value)| field(&mut encoded, name, value.as_bytes()));
        Ok(Self { socket, fields: encoded, busy_until: None })
    }

    pub(crate) fn send(&mut self, stream: Stream, line: &[u8], partial: bool) -> io::Result<()> {
        if self.busy_until.is_some_and(|until| Instant::now() < until) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut entry = self.fields.clone();
        // As docker has it: errors are errors.
        let priority = if stream == Stream::Stdout { "6" } else { "3" };
        field(&mut entry, "PRIORITY", priority.as_bytes());
        if partial {
            field(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        field(&mut entry, "MESSAGE", line.strip_suffix(b"\n").unwrap_or(line));
        let sent = self.socket.send(&entry);
        let busy = sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.busy_until = busy.then(|| Instant::now() + 10 * PATIENCE);
        sent.map(drop)
    }
}

/// Text in a line; anything else with its length.
fn field(to: &mut Vec<u8>, name: &str, value: &[u8]) {
    to.extend_from_slice(name.as_bytes());
    if value.iter().any(|byte| *byte < b' ') {
        to.push(b'\n');
        to.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        to.push(b'=');
    }
    to.extend_from_slice(value);
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_as_the_journal_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(Journal::at(&path, &[]).is_err());
        let listener = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::at(&path, &[("CONTAINER_NAME", "web")]).unwrap();
        journal.send(Stream::Stdout, b"plain\n", false).unwrap();
        journal.send(Stream::Stderr, b"a\ttab", true).unwrap();
        let mut buffer = [0; 1000];
        let mut next = || {
            let count = listener.recv(&mut buffer).unwrap();
            buffer[..count].to_vec()
        };
        assert_eq!(next(), b"CONTAINER_NAME=web\nPRIORITY=6\nMESSAGE=plain\n");
        let binary = b"CONTAINER_NAME=web\nPRIORITY=3\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE\n\x05\0\0\0\0\0\0\0a\ttab\n";
        assert_eq!(next(), binary);
    }

    #[test]
    fn a_journal_that_does_not_read_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::at(&path, &[]).unwrap();
        let since = Instant::now();
        while journal.send(Stream::Stdout, b"x", false).is_ok() {
            assert!(since.elapsed() < Duration::from_secs(20));
        }
        (0..1000).for_each(|_| drop(journal.send(Stream::Stdout, b"x", false)));
        assert!(since.elapsed() < Duration::from_secs(20));
    }
}
