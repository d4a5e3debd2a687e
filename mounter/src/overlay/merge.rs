//! A merged directory, listed once.

use std::collections::HashMap;

use super::{Class, Layers, Part, WHITEOUT_PREFIX, is_reserved};

/// All names of a merged directory, sorted.
#[derive(Debug)]
pub(crate) struct Merged<N> {
    items: Vec<Item<N>>,
}

/// One name of a merged directory.
#[derive(Debug)]
pub(crate) struct Item<N> {
    pub(crate) name: Box<[u8]>,
    /// Where the name is seen first.
    pub(crate) top: Part<N>,
    pub(crate) is_dir: bool,
    /// Directories of this name in lower layers that may belong to it: see [`super::resolve`].
    below: Vec<Part<N>>,
}

impl<N: Copy> Item<N> {
    /// The directories this one may be merged from, topmost first.
    pub(crate) fn candidates(&self) -> Vec<Part<N>> {
        let mut parts = vec![self.top];
        parts.extend_from_slice(&self.below);
        parts
    }
}

/// A name while the layers are gone through.
struct Slot<N> {
    /// `None`: hidden before it was seen.
    top: Option<(Part<N>, bool)>,
    below: Vec<Part<N>>,
    /// Nothing further down belongs to the name.
    closed: bool,
}

impl<N: Copy> Merged<N> {
    /// Lists the directory merged from `stack`.
    pub(crate) fn new<L: Layers<Node = N>>(
        layers: &L,
        stack: &[Part<N>],
    ) -> Result<Merged<N>, L::Error> {
        let mut slots: HashMap<Box<[u8]>, Slot<N>> = HashMap::new();
        for &dir in stack {
            let entries = layers.list(dir.layer, dir.node)?;
            let (marks, entries): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| is_reserved(&entry.name));
            for entry in entries {
                let part = Part { layer: dir.layer, node: entry.node };
                add(&mut slots, entry.name, part, entry.class);
            }
            for mark in marks {
                let hidden = &mark.name[WHITEOUT_PREFIX.len()..];
                match slots.get_mut(hidden) {
                    Some(slot) => slot.closed = true,
                    None => {
                        let slot = Slot { top: None, below: Vec::new(), closed: true };
                        slots.insert(hidden.into(), slot);
                    }
                }
            }
        }
        let mut items: Vec<Item<N>> = slots
            .into_iter()
            .filter_map(|(name, slot)| {
                let (top, is_dir) = slot.top?;
                Some(Item { name, top, is_dir, below: slot.below })
            })
            .collect();
        items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Merged { items })
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<&Item<N>> {
        let index = self.items.binary_search_by(|item| item.name.as_ref().cmp(name)).ok()?;
        self.items.get(index)
    }

    pub(crate) fn items(&self) -> &[Item<N>] {
        &self.items
    }
}

fn add<N>(slots: &mut HashMap<Box<[u8]>, Slot<N>>, name: Box<[u8]>, part: Part<N>, class: Class) {
    match slots.get_mut(&name) {
        None => {
            let closed = class != Class::Directory;
            let top = (class != Class::Whiteout).then_some((part, class == Class::Directory));
            slots.insert(name, Slot { top, below: Vec::new(), closed });
        }
        Some(slot) if slot.closed => {}
        Some(slot) if class == Class::Directory => slot.below.push(part),
        Some(slot) => slot.closed = true,
    }
}
