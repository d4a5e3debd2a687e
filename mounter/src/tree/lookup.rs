//! Finding names.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::Statx;
use rustix::io::Errno;

use super::node::{Dir, InUpper, LowerPart, Lowers, Node, Place, State};
use super::{Res, Tree};

use crate::kind::Kind;
use crate::lower::LowerError;
use crate::numbers::ROOT;
use crate::overlay::{self, Found, Merged, is_reserved};
use crate::upper::{self, Under};

/// A node that was found, and its attributes in the upper if they were read on the way.
pub(crate) struct Seen {
    pub(crate) node: Arc<Node>,
    pub(crate) stat: Option<Box<Statx>>,
}

pub(crate) const NAME_MAX: usize = 255;

impl Tree {
    /// What is called `name` in `dir`; `None` if nothing is.
    pub(crate) fn lookup(&self, dir: &Arc<Node>, name: &[u8]) -> Res<Option<Seen>> {
        self.look(|| self.child(dir, name))
    }

    /// The directory above `dir`; the root's is the root.
    pub(crate) fn parent(&self, dir: &Arc<Node>) -> Arc<Node> {
        dir.place().map_or_else(|| Arc::clone(self.root()), |place| place.parent)
    }

    /// [`Tree::lookup`] for callers that hold the namespace lock.
    pub(super) fn child(&self, dir: &Arc<Node>, name: &[u8]) -> Res<Option<Seen>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if dir.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        if is_reserved(name) || is_gone(dir) {
            return Ok(None);
        }
        let lowers = dir.lowers();
        if let (Some(upper), true) = (&self.upper, dir.in_upper()) {
            let fd = self.dir_fd(dir)?;
            match upper.look((*fd).as_fd(), name)? {
                Under::Nothing => {}
                Under::Whiteout => return Ok(None),
                Under::Entry(stat) if upper::kind(&stat) == Kind::Directory => {
                    let below = self.below_upper_dir(dir, &lowers, (*fd).as_fd(), name)?;
                    let node = self.intern_upper_dir(dir, name, below, &stat);
                    return Ok(Some(Seen { node, stat: Some(stat) }));
                }
                Under::Entry(stat) => {
                    let node = self.intern_upper(dir, name, &stat);
                    self.find_rest(&node, &*fd, name, &stat)?;
                    return Ok(Some(Seen { node, stat: Some(stat) }));
                }
            }
        }
        let found = self.find_lower(&lowers, name).map_err(|error| {
            self.damaged_at(&format!("{}/{}", dir.path(), String::from_utf8_lossy(name)), &error)
        })?;
        match found {
            Found::Nothing => Ok(None),
            Found::Single(part) => {
                Ok(Some(Seen { node: self.intern_lower(dir, name, part), stat: None }))
            }
            Found::Directory(parts) => {
                let below = Lowers { parts, path: join(&lowers.path, name), ..Lowers::default() };
                Ok(Some(Seen { node: self.intern_lower_dir(dir, name, below)?, stat: None }))
            }
        }
    }

    /// What the layers have under `name`, by the remembered listing where several are merged.
    pub(super) fn find_lower(
        &self,
        lowers: &Lowers,
        name: &[u8],
    ) -> Result<Found<crate::lower::LowerNode>, LowerError> {
        if lowers.parts.len() <= 1 {
            return overlay::find(&self.lower, &lowers.parts, name);
        }
        let Some(item) = self.merged(lowers)?.get(name) else { return Ok(Found::Nothing) };
        if !item.is_dir {
            return Ok(Found::Single(item.top));
        }
        let parts = overlay::resolve(&self.lower, &lowers.parts, name, &item.candidates())?;
        Ok(Found::Directory(parts))
    }

    /// Whether the layers have anything under `name`.
    pub(super) fn is_below(&self, dir: &Arc<Node>, name: &[u8]) -> Res<bool> {
        let found =
            self.find_lower(&dir.lowers(), name).map_err(|error| self.damaged(dir, &error))?;
        Ok(!matches!(found, Found::Nothing))
    }

    /// The listing of the layers' part of a directory, made on first use.
    pub(super) fn merged<'a>(
        &self,
        lowers: &'a Lowers,
    ) -> Result<&'a Merged<crate::lower::LowerNode>, LowerError> {
        if let Some(merged) = lowers.merged.get() {
            return Ok(merged);
        }
        let merged = Merged::new(&self.lower, &lowers.parts)?;
        Ok(lowers.merged.get_or_init(|| merged))
    }

    /// The directories of layers that belong under the upper's directory `name`.
    fn below_upper_dir(
        &self,
        dir: &Arc<Node>,
        lowers: &Lowers,
        fd: std::os::fd::BorrowedFd<'_>,
        name: &[u8],
    ) -> Res<Lowers> {
        if self.lower.is_empty() {
            return Ok(Lowers::default());
        }
        let marks = self.upper()?.dir_marks(fd, name)?;
        let found = match &marks.redirect {
            _ if marks.opaque => return Ok(Lowers::default()),
            Some(path) if path.starts_with(b"/") => self.find_path(path),
            Some(old) => self.find_lower(lowers, old).map(|f| (f, join(&lowers.path, old))),
            None => self.find_lower(lowers, name).map(|f| (f, join(&lowers.path, name))),
        };
        match found.map_err(|error| self.damaged(dir, &error))? {
            (Found::Directory(parts), path) => Ok(Lowers { parts, path, ..Lowers::default() }),
            _ => Ok(Lowers::default()),
        }
    }

    /// What the layers have at an absolute path.
    pub(super) fn find_path(
        &self,
        path: &[u8],
    ) -> Result<(Found<crate::lower::LowerNode>, Box<[u8]>), LowerError> {
        let mut found = Found::Directory(self.root.lowers().parts.clone());
        let mut at: Box<[u8]> = b"/".as_slice().into();
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            let Found::Directory(parts) = found else { return Ok((Found::Nothing, at)) };
            found = overlay::find(&self.lower, &parts, name)?;
            at = join(&at, name);
        }
        Ok((found, at))
    }

    pub(super) fn intern_lower(&self, dir: &Arc<Node>, name: &[u8], part: LowerPart) -> Arc<Node> {
        let ino = self.lower.ino(part);
        let node = self.table().intern(ino, || {
            let state = State { lower: Some(part), ..State::default() };
            Node::new(ino, part.node.kind, state)
        });
        let mut state = node.state();
        // A file that was copied up has only places that the upper has.
        if matches!(state.upper, InUpper::No) {
            add_place(&mut state, dir, name);
        }
        drop(state);
        node
    }

    pub(super) fn intern_lower_dir(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        lowers: Lowers,
    ) -> Res<Arc<Node>> {
        let top = lowers.parts.first().ok_or(Errno::IO)?;
        let ino = self.lower.ino(*top);
        let node = self.table().intern(ino, || dir_node(ino, dir, name, lowers, InUpper::No));
        // Only a damaged image has a directory twice; the kernel allows one place for each.
        if is_at(&node, dir, name) { Ok(node) } else { Err(Errno::IO) }
    }

    fn intern_upper_dir(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        lowers: Lowers,
        stat: &Statx,
    ) -> Arc<Node> {
        let mut table = self.table();
        let own = table.uppers.of(&self.lower.numbers, stat.stx_ino);
        let Some(top) = lowers.parts.first() else {
            return table.intern(own, || dir_node(own, dir, name, lowers, InUpper::Yes));
        };
        let ino = self.lower.ino(*top);
        match table.get(ino) {
            // Two directories of the upper claim one of a layer: somebody copied a redirect.
            Some(node) if !is_at(&node, dir, name) => {
                table.intern(own, || dir_node(own, dir, name, lowers, InUpper::Yes))
            }
            _ => table.intern(ino, || dir_node(ino, dir, name, lowers, InUpper::Yes)),
        }
    }

    pub(super) fn intern_upper(&self, dir: &Arc<Node>, name: &[u8], stat: &Statx) -> Arc<Node> {
        let mut table = self.table();
        let ino = table.uppers.of(&self.lower.numbers, stat.stx_ino);
        let kind = upper::kind(stat);
        let node = table.intern(ino, || Node::new(ino, kind, State::default()));
        drop(table);
        let mut state = node.state();
        if matches!(state.upper, InUpper::No) {
            state.places.clear();
        }
        state.upper = InUpper::Yes;
        state.number = Some(stat.stx_ino);
        add_place(&mut state, dir, name);
        drop(state);
        node
    }
}

