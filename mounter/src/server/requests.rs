//! The requests, one after the other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::common::{drops_set_id, negotiate, reply};
use super::convert::{bare_attr, errno, file_attr, set_time, unpack_device};
use super::{KEEP, Server};
use crate::kind::Kind;
use crate::stats::Op;
use crate::sys::STATS;
use crate::tree::{Change, End, New};

/// `FS_IOC_GETFLAGS` and `FS_IOC_FSGETXATTR` of <linux/fs.h>.
const GETFLAGS: u32 = 0x8008_6601;
const FSGETXATTR: u32 = 0x801c_581f;

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if negotiate(config, self.passthrough && self.tree().is_writable()) {
            self.shared.backings.allow();
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.run(request, Op::Lookup, reply, |reply| {
            let found = self.node(parent).and_then(|dir| self.tree().lookup(&dir, name.as_bytes()));
            match found {
                Ok(Some(seen)) => self.send_entry(reply, Ok(seen)),
                // Inode 0 is "no such file, and you may remember that".
                Ok(None) => reply.entry(&KEEP, &bare_attr(0, Kind::File), Generation(0)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn forget(&self, request: &Request, ino: INodeNo, nlookup: u64) {
        self.run(request, Op::Forget, (), |()| self.tree().forget(ino.0, nlookup));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.run(request, Op::Getattr, reply, |reply| {
            let attr = self.node(ino).and_then(|node| self.tree().attr(&node));
            reply!(reply, attr, attr => reply.attr(self.shared.keep(ino.0), &file_attr(&attr)));
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.run(request, Op::Setattr, reply, |reply| {
            let change = Change {
                mode,
                uid,
                gid,
                size,
                atime: atime.map(set_time),
                mtime: mtime.map(set_time),
                drop_set_id: drops_set_id(request),
            };
            reply!(reply, self.node(ino), node => {
                let resized = change.size.is_some();
                self.pass(Op::Setattr, node, resized, reply, move |shared, node, reply| {
                    let attr = shared.tree.set_attr(node, &change);
                    reply!(reply, attr, attr => reply.attr(shared.keep(ino.0), &file_attr(&attr)));
                });
            });
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.run(request, Op::Readlink, reply, |reply| {
            let target = self.node(ino).and_then(|node| self.tree().read_link(&node));
            reply!(reply, target, target => reply.data(&target));
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.run(request, Op::Mknod, reply, |reply| {
            let made = match Kind::from_mode(mode) {
                Some(Kind::Directory | Kind::Symlink) | None => Err(rustix::io::Errno::INVAL),
                Some(kind) => {
                    let new = New::Node { kind, mode, rdev: unpack_device(rdev) };
                    self.make(request, parent, name, new)
                }
            };
            self.send_entry(reply, made);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.run(request, Op::Mkdir, reply, |reply| {
            self.send_entry(reply, self.make(request, parent, name, New::Directory { mode }));
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run(request, Op::Unlink, reply, |reply| {
            let done = self.node(parent).and_then(|dir| self.tree().unlink(&dir, name.as_bytes()));
            reply!(reply, done, () => reply.ok());
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run(request, Op::Rmdir, reply, |reply| {
            let done = self.node(parent).and_then(|dir| self.tree().rmdir(&dir, name.as_bytes()));
            reply!(reply, done, () => reply.ok());
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.run(request, Op::Symlink, reply, |reply| {
            let new = New::Symlink { target: target.as_os_str().as_bytes() };
            self.send_entry(reply, self.make(request, parent, name, new));
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.run(request, Op::Rename, reply, |reply| {
            let rename = || {
                let (from, to) = (self.node(parent)?, self.node(newparent)?);
                let from = End { dir: &from, name: name.as_bytes() };
                let to = End { dir: &to, name: newname.as_bytes() };
                let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits() as _);
                self.tree().rename(from, to, flags)
            };
            reply!(reply, rename(), () => reply.ok());
        });
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.run(request, Op::Link, reply, |reply| {
            let link = || {
                let (node, dir) = (self.node(ino)?, self.node(newparent)?);
                self.tree().link(&node, &dir, newname.as_bytes())
            };
            self.send_entry(reply, link());
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.run(request, Op::Open, reply, |reply| self.open_file(request, ino, flags, reply));
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(request, Op::Read, reply, |reply| {
            // The reply is sent from inside, straight from the block cache; what is left then is for errors.
            let mut reply = Some(reply);
            let read = self.node(ino).and_then(|node| {
                let range = offset..offset.saturating_add(size.into());
                self.shared.pusher.before_read(self.tree(), &node, range);
                let keep_atime = flags.0 & libc::O_NOATIME != 0;
                self.tree().read(&node, offset, size as usize, keep_atime, |bytes| {
                    if let Some(reply) = reply.take() {
                        reply.data(bytes);
                    }
                })
            });
            if let (Err(error), Some(reply)) = (read, reply) {
                reply.error(errno(error));
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.run(request, Op::Write, reply, |reply| {
            let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let written =
                self.node(ino).and_then(|node| self.tree().write(&node, offset, data, kill));
            reply!(reply, written, written => reply.written(written as u32));
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS); // writes are complete when they are answered
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.run(request, Op::Release, reply, |reply| {
            self.shared.backings.close(ino.0);
            if let Ok(node) = self.node(ino) {
                self.tree().release(&node);
            }
            reply.ok();
        });
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _: FileHandle, data: bool, reply: ReplyEmpty) {
        self.run(request, Op::Fsync, reply, |reply| {
            let synced = self.node(ino).and_then(|node| self.tree().sync(&node, data));
            reply!(reply, synced, () => reply.ok());
        });
    }

    fn opendir(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Asked once, then the kernel opens directories by itself, and keeps their names until they are changed.
        self.run(request, Op::Opendir, reply, |reply| reply.error(Errno::ENOSYS));
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.run(request, Op::Readdir, reply, |reply| self.list(reply, ino, offset));
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.run(request, Op::Readdirplus, reply, |reply| self.list_plus(reply, ino, offset));
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        data: bool,
        reply: ReplyEmpty,
    ) {
        self.run(request, Op::Fsyncdir, reply, |reply| {
            let synced = self.node(ino).and_then(|node| self.tree().sync(&node, data));
            reply!(reply, synced, () => reply.ok());
        });
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.run(request, Op::Statfs, reply, |reply| {
            reply!(reply, self.tree().space(), s => reply.statfs(
                s.blocks, s.free, s.available, s.files, s.free_files, s.block_size, 255, s.block_size,
            ));
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.run(request, Op::Setxattr, reply, |reply| {
            let flags = rustix::fs::XattrFlags::from_bits_retain(flags as _);
            let set = self
                .node(ino)
                .and_then(|node| self.tree().set_xattr(&node, name.as_bytes(), value, flags));
            reply!(reply, set, () => reply.ok());
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.run(request, Op::Getxattr, reply, |reply| {
            if !self.tree().has_xattrs() {
                return reply.error(Errno::ENOSYS);
            }
            let value =
                self.node(ino).and_then(|node| self.tree().get_xattr(&node, name.as_bytes()));
            Self::xattr_reply(reply, size, value);
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.run(request, Op::Listxattr, reply, |reply| {
            if !self.tree().has_xattrs() {
                return reply.error(Errno::ENOSYS);
            }
            let names = self.node(ino).and_then(|node| self.tree().list_xattrs(&node));
            Self::xattr_reply(reply, size, names);
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.run(request, Op::Removexattr, reply, |reply| {
            let removed =
                self.node(ino).and_then(|node| self.tree().remove_xattr(&node, name.as_bytes()));
            reply!(reply, removed, () => reply.ok());
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.run(request, Op::Create, reply, |reply| {
            self.create_file(request, parent, name, mode, reply)
        });
    }

    fn ioctl(
        &self,
        request: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.run(request, Op::Ioctl, reply, |reply| match cmd {
            STATS => reply.ioctl(0, self.shared.stats().text().as_bytes()),
            // No file has flags (lsattr).
            GETFLAGS => reply.ioctl(0, &0_u32.to_ne_bytes()),
            FSGETXATTR => reply.ioctl(0, &[0; 28]),
            _ => reply.error(Errno::ENOTTY),
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.run(request, Op::Fallocate, reply, |reply| {
            let mode = rustix::fs::FallocateFlags::from_bits_retain(mode as _);
            let takes = drops_set_id(request);
            let done = self
                .node(ino)
                .and_then(|node| self.tree().allocate(&node, mode, (offset, length), takes));
            reply!(reply, done, () => reply.ok());
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.run(request, Op::Lseek, reply, |reply| {
            let seek = || {
                let offset = u64::try_from(offset).map_err(|_| rustix::io::Errno::NXIO)?;
                let hole = match whence {
                    libc::SEEK_DATA => false,
                    libc::SEEK_HOLE => true,
                    _ => return Err(rustix::io::Errno::INVAL),
                };
                self.tree().seek(&self.node(ino)?, offset, hole)
            };
            reply!(reply, seek(), offset => reply.offset(offset as i64));
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.run(request, Op::CopyFileRange, reply, |reply| {
            let copy = || {
                let (from, to) = (self.node(ino_in)?, self.node(ino_out)?);
                let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
                let (from, to) = ((&from, offset_in), (&to, offset_out));
                self.tree().copy_range(from, to, len, drops_set_id(request))
            };
            reply!(reply, copy(), copied => reply.written(copied as u32));
        });
    }
}
