//! Extended attributes. The overlay's own are neither shown nor set.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::node::{LowerPart, Node};
use super::{Res, Tree};
use crate::upper::{is_private, proc_path};

/// Access control lists: the kernel doesn't enforce them on this mount, so none can be set.
fn is_system(name: &[u8]) -> bool {
    name.starts_with(b"system.")
}

/// Largest value of an attribute (`XATTR_SIZE_MAX`), and largest list of names.
const VALUE_MAX: usize = 64 << 10;

/// Where a node that is not in the upper is.
fn lower_part(node: &Node) -> Res<LowerPart> {
    let part = node.state().lower;
    part.or_else(|| node.lowers().parts.first().copied()).ok_or(Errno::IO)
}

/// The value of an attribute of the upper.
fn value_of(fd: &OwnedFd, name: &[u8]) -> Res<Vec<u8>> {
    let path = proc_path(fd);
    // Most are short.
    let mut value = vec![0; 256];
    let len = match rustix::fs::getxattr(&*path, name, &mut value) {
        Err(Errno::RANGE) => {
            value.resize(VALUE_MAX, 0);
            rustix::fs::getxattr(&*path, name, &mut value)?
        }
        len => len?,
    };
    value.truncate(len);
    Ok(value)
}

impl Tree {
    /// Whether any file can have attributes.
    pub(crate) fn has_xattrs(&self) -> bool {
        self.upper.is_some() || self.lower.has_xattrs
    }

    pub(crate) fn get_xattr(&self, node: &Arc<Node>, name: &[u8]) -> Res<Arc<Vec<u8>>> {
        if is_system(name) {
            return Err(Errno::OPNOTSUPP);
        }
        if is_private(name) {
            return Err(Errno::NODATA);
        }
        self.look(|| self.get_xattr_locked(node, name))
    }

    fn get_xattr_locked(&self, node: &Arc<Node>, name: &[u8]) -> Res<Arc<Vec<u8>>> {
        if !node.in_upper() {
            let found = self.lower.xattr(lower_part(node)?, name);
            return found.map_err(|error| self.damaged(node, &error))?.ok_or(Errno::NODATA);
        }
        let fd = self.path_fd(node)?;
        self.upper()?.allowed(&fd, || value_of(&fd, name)).map(Arc::new)
    }

    /// All names, each ended by a zero byte.
    pub(crate) fn list_xattrs(&self, node: &Arc<Node>) -> Res<Vec<u8>> {
        self.look(|| self.list_xattrs_locked(node))
    }

    fn list_xattrs_locked(&self, node: &Arc<Node>) -> Res<Vec<u8>> {
        let mut names = Vec::new();
        let mut add = |name: &[u8]| {
            if !name.is_empty() && !is_private(name) {
                names.extend_from_slice(name);
                names.push(0);
            }
        };
        if !node.in_upper() {
            let keys = self.lower.xattr_keys(lower_part(node)?);
            let keys = keys.map_err(|error| self.damaged(node, &error))?;
            keys.iter().for_each(|key| add(&key.name));
            return Ok(names);
        }
        let fd = self.path_fd(node)?;
        let path = proc_path(&fd);
        let mut list = vec![0; VALUE_MAX];
        let len = match rustix::fs::listxattr(&*path, &mut list) {
            Err(Errno::OPNOTSUPP) => 0,
            result => result?,
        };
        list[..len].split(|&byte| byte == 0).for_each(add);
        Ok(names)
    }

    pub(crate) fn set_xattr(
        &self,
        node: &Arc<Node>,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Res<()> {
        if is_system(name) {
            return Err(Errno::OPNOTSUPP);
        }
        if is_private(name) {
            return Err(Errno::PERM);
        }
        self.bring_up(node, false)?;
        self.look(|| {
            let fd = self.path_fd(node)?;
            let set = || rustix::fs::setxattr(proc_path(&fd), name, value, flags);
            self.upper()?.allowed(&fd, set)
        })
    }

    pub(crate) fn remove_xattr(&self, node: &Arc<Node>, name: &[u8]) -> Res<()> {
        if is_private(name) {
            return Err(Errno::NODATA);
        }
        self.get_xattr(node, name)?; // no copy for nothing
        self.bring_up(node, false)?;
        self.look(|| {
            let fd = self.path_fd(node)?;
            self.upper()?.allowed(&fd, || rustix::fs::removexattr(proc_path(&fd), name))
        })
    }
}
