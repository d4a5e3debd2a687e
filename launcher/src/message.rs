//! Messages with descriptors over `SOCK_SEQPACKET` sockets: one message is one call, and a dead peer is an end of file.
//!
//! Larger things (a plan, a program with its environment) travel beside a message as memory files.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};
use rustix::process::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message as it came.
#[derive(Debug, Default)]
pub struct Message {
    /// Its text.
    pub bytes: Vec<u8>,
    /// What was passed with it.
    pub descriptors: Vec<OwnedFd>,
    /// Who sent it, if the socket asks for that.
    pub sender: Option<Pid>,
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
///
/// # Errors
/// The other side is gone, or there are too many descriptors.
pub fn send<T: Serialize>(
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
///
/// # Errors
/// The socket can't be read.
pub fn receive(from: impl AsFd, flags: RecvFlags) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let received = recvmsg(
            &from,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            flags | RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            // The other side is gone and hasn't read all we said: told once, before what it said itself, which comes next.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            received => break received?,
        }
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
///
/// # Errors
/// No memory, or no more descriptors.
pub fn to_memory<T: Serialize>(name: &str, value: &T) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    file.rewind()?;
    Ok(file.into())
}

/// Takes a value out of a memory file.
///
/// # Errors
/// It holds something else.
pub fn from_memory<T: DeserializeOwned>(file: OwnedFd) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_one_who_did_not_listen_are_heard() {
        let (ours, theirs) = pair().unwrap();
        send(&ours, &"unheard", &[]).unwrap();
        send(&theirs, &"last", &[]).unwrap();
        drop(theirs);
        let message = receive(&ours, RecvFlags::empty()).unwrap();
        assert_eq!(message.unwrap().bytes, br#""last""#);
        assert!(receive(&ours, RecvFlags::empty()).unwrap().is_none());
    }
}
