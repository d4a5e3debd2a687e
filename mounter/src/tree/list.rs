//! Listing directories.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::lookup::{Seen, is_gone};
use super::node::{LowerPart, Lowers, Node};
use super::{Res, Tree};
use crate::ids::{Attr, lower_ino};
use crate::kind::Kind;
use crate::overlay::{self, Class, Layers, Part, is_reserved};

/// A directory's names at one moment: positions in it stay good while the directory changes.
pub(crate) struct Listing {
    pub(crate) entries: Vec<Listed>,
}

impl Listing {
    /// The first file that is a layer's.
    pub(crate) fn first_file(&self) -> Option<u64> {
        self.entries.iter().find_map(|entry| match entry.source {
            Source::Lower(part) if part.node.kind == Kind::File => {
                Some(lower_ino(part.layer, part.node.number))
            }
            _ => None,
        })
    }
}

pub(crate) struct Listed {
    pub(crate) name: Box<[u8]>,
    source: Source,
}

enum Source {
    /// Where a layer has it; for a directory possibly only the topmost place.
    Lower(LowerPart),
    Upper,
}

/// What is known of a listed entry.
pub(crate) enum Entry {
    Seen(Arc<Node>, Attr),
    /// It is there, but its image is damaged here.
    Damaged {
        ino: u64,
        kind: Kind,
    },
    /// Removed since.
    Gone,
}

impl Tree {
    /// The names in a directory, without `.` and `..`.
    pub(crate) fn list(&self, dir: &Arc<Node>) -> Res<Listing> {
        let _looking = self.shared();
        self.list_locked(dir)
    }

    fn list_locked(&self, dir: &Arc<Node>) -> Res<Listing> {
        if is_gone(dir) {
            return Ok(Listing { entries: Vec::new() });
        }
        let lowers = dir.lowers();
        let lower = self.list_lower(&lowers).map_err(|error| self.damaged(dir, &error))?;
        let (Some(upper), true) = (&self.upper, dir.in_upper()) else {
            return Ok(Listing { entries: lower });
        };
        let fd = self.dir_fd(dir)?;
        // `None` hides the name.
        let mut over: HashMap<Box<[u8]>, Option<Source>> = HashMap::new();
        for (name, kind) in upper.list(&*fd)? {
            let hidden = is_reserved(&name)
                || (matches!(kind, Some(Kind::Char | Kind::File) | None)
                    && upper.hides(&*fd, &name, kind)?);
            over.insert(name, (!hidden).then_some(Source::Upper));
        }
        let mut entries: Vec<Listed> =
            lower.into_iter().filter(|entry| !over.contains_key(&entry.name)).collect();
        entries.extend(
            over.into_iter().filter_map(|(name, source)| Some(Listed { name, source: source? })),
        );
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Listing { entries })
    }

    fn list_lower(&self, lowers: &Lowers) -> Result<Vec<Listed>, crate::lower::LowerError> {
        let listed = |name: &[u8], part| Listed { name: name.into(), source: Source::Lower(part) };
        let [dir] = lowers.parts.as_slice() else {
            let merged = self.merged(lowers)?;
            return Ok(merged.items().iter().map(|item| listed(&item.name, item.top)).collect());
        };
        let entries = self.lower.list(dir.layer, dir.node)?;
        Ok(entries
            .into_iter()
            .filter(|entry| entry.class != Class::Whiteout && !is_reserved(&entry.name))
            .map(|entry| listed(&entry.name, Part { layer: dir.layer, node: entry.node }))
            .collect())
    }

    /// Whether a directory shows nothing.
    pub(super) fn is_empty_dir(&self, dir: &Arc<Node>) -> Res<bool> {
        Ok(self.list_locked(dir)?.entries.is_empty())
    }

    /// The node and attributes of a listed entry.
    pub(crate) fn entry(&self, dir: &Arc<Node>, listed: &Listed) -> Res<Entry> {
        let _looking = self.shared();
        let part = match listed.source {
            // Nothing of the upper can have come in between where there is none.
            Source::Lower(part) if self.upper.is_none() || !dir.in_upper() => part,
            _ => {
                let Some(Seen { node, stat }) = self.child(dir, &listed.name)? else {
                    return Ok(Entry::Gone);
                };
                let attr = match stat {
                    Some(stat) => super::attr::attr_from(&node, &stat),
                    None => self.attr_locked(&node)?,
                };
                return Ok(Entry::Seen(node, attr));
            }
        };
        if is_gone(dir) {
            return Ok(Entry::Gone);
        }
        let seen = self.lower_entry(dir, &listed.name, part);
        match seen.and_then(|node| Ok((self.attr_locked(&node)?, node))) {
            Ok((attr, node)) => Ok(Entry::Seen(node, attr)),
            Err(Errno::IO) => Ok(Entry::Damaged {
                ino: lower_ino(part.layer, part.node.number),
                kind: part.node.kind,
            }),
            Err(errno) => Err(errno),
        }
    }

    fn lower_entry(&self, dir: &Arc<Node>, name: &[u8], part: LowerPart) -> Res<Arc<Node>> {
        if part.node.kind != Kind::Directory {
            return Ok(self.intern_lower(dir, name, part));
        }
        let lowers = dir.lowers();
        match self.find_lower(&lowers, name).map_err(|error| self.damaged(dir, &error))? {
            overlay::Found::Directory(parts) => {
                let path = super::lookup::join(&lowers.path, name);
                let below = Lowers { parts, path, ..Lowers::default() };
                self.intern_lower_dir(dir, name, below)
            }
            _ => Err(Errno::IO),
        }
    }
}
