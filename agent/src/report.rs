//! What a supervisor tells the command that started it: JSON lines through a pipe.
//!
//! First [`Report::Started`] (or at once [`Report::Ended`] with a failure), later [`Report::Ended`]. The end of
//! the pipe without it means that the supervisor died.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::status::{Failure, Status};

/// One message.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// The program runs.
    Started(Status),
    /// The program ended, or could not be started; nothing of the job is left but its folder.
    Ended(Status),
}

/// The one message of a mount's server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountReport {
    /// The mount can be used, here.
    Ready(PathBuf),
    /// It could not be mounted.
    Failed(Failure),
}

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct Reporter {
    pipe: Option<File>,
    started: bool,
}

impl Reporter {
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(File::from(pipe)), started: false }
    }

    /// A copy of the pipe, which tells whether the command is there.
    pub(crate) fn pipe(&self) -> Option<OwnedFd> {
        self.pipe.as_ref()?.try_clone().ok().map(OwnedFd::from)
    }

    /// Says that the program runs: the first time only, as a command that is stopped itself reads nothing, and the pipe
    /// must not fill up while the job is started again and again.
    pub(crate) fn send_started(&mut self, status: &Status) {
        if !std::mem::replace(&mut self.started, true) {
            self.send(&Report::Started(status.clone()));
        }
    }

    /// Sends a message; a command that is gone is no longer interested.
    pub(crate) fn send(&mut self, report: &impl Serialize) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut line = serde_json::to_vec(report).unwrap_or_default();
        line.push(b'\n');
        if pipe.write_all(&line).is_err() {
            self.pipe = None;
        }
    }
}

/// The command's end.
#[derive(Debug)]
pub(crate) struct Reports(BufReader<File>);

impl Reports {
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self(BufReader::new(File::from(pipe)))
    }

    /// The next message; `None` if the supervisor died.
    pub(crate) fn next<R: DeserializeOwned>(&mut self) -> io::Result<Option<R>> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }
}

impl AsFd for Reports {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
