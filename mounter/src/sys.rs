//! The one system call that needs `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};

/// Room for what a server tells of itself.
pub(crate) const TEXT: usize = 8192;

/// Asks the server of a mount for its counters. A number nobody else uses on files and directories: `m`, 0x1c.
pub(crate) const STATS: Opcode = opcode::read::<[u8; TEXT]>(b'm', 0x1c);

/// The text with which the server of the mount that `fd` is on answers [`STATS`].
pub(crate) fn stats_text(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut text = [0; TEXT];
    // SAFETY: by its number the call writes at most the bytes of `text`, which is what the kernel allows a FUSE server (it
    // copies the answer itself); other drivers that know the number by accident keep to it too, since it says the size.
    unsafe { rustix::ioctl::ioctl(fd, Updater::<STATS, [u8; TEXT]>::new(&mut text)) }?;
    let len = text.iter().position(|&byte| byte == 0).unwrap_or(TEXT);
    Ok(text[..len].to_vec())
}
