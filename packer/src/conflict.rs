//! Two modules of one stack that put different files at one path.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use mica_graph::Label;
use mica_squashfs::write::{Content, NodeId, NodeKind};

use crate::Scan;

/// Why layers do not fit on top of each other.
#[derive(Debug, thiserror::Error)]
pub enum ConflictError {
    /// Two layers have different files at one place.
    #[error("{first} and {second} both put a file at {} and the two differ", path.display())]
    Differ {
        /// The place.
        path: PathBuf,
        /// The layer that came first in the list.
        first: Label,
        /// The other one.
        second: Label,
    },
    /// The files could not be compared.
    #[error("cannot compare {} of {first} and {second}", path.display())]
    Read {
        /// The place.
        path: PathBuf,
        /// The layer that came first in the list.
        first: Label,
        /// The other one.
        second: Label,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Checks that no path means different things in different layers: directories may meet, and so
/// may equal files (same kind, permissions and content).
#[allow(clippy::result_large_err, reason = "it is made once, when packing fails")]
pub fn check_conflicts(layers: &[(Label, &Scan)]) -> Result<(), ConflictError> {
    let mut places: HashMap<Vec<u8>, (usize, NodeId)> = HashMap::new();
    for (index, (second, scan)) in layers.iter().enumerate() {
        for (path, node) in scan.entries() {
            let Some(&(earlier, other)) = places.get(&path) else {
                places.insert(path, (index, node));
                continue;
            };
            let (first, below) = &layers[earlier];
            let named = |path: &[u8]| {
                (PathBuf::from(OsStr::from_bytes(path)), first.clone(), second.clone())
            };
            match same(below, other, scan, node) {
                Ok(true) => {}
                Ok(false) => {
                    let (path, first, second) = named(&path);
                    return Err(ConflictError::Differ { path, first, second });
                }
                Err(source) => {
                    let (path, first, second) = named(&path);
                    return Err(ConflictError::Read { path, first, second, source });
                }
            }
        }
    }
    Ok(())
}

fn same(a: &Scan, a_id: NodeId, b: &Scan, b_id: NodeId) -> io::Result<bool> {
    let (a, b) = (a.tree.node(a_id), b.tree.node(b_id));
    let alike = match (&a.kind, &b.kind) {
        (NodeKind::Directory, NodeKind::Directory) => return Ok(true),
        (NodeKind::File(a), NodeKind::File(b)) => same_content(&**a, &**b)?,
        (NodeKind::Symlink(a), NodeKind::Symlink(b)) => a == b,
        (NodeKind::BlockDevice(a), NodeKind::BlockDevice(b)) => a == b,
        (NodeKind::CharDevice(a), NodeKind::CharDevice(b)) => a == b,
        (NodeKind::Fifo, NodeKind::Fifo) | (NodeKind::Socket, NodeKind::Socket) => true,
        _ => false,
    };
    Ok(alike && a.metadata.mode == b.metadata.mode && a.metadata.xattrs == b.metadata.xattrs)
}

fn same_content(a: &dyn Content, b: &dyn Content) -> io::Result<bool> {
    if a.size() != b.size() {
        return Ok(false);
    }
    let (a_open, b_open) = (a.open()?, b.open()?);
    let (mut a_part, mut b_part) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    let mut at = 0;
    while at < a.size() {
        let length = (a.size() - at).min(128 << 10);
        let (a_part, b_part) = (&mut a_part[..length as usize], &mut b_part[..length as usize]);
        a_open.read_exact_at(a_part, at)?;
        b_open.read_exact_at(b_part, at)?;
        if a_part != b_part {
            return Ok(false);
        }
        at += length;
    }
    Ok(true)
}