fn dir_node(ino: u64, dir: &Arc<Node>, name: &[u8], lowers: Lowers, upper: InUpper) -> Node {
    let place = Place { parent: Arc::clone(dir), name: name.into() };
    let dir = Some(Box::new(Dir { lowers: Arc::new(lowers) }));
    Node::new(ino, Kind::Directory, State { places: vec![place], upper, dir, ..State::default() })
}

pub(super) fn add_place(state: &mut State, dir: &Arc<Node>, name: &[u8]) {
    let known = state.places.iter().any(|p| p.parent.ino == dir.ino && *p.name == *name);
    if !known {
        state.places.push(Place { parent: Arc::clone(dir), name: name.into() });
    }
}

pub(super) fn drop_place(state: &mut State, dir: &Node, name: &[u8]) {
    state.places.retain(|p| p.parent.ino != dir.ino || *p.name != *name);
}

fn is_at(node: &Node, dir: &Node, name: &[u8]) -> bool {
    node.state().places.iter().any(|p| p.parent.ino == dir.ino && *p.name == *name)
}

/// Whether a directory was removed while somebody still holds it.
pub(super) fn is_gone(dir: &Node) -> bool {
    dir.ino != ROOT && dir.state().places.is_empty()
}

pub(super) fn join(path: &[u8], name: &[u8]) -> Box<[u8]> {
    let mut joined = path.to_vec();
    if joined.last() != Some(&b'/') {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined.into()
}
