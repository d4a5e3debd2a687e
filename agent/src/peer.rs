//! A command's connection to a supervisor.

use std::os::fd::{BorrowedFd, OwnedFd};

use mica_launcher::{Program, message};

use crate::control::Reply;

/// A command that is connected.
pub(crate) struct Peer {
    pub(crate) id: u64,
    pub(crate) socket: OwnedFd,
    /// What it runs in the job.
    pub(crate) program: Option<Program>,
    /// It wants to know of the job's end.
    pub(crate) attached: bool,
    /// It has asked for something.
    pub(crate) heard: bool,
    pub(crate) gone: bool,
    /// The job is paused while it is there.
    pub(crate) holds: bool,
}

impl Peer {
    pub(crate) fn new(id: u64, socket: OwnedFd) -> Self {
        Self { id, socket, program: None, attached: false, heard: false, gone: false, holds: false }
    }

    /// A command that is gone is no longer interested.
    pub(crate) fn say(&self, reply: &Reply, descriptor: Option<BorrowedFd<'_>>) {
        if let Err(error) = message::send(&self.socket, reply, descriptor.as_slice()) {
            tracing::debug!(%error, "a command has gone");
        }
    }
}
