//! Under which names a layer has the files that it has hard links of.
//!
//! Read once for each layer, when the first such file is copied up. A directory is named by its number: its path in the
//! layer is not where the mount shows it, once it or one above it was renamed.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use mica_squashfs::ReadError;
use mica_squashfs::read::{WalkFault, walk};

use super::{Lower, Res};
use crate::asker;

/// Bytes that the names of one layer may take. Names behind that are copied up as files of their own, as overlayfs
/// does with all.
const ROOM: usize = 64 << 20;

/// A name of a file: the directory's number, and where in [`Links::text`] it is.
struct Name {
    file: u32,
    dir: u32,
    start: u32,
    len: u16,
}

/// The hard links of a layer.
#[derive(Default)]
pub(crate) struct Links {
    /// Sorted by file.
    names: Vec<Name>,
    text: Vec<u8>,
    /// Of the directories that hold any, and those above: number of the one above, and the name.
    dirs: HashMap<u32, (u32, Box<[u8]>)>,
    /// Not all names are here.
    cut: bool,
}

impl Links {
    /// The directories and names of a file.
    pub(crate) fn of(&self, file: u32) -> impl Iterator<Item = (u32, &[u8])> {
        let from = self.names.partition_point(|name| name.file < file);
        self.names[from..].iter().take_while(move |name| name.file == file).map(|name| {
            let start = name.start as usize;
            (name.dir, &self.text[start..start + usize::from(name.len)])
        })
    }

    /// The way from the root to a directory: numbers and names, the root without.
    pub(crate) fn way_to(&self, dir: u32) -> Vec<(u32, &[u8])> {
        let (mut way, mut at) = (Vec::new(), dir);
        // A way that doesn't end is of a damaged image.
        while let (Some((above, name)), true) = (self.dirs.get(&at), way.len() <= self.dirs.len()) {
            way.push((at, &**name));
            at = *above;
        }
        way.reverse();
        way
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    fn bytes(&self) -> usize {
        self.names.len() * size_of::<Name>() + self.text.len() + self.dirs.len() * 64
    }

    fn add(&mut self, file: u32, open: &[(u32, Box<[u8]>)], name: &[u8]) {
        self.cut |= self.bytes() > ROOM;
        let (false, Ok(start), Ok(len)) =
            (self.cut, u32::try_from(self.text.len()), u16::try_from(name.len()))
        else {
            return;
        };
        let dir = open.last().map_or(0, |(number, _)| *number);
        self.names.push(Name { file, dir, start, len });
        self.text.extend_from_slice(name);
        for pair in open.windows(2).rev() {
            let [(above, _), (number, name)] = pair else { break };
            if self.dirs.insert(*number, (*above, name.clone())).is_some() {
                break; // and so are those above it
            }
        }
    }
}

/// The links of a layer, read by whoever needs them first.
#[derive(Default)]
pub(super) struct LinksOnce {
    state: Mutex<Known>,
    read: Condvar,
}

#[derive(Default)]
enum Known {
    #[default]
    Nothing,
    /// Somebody reads them.
    Soon,
    Links(Arc<Links>),
}

impl Lower {
    /// The hard links of a layer. Who comes first reads them; others wait for it.
    pub(crate) fn links(&self, layer: usize) -> Res<Arc<Links>> {
        let LinksOnce { state, read } = &self.links[layer];
        let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = lock();
        loop {
            match &*known {
                Known::Links(links) => return Ok(Arc::clone(links)),
                Known::Nothing => break,
                Known::Soon if asker::gave_up() => {
                    return Err(self.fail(layer, ReadError::Interrupted));
                }
                Known::Soon => {
                    let waited = read.wait_timeout(known, asker::OFTEN);
                    known = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        *known = Known::Soon;
        drop(known);
        let links = self.read_links(layer).map(Arc::new);
        *lock() = match &links {
            Ok(links) => Known::Links(Arc::clone(links)),
            Err(_) => Known::Nothing,
        };
        read.notify_all();
        links
    }

    fn read_links(&self, layer: usize) -> Res<Links> {
        let mut links = Links::default();
        // The directories that are open, outermost first: depth of the path, number and name.
        let mut open: Vec<(u32, Box<[u8]>)> = Vec::new();
        for entry in walk(self.image(layer)) {
            if asker::gave_up() {
                return Err(self.fail(layer, ReadError::Interrupted));
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => match error.fault {
                    WalkFault::Read(error @ ReadError::Interrupted) => {
                        return Err(self.fail(layer, error));
                    }
                    // Of a damaged directory nobody sees the names either.
                    _ => continue,
                },
            };
            let inode = &entry.inode;
            let name = entry.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            let depth = match entry.path.is_empty() {
                true => 0,
                false => 1 + entry.path.iter().filter(|&&byte| byte == b'/').count(),
            };
            if inode.is_dir() {
                open.truncate(depth);
                open.push((inode.number, name.into()));
            } else if inode.nlink > 1 {
                open.truncate(depth);
                links.add(inode.number, &open, name);
            }
        }
        // Stable: the first name in the image is the first here.
        links.names.sort_by_key(|name| name.file);
        if links.cut {
            let layer = &self.stack()[layer].name;
            tracing::warn!(
                layer,
                "more hard links than are kept apart: some are lost when they are written"
            );
        }
        Ok(links)
    }
}
