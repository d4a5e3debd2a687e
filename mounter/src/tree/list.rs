//! Listing directories.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use rustix::io::Errno;

use super::lookup::{Seen, is_gone};
use super::node::{LowerPart, Lowers, Node};
use super::{Res, Tree};
use crate::ids::Attr;
use crate::kind::Kind;
use crate::numbers::Numbers;
use crate::overlay::{self, Class, Layers, Part, is_reserved};

/// A directory's names at one moment, in the order of their positions.
pub(crate) struct Listing {
    pub(crate) entries: Vec<Listed>,
    pub(super) generation: u64,
}

/// Positions of the names that layers have; before them come `.` and `..`.
const FIRST: u64 = 3;
/// Positions of the names that only the upper has. All fit into 31 bits, as 32-bit programs want it.
const UPPER: u64 = 1 << 30;

impl Listing {
    /// The first file that is a layer's.
    pub(crate) fn first_file(&self) -> Option<(usize, u32)> {
        self.entries.iter().find_map(|entry| match entry.source {
            Source::Lower(part) if part.node.kind == Kind::File => {
                Some((part.layer, part.node.number))
            }
            _ => None,
        })
    }
}

pub(crate) struct Listed {
    pub(crate) name: Box<[u8]>,
    /// Where it is in the directory, now and in every listing: so a reader may go on in another one, and misses nothing that
    /// is there all the time.
    pub(crate) position: u64,
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

/// Where a name is that no layer has: the same whatever else comes and goes. Two names in one place come after each other.
fn upper_position(name: &[u8]) -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    UPPER | (KEYS.hash_one(name) % UPPER)
}

impl Tree {
    /// The names in a directory, without `.` and `..`.
    pub(crate) fn list(&self, dir: &Arc<Node>) -> Res<Listing> {
        self.look(|| self.list_locked(dir))
    }

    fn list_locked(&self, dir: &Arc<Node>) -> Res<Listing> {
        let generation = self.changes.generation(dir.ino);
        if is_gone(dir) {
            return Ok(Listing { entries: Vec::new(), generation });
        }
        let lowers = dir.lowers();
        let lower = self.list_lower(&lowers).map_err(|error| self.damaged(dir, &error))?;
        let (Some(upper), true) = (&self.upper, dir.in_upper()) else {
            return Ok(Listing { entries: lower, generation });
        };
        let fd = self.dir_fd(dir)?;
        // `None` hides the name.
        let mut over: HashMap<Box<[u8]>, Option<Source>> = HashMap::new();
        let files_hide = upper.has_attribute_whiteouts(&*fd)?;
        for (name, kind) in upper.list(&*fd)? {
            let may_hide = match kind {
                Some(Kind::Char) | None => true,
                Some(kind) => kind == Kind::File && files_hide,
            };
            let hidden = is_reserved(&name) || (may_hide && upper.hides(&*fd, &name)?);
            over.insert(name, (!hidden).then_some(Source::Upper));
        }
        let mut entries = Vec::new();
        for entry in lower {
            match over.remove(&entry.name) {
                None => entries.push(entry),
                Some(Some(source)) => entries.push(Listed { source, ..entry }),
                Some(None) => {}
            }
        }
        let new = over.into_iter().filter_map(|(name, source)| {
            Some(Listed { position: upper_position(&name), name, source: source? })
        });
        entries.extend(new);
        entries.sort_unstable_by(|a, b| (a.position, &a.name).cmp(&(b.position, &b.name)));
        let mut next = 0;
        for entry in &mut entries {
            entry.position = entry.position.max(next);
            next = entry.position + 1;
        }
        Ok(Listing { entries, generation })
    }

    fn list_lower(&self, lowers: &Lowers) -> Result<Vec<Listed>, crate::lower::LowerError> {
        let listed = |(position, (name, part)): (u64, (Box<[u8]>, LowerPart))| Listed {
            name,
            position,
            source: Source::Lower(part),
        };
        let [dir] = lowers.parts.as_slice() else {
            let merged = self.merged(lowers)?;
            let items = merged.items().iter().map(|item| (item.name.clone(), item.top));
            return Ok((FIRST..).zip(items).map(listed).collect());
        };
        let entries = self.lower.list(dir.layer, dir.node)?;
        let shown = entries
            .into_iter()
            .filter(|entry| entry.class != Class::Whiteout && !is_reserved(&entry.name))
            .map(|entry| (entry.name, Part { layer: dir.layer, node: entry.node }));
        Ok((FIRST..).zip(shown).map(listed).collect())
    }

    /// Whether a directory shows nothing.
    pub(super) fn is_empty_dir(&self, dir: &Arc<Node>) -> Res<bool> {
        Ok(self.list_locked(dir)?.entries.is_empty())
    }

    /// The node and attributes of a listed entry.
    pub(crate) fn entry(&self, dir: &Arc<Node>, listed: &Listed) -> Res<Entry> {
        self.look(|| self.entry_locked(dir, listed))
    }

    fn entry_locked(&self, dir: &Arc<Node>, listed: &Listed) -> Res<Entry> {
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
                ino: Numbers::damaged(part.layer, part.node.number),
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
