//! Hard links of layers: all names of a file are brought up together.
//!
//! A layer names the directories by their numbers. Most are seen where the layer has them; those that were renamed, or are
//! below one that was, are found by the redirects of the upper.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};

use rustix::io::Errno;

use super::lookup::is_gone;
use super::node::{LowerPart, Node};
use super::{Res, Tree};
use crate::asker;
use crate::kind::Kind;

/// Directories that are not seen where their layers have them, by layer and number.
pub(super) type Moved = HashMap<(usize, u32), Arc<Node>>;

/// Names of one file that are kept together. Of more, overlayfs's way is taken: a file of its own for each name.
const NAMES_MAX: usize = 4096;

impl Tree {
    /// Learns all places of a file that its layer has hard links of and that are seen in the tree.
    pub(super) fn find_links(&self, node: &Arc<Node>, part: LowerPart) -> Res<()> {
        let links = self.lower.links(part.layer).map_err(|error| self.damaged(node, &error))?;
        if links.is_cut() || links.of(part.node.number).nth(NAMES_MAX).is_some() {
            tracing::warn!(path = node.path(), "a file with very many names loses its hard links");
            return Ok(());
        }
        self.look(|| {
            self.find_moved()?;
            for (dir, name) in links.of(part.node.number) {
                asker::check()?;
                let Some(dir) = self.dir_shown(part.layer, &links.way_to(dir))? else { continue };
                // Finding it is what adds the place. A damaged neighbour was logged.
                if let Err(errno @ Errno::ACCESS) = self.child(&dir, name) {
                    return Err(errno);
                }
            }
            Ok(())
        })
    }

    /// Where a directory of a layer is seen, by its way from the layer's root.
    fn dir_shown(&self, layer: usize, way: &[(u32, &[u8])]) -> Res<Option<Arc<Node>>> {
        let (mut at, mut from) = (Arc::clone(self.root()), 0);
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (number, _)) in way.iter().enumerate().rev() {
            let node = moved.as_ref().and_then(|moved| moved.get(&(layer, *number)));
            if let Some(node) = node.filter(|node| !is_gone(node)) {
                (at, from) = (Arc::clone(node), index + 1);
                break;
            }
        }
        drop(moved);
        for (number, name) in &way[from..] {
            at = match self.child(&at, name) {
                Err(errno @ Errno::ACCESS) => return Err(errno),
                Ok(Some(seen)) if seen.node.kind == Kind::Directory => seen.node,
                // Hidden by another layer.
                Ok(_) | Err(_) => return Ok(None),
            };
            let shows = |part: &LowerPart| (part.layer, part.node.number) == (layer, *number);
            if !at.lowers().parts.iter().any(shows) {
                return Ok(None);
            }
        }
        Ok(Some(at))
    }

    /// Notes that a directory is not where its layers have it any more.
    pub(super) fn note_moved(&self, node: &Arc<Node>) {
        if node.kind == Kind::Directory
            && let Some(moved) = &mut *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
        {
            add(moved, node);
        }
    }

    /// Goes once through the upper for directories that were renamed, by this mount or an earlier one.
    fn find_moved(&self) -> Res<()> {
        if self.moved.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let (mut moved, mut todo) = (Moved::new(), vec![Arc::clone(self.root())]);
        while let Some(dir) = todo.pop() {
            asker::check()?;
            let (upper, fd) = (self.upper()?, self.dir_fd(&dir)?);
            for (name, kind) in upper.list(&*fd)? {
                if !matches!(kind, Some(Kind::Directory) | None) {
                    continue;
                }
                let Some(seen) = self.child(&dir, &name)? else { continue };
                if seen.node.kind != Kind::Directory {
                    continue;
                }
                if upper.dir_marks((*fd).as_fd(), &name)?.redirect.is_some() {
                    add(&mut moved, &seen.node);
                }
                todo.push(seen.node);
            }
            let ino = dir.ino;
            drop(dir);
            self.forget(ino, 0);
        }
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Some(moved);
        Ok(())
    }
}

fn add(moved: &mut Moved, node: &Arc<Node>) {
    for part in &node.lowers().parts {
        moved.insert((part.layer, part.node.number), Arc::clone(node));
    }
}
