//! Extended attributes. The overlay's own are neither shown nor set.

use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::node::Node;
use super::{Res, Tree};
use crate::upper::{is_private, proc_path};

/// Access control lists: the kernel doesn't enforce them on this mount, so none can be set.
fn is_system(name: &[u8]) -> bool {
    name.starts_with(b"system.")
}

impl Tree {
    /// Whether any file can have attributes.
    pub(crate) fn has_xattrs(&self) -> bool {
        self.upper.is_some() || self.lower.has_xattrs
    }

    pub(crate) fn get_xattr(&self, node: &Arc<Node>, name: &[u8]) -> Res<Vec<u8>> {
        if is_system(name) {
            return Err(Errno::OPNOTSUPP);
        }
        if is_private(name) {
            return Err(Errno::NODATA);
        }
        let _looking = self.shared();
        if !node.in_upper() {
            let all = self.lower_xattrs(node)?;
            let found = all.into_iter().find(|(n, _)| n == name);
            return found.map(|(_, value)| value).ok_or(Errno::NODATA);
        }
        let fd = self.path_fd(node)?;
        let path = proc_path(&fd);
        let mut value = vec![0; 256];
        loop {
            match rustix::fs::getxattr(&*path, name, &mut value) {
                Ok(len) => {
                    value.truncate(len);
                    return Ok(value);
                }
                Err(Errno::RANGE) => {
                    let mut none: [u8; 0] = [];
                    let len = rustix::fs::getxattr(&*path, name, &mut none[..])?;
                    value.resize(len, 0);
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    /// All names, each ended by a zero byte.
    pub(crate) fn list_xattrs(&self, node: &Arc<Node>) -> Res<Vec<u8>> {
        let _looking = self.shared();
        let mut names = Vec::new();
        let mut add = |name: &[u8]| {
            if !name.is_empty() && !is_private(name) {
                names.extend_from_slice(name);
                names.push(0);
            }
        };
        if !node.in_upper() {
            self.lower_xattrs(node)?.iter().for_each(|(name, _)| add(name));
            return Ok(names);
        }
        let fd = self.path_fd(node)?;
        let path = proc_path(&fd);
        let mut list = vec![0; 64 << 10]; // XATTR_LIST_MAX
        let len = match rustix::fs::listxattr(&*path, &mut list) {
            Err(Errno::OPNOTSUPP) => 0,
            result => result?,
        };
        list[..len].split(|&byte| byte == 0).for_each(add);
        Ok(names)
    }

    fn lower_xattrs(&self, node: &Arc<Node>) -> Res<Vec<(Vec<u8>, Vec<u8>)>> {
        let lowers = node.lowers();
        let part = node.state().lower.or_else(|| lowers.parts.first().copied());
        self.lower.xattrs(part.ok_or(Errno::IO)?).map_err(|error| self.damaged(node, &error))
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
        let _looking = self.shared();
        let fd = self.path_fd(node)?;
        rustix::fs::setxattr(proc_path(&fd), name, value, flags)
    }

    pub(crate) fn remove_xattr(&self, node: &Arc<Node>, name: &[u8]) -> Res<()> {
        if is_private(name) {
            return Err(Errno::NODATA);
        }
        self.get_xattr(node, name)?; // no copy for nothing
        self.bring_up(node, false)?;
        let _looking = self.shared();
        let fd = self.path_fd(node)?;
        rustix::fs::removexattr(proc_path(&fd), name)
    }
}
