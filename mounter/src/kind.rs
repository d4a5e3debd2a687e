//! The seven kinds of file, and what each is called by stat(2) and by FUSE.

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
    Block,
    Char,
    Fifo,
    Socket,
}

impl Kind {
    /// The kind in a stat(2) mode; `None` for bits no file has.
    pub(crate) fn from_mode(mode: u32) -> Option<Kind> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFREG => Kind::File,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFBLK => Kind::Block,
            libc::S_IFCHR => Kind::Char,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            _ => return None,
        })
    }

    /// The kind as rustix names it, for mknod.
    pub(crate) fn file_type(self) -> rustix::fs::FileType {
        use rustix::fs::FileType;
        match self {
            Kind::Directory => FileType::Directory,
            Kind::File => FileType::RegularFile,
            Kind::Symlink => FileType::Symlink,
            Kind::Block => FileType::BlockDevice,
            Kind::Char => FileType::CharacterDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
        }
    }

    pub(crate) fn fuse(self) -> fuser::FileType {
        use fuser::FileType;
        match self {
            Kind::Directory => FileType::Directory,
            Kind::File => FileType::RegularFile,
            Kind::Symlink => FileType::Symlink,
            Kind::Block => FileType::BlockDevice,
            Kind::Char => FileType::CharDevice,
            Kind::Fifo => FileType::NamedPipe,
            Kind::Socket => FileType::Socket,
        }
    }
}
