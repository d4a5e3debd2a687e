//! The order of inodes and of file contents.
//!
//! Inodes stand in post-order: a directory's subdirectories first, each with all it holds, then its other entries,
//! then itself. So the inodes a listing names lie together, every inode a directory names is written before it, and
//! the contents of the files of one directory lie side by side. The order depends on names alone.

use std::borrow::Cow;

use super::tree::{NodeId, NodeKind, Tree};

pub(super) struct Plan<'t> {
    tree: &'t Tree,
    /// All nodes in the order of their inodes.
    pub(super) order: Vec<NodeId>,
    /// Inode number by node, from 1.
    numbers: Vec<u32>,
    /// Parent and name by node; of the first name, if there are several.
    above: Vec<(NodeId, &'t [u8])>,
}

impl<'t> Plan<'t> {
    pub(super) fn new(tree: &'t Tree) -> Self {
        let root = tree.root();
        let mut plan = Self {
            tree,
            order: Vec::with_capacity(tree.len()),
            numbers: vec![0; tree.len()],
            above: vec![(root, b"".as_slice()); tree.len()],
        };
        let mut stack = vec![(root, false)];
        while let Some((dir, entered)) = stack.pop() {
            if entered {
                plan.files_of(dir);
                plan.number(dir);
                continue;
            }
            stack.push((dir, true));
            for (name, child) in tree.children(dir).rev() {
                if matches!(tree.node(child).kind, NodeKind::Directory) {
                    plan.above[child.index()] = (dir, name);
                    stack.push((child, false));
                }
            }
        }
        plan
    }

    fn files_of(&mut self, dir: NodeId) {
        for (name, child) in self.tree.children(dir) {
            let is_dir = matches!(self.tree.node(child).kind, NodeKind::Directory);
            // A hard link's node has its number from an earlier name.
            if !is_dir && self.numbers[child.index()] == 0 {
                self.above[child.index()] = (dir, name);
                self.number(child);
            }
        }
    }

    fn number(&mut self, id: NodeId) {
        self.order.push(id);
        self.numbers[id.index()] = self.order.len() as u32;
    }

    /// The inode number.
    pub(super) fn number_of(&self, id: NodeId) -> u32 {
        self.numbers[id.index()]
    }

    /// The directory that holds `id`.
    pub(super) fn parent(&self, id: NodeId) -> NodeId {
        self.above[id.index()].0
    }

    /// Its name in [there](Self::parent).
    pub(super) fn name(&self, id: NodeId) -> &'t [u8] {
        self.above[id.index()].1
    }

    /// The path from the root, without a leading slash.
    pub(super) fn path(&self, id: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = id;
        while at != self.tree.root() {
            let (parent, name) = self.above[at.index()];
            names.push(name);
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The path for people.
    pub(super) fn shown(&self, id: NodeId) -> String {
        match self.path(id) {
            path if path.is_empty() => "/".to_owned(),
            path => match String::from_utf8_lossy(&path) {
                Cow::Borrowed(text) => text.to_owned(),
                Cow::Owned(_) => path.escape_ascii().to_string(),
            },
        }
    }
}
