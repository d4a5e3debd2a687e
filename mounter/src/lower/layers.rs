//! The images as layers of the overlay.

use std::cell::RefCell;

use mica_squashfs::read::{ReadDir, Repeated, Visited};
use mica_squashfs::{InodeRef, ReadError};

use super::{Lower, LowerError, LowerNode, Res, kind_of};
use crate::kind::Kind;
use crate::overlay::{Class, Entry, Layers, Marks, Part};

impl Lower {
    fn is_whiteout(&self, layer: usize, node: LowerNode) -> Res<bool> {
        match node.kind {
            Kind::Char => Ok(self.attr(Part { layer, node })?.rdev == (0, 0)),
            Kind::File if self.marked[layer] => {
                let part = Part { layer, node };
                Ok(self.attr(part)?.size == 0 && self.mark(part, b"whiteout")?.is_some())
            }
            _ => Ok(false),
        }
    }

    fn class(&self, layer: usize, node: LowerNode) -> Res<Class> {
        Ok(match node.kind {
            Kind::Directory => Class::Directory,
            _ if self.is_whiteout(layer, node)? => Class::Whiteout,
            _ => Class::Other,
        })
    }

    /// The entries of a directory; `read` is told of each.
    fn entries(
        &self,
        layer: usize,
        dir: LowerNode,
        mut read: impl FnMut(&mut ReadDir<'_>) -> Result<(), Repeated>,
    ) -> Res<Vec<Entry<LowerNode>>> {
        let fail = |e| self.fail(layer, e);
        let inode = self.inode(layer, dir.reference)?;
        let mut entries = self.image(layer).read_dir(&inode).map_err(fail)?;
        let (mut list, mut taken) = (Vec::<Entry<LowerNode>>::new(), 0);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(fail)?;
            read(&mut entries).map_err(|repeated| fail(repeated.into()))?;
            taken += entry.name.len() + NOTED;
            if taken > LISTING_MAX {
                let value = list.len() as u64;
                return Err(fail(ReadError::Range { what: "number of entries", value }));
            }
            // A name that comes twice is the first.
            if list.last().is_some_and(|last| *last.name == *entry.name) {
                continue;
            }
            let node = LowerNode {
                reference: entry.inode,
                number: entry.number,
                kind: kind_of(entry.kind),
            };
            let class = self.class(layer, node)?;
            list.push(Entry { name: entry.name.into_boxed_slice(), node, class });
        }
        Ok(list)
    }

    /// The layers for a walk through all of them: a directory that is met twice is damage.
    pub(crate) fn walked(&self) -> Walked<'_> {
        let visited = self.images().map(|_| Visited::default()).collect();
        Walked { lower: self, visited: RefCell::new(visited) }
    }
}

/// What the names of one directory and what is noted of each may take, in bytes: about a million names of usual length.
const LISTING_MAX: usize = 96 << 20;
/// What is noted of a name besides its bytes, about.
const NOTED: usize = 80;

pub(super) fn is_mark(name: &[u8], mark: &[u8]) -> bool {
    [b"trusted.overlay.".as_slice(), b"user.overlay."]
        .iter()
        .any(|prefix| name.strip_prefix(*prefix) == Some(mark))
}

impl Layers for Lower {
    type Node = LowerNode;
    type Error = LowerError;

    fn count(&self) -> usize {
        self.stack().len()
    }

    fn root(&self, layer: usize) -> Res<LowerNode> {
        let inode = self.inode(layer, self.image(layer).root())?;
        Ok(LowerNode {
            reference: inode.reference,
            number: inode.number,
            kind: kind_of(inode.file_kind()),
        })
    }

    fn list(&self, layer: usize, dir: LowerNode) -> Res<Vec<Entry<LowerNode>>> {
        self.entries(layer, dir, |_| Ok(()))
    }

    fn get(&self, layer: usize, dir: LowerNode, name: &[u8]) -> Res<Option<(LowerNode, Class)>> {
        let inode = self.inode(layer, dir.reference)?;
        let found = self.image(layer).lookup(&inode, name).map_err(|e| self.fail(layer, e))?;
        let Some(reference) = found else { return Ok(None) };
        let node = self.child(layer, (dir, inode.number), reference)?;
        Ok(Some((node, self.class(layer, node)?)))
    }

    fn marks(&self, layer: usize, node: LowerNode) -> Res<Marks> {
        let part = Part { layer, node };
        let opaque = self.mark(part, b"opaque")?.is_some_and(|value| *value == b"y");
        let redirect = self.mark(part, b"redirect")?.map(|value| value.as_slice().into());
        Ok(Marks { opaque, redirect })
    }
}

impl Lower {
    /// An inode that was found in a directory.
    fn child(
        &self,
        layer: usize,
        (dir, parent): (LowerNode, u32),
        reference: InodeRef,
    ) -> Res<LowerNode> {
        let inode = self.inode(layer, reference)?;
        let inodes = self.image(layer).superblock().inodes;
        // A directory says which one it is in. Some writers don't: they leave it empty, or name one that can't be.
        let other =
            inode.parent().filter(|&above| above != parent && (1..=inodes).contains(&above));
        if reference == dir.reference || other.is_some() {
            return Err(self.fail(layer, Repeated.into()));
        }
        Ok(LowerNode { reference, number: inode.number, kind: kind_of(inode.file_kind()) })
    }
}

/// The layers during one walk.
pub(crate) struct Walked<'a> {
    lower: &'a Lower,
    visited: RefCell<Vec<Visited>>,
}

impl Layers for Walked<'_> {
    type Node = LowerNode;
    type Error = LowerError;

    fn count(&self) -> usize {
        self.lower.count()
    }

    fn root(&self, layer: usize) -> Res<LowerNode> {
        self.lower.root(layer)
    }

    fn list(&self, layer: usize, dir: LowerNode) -> Res<Vec<Entry<LowerNode>>> {
        let inode = self.lower.inode(layer, dir.reference)?;
        let mut visited = self.visited.borrow_mut();
        let visited = &mut visited[layer];
        visited.enter(&inode).map_err(|repeated| self.lower.fail(layer, repeated.into()))?;
        self.lower.entries(layer, dir, |entries| visited.read(entries))
    }

    fn get(&self, layer: usize, dir: LowerNode, name: &[u8]) -> Res<Option<(LowerNode, Class)>> {
        self.lower.get(layer, dir, name)
    }

    fn marks(&self, layer: usize, node: LowerNode) -> Res<Marks> {
        self.lower.marks(layer, node)
    }
}
