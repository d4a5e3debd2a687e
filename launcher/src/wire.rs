//! What the launcher and a job's init say to each other.
//!
//! Two kinds of sockets, both `SOCK_SEQPACKET` pairs, so that one message is one call and a dead peer is an end of file:
//!
//! - *control*, one per job, from the launcher to the init: [`Command`]s. Its end of file ends the job.
//! - *report*, one per program (the job's own and each later one), from the init to the launcher: [`Report`]s.
//!
//! Larger things (the plan, a program with its environment) travel as sealed memory files.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};
use rustix::process::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::process::Process;
use crate::step::Step;

/// The init's `argv[0]`; the four that follow are descriptor numbers.
pub(crate) const INIT_NAME: &str = "mica-job-init";

/// What the init is started with, in a memory file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) steps: Vec<Step>,
    pub(crate) process: Process,
    pub(crate) stdio: Streams,
    /// The job has its own process namespace, so its end is the end of all its processes.
    pub(crate) own_pids: bool,
    /// Kill the init when the thread that started it ends.
    pub(crate) die_with_parent: bool,
}

/// The standard streams of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Streams {
    /// Three descriptors are passed.
    Given,
    /// A new terminal; its other end is reported.
    Terminal { rows: u16, columns: u16 },
}

/// From the launcher to the init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Start a further program. Descriptors: the [`Process`] in a memory file, its report socket, three streams if given.
    Exec(Streams),
    /// Send a signal to the job's own program.
    Signal(i32),
}

/// From the init to the launcher, about one program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Sent by the program's own process before the exec, so that the kernel tells the launcher its pid.
    Born,
    /// The other end of its terminal, as a descriptor.
    Terminal,
    /// Something the caller should know.
    Warning(String),
    /// The program runs.
    Started,
    /// The program doesn't run.
    Failed(Failure),
    /// It ended by itself.
    Exited(i32),
    /// A signal ended it.
    Killed(i32),
}

/// Why a program doesn't run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What could not be done, after "cannot".
    pub(crate) what: String,
    pub(crate) errno: i32,
    /// It was the exec itself.
    pub(crate) exec: bool,
}

/// A message as it came.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Who sent it, if the socket asks for that.
    pub(crate) sender: Option<Pid>,
}

/// Both ends of a new socket pair.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The launcher's end and the init's end of a report socket.
pub(crate) fn report_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pair()?;
    sockopt::set_socket_passcred(&ours, true)?;
    Ok((ours, theirs))
}

/// Sends a message with descriptors.
pub(crate) fn send<T: Serialize>(
    to: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

const LONGEST: usize = 16 << 10;

/// Waits for a message; `None` when the other side is gone.
pub(crate) fn receive(from: impl AsFd, flags: RecvFlags) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(
            &from,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            flags | RecvFlags::CMSG_CLOEXEC,
        )
    });
    let received = match received {
        Ok(received) => received,
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut message = Message::default();
    for part in ancillary.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(descriptors) => message.descriptors.extend(descriptors),
            RecvAncillaryMessage::ScmCredentials(sender) => message.sender = Some(sender.pid),
            _ => {}
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(received.bytes);
    message.bytes = bytes;
    Ok(Some(message))
}

/// Puts a value into a memory file.
pub(crate) fn to_memory<T: Serialize>(name: &str, value: &T) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    file.rewind()?;
    Ok(file.into())
}

/// Takes a value out of a memory file.
pub(crate) fn from_memory<T: DeserializeOwned>(file: OwnedFd) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
