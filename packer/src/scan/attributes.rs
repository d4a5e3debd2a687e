//! Extended attributes of the input.

use std::os::fd::{AsRawFd, BorrowedFd};

use mica_squashfs::write::Attribute;
use rustix::io::Errno;

/// Reads attributes of entries of open directories; keeps its buffers between entries.
pub(super) struct AttributeReader {
    path: Vec<u8>,
    names: Vec<u8>,
    value: Vec<u8>,
}

/// Linux's limit for one value and for one list of names.
const LONGEST: usize = 65536;

impl AttributeReader {
    pub(super) fn new() -> Self {
        Self { path: Vec::new(), names: vec![0; LONGEST], value: vec![0; LONGEST] }
    }

    /// The attributes of `name` in `dir`, never those of what a symlink points to.
    pub(super) fn read(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> rustix::io::Result<Vec<Attribute>> {
        // There is no listxattrat before Linux 6.13, and symlinks cannot be opened.
        self.path.clear();
        self.path.extend_from_slice(format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes());
        self.path.extend_from_slice(name);
        let length = match rustix::fs::llistxattr(&*self.path, &mut self.names[..]) {
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
            Ok(length) => length,
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for name in self.names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
            match rustix::fs::lgetxattr(&*self.path, name, &mut self.value[..]) {
                Ok(length) => found
                    .push(Attribute { name: name.to_vec(), value: self.value[..length].to_vec() }),
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
        found.sort();
        Ok(found)
    }
}

/// What a POSIX access control list, as Linux stores it, gives the owning group: the mask, which
/// stands in the mode in the group's place, limits it.
pub(super) fn group_permissions(list: &[u8]) -> Option<u32> {
    const GROUP_OBJ: u16 = 0x04;
    const MASK: u16 = 0x10;
    // include/uapi/linux/posix_acl_xattr.h: a version (u32), then tag (u16), permissions (u16) and id (u32) of each.
    let entries = list.strip_prefix(&2_u32.to_le_bytes())?;
    let permissions = |wanted: u16| {
        entries
            .chunks_exact(8)
            .find(|entry| entry[..2] == wanted.to_le_bytes())
            .map(|entry| entry[2])
    };
    Some(u32::from(permissions(GROUP_OBJ)? & permissions(MASK).unwrap_or(0o7) & 0o7))
}
