//! The overlay rules: which entry of which layer is seen under a name.
//!
//! Pure: layers are anything that implements [`Layers`]; nothing here knows of FUSE, of squashfs or of
//! a file descriptor. Layers are numbered from the top, 0 wins. The rules:
//!
//! - the topmost layer that has a name decides; a directory goes on to collect the directories of the
//!   same name below it, until something ends it;
//! - a **whiteout** hides the name in all layers below: overlayfs's character device 0:0 (or an empty
//!   file with the attribute `overlay.whiteout`), or OCI's empty file `.wh.NAME`, which stands beside
//!   the entries of its own layer and doesn't hide those;
//! - an **opaque** directory hides all below it: overlayfs's attribute `overlay.opaque=y`, or OCI's
//!   file `.wh..wh..opq` inside it;
//! - anything that is no directory, met below a directory, ends the collecting too: what lies under it
//!   was hidden by it when the upper layer was made;
//! - a **redirect** (`overlay.redirect`, written when a directory was renamed) says under which name
//!   the layers below know the directory;
//! - names that begin with `.wh.` are never seen.
//!
//! [`find`] is the definition: it asks every layer for one name. [`Merged`] lists a stack of
//! directories once, so that later questions cost the same for 1 layer and 60; tests compare the two.

mod find;
mod merge;
#[cfg(test)]
mod tests;

pub(crate) use find::{find, resolve};
pub(crate) use merge::Merged;

/// OCI's mark of a hidden name: `.wh.NAME`.
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// OCI's mark of an opaque directory.
pub(crate) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Whether a name is reserved for marks, and so is never seen and can't be made.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT_PREFIX)
}

/// What the rules must know of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Directory,
    Whiteout,
    Other,
}

/// One entry of one directory of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Entry<N> {
    pub(crate) name: Box<[u8]>,
    pub(crate) node: N,
    pub(crate) class: Class,
}

/// The marks of one directory of one layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// `overlay.opaque` is `y`.
    pub(crate) opaque: bool,
    /// `overlay.redirect`: a name in the same directory, or a path from the root.
    pub(crate) redirect: Option<Box<[u8]>>,
}

/// A stack of read-only layers, topmost first.
pub(crate) trait Layers {
    /// An inode of a layer; cheap to copy.
    type Node: Copy;
    type Error;

    fn count(&self) -> usize;
    fn root(&self, layer: usize) -> Result<Self::Node, Self::Error>;
    /// The entries of a directory in any order, without `.` and `..`, marks included.
    fn list(&self, layer: usize, dir: Self::Node) -> Result<Vec<Entry<Self::Node>>, Self::Error>;
    fn get(
        &self,
        layer: usize,
        dir: Self::Node,
        name: &[u8],
    ) -> Result<Option<(Self::Node, Class)>, Self::Error>;
    fn marks(&self, layer: usize, dir: Self::Node) -> Result<Marks, Self::Error>;
}

/// An inode and the layer it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part<N> {
    pub(crate) layer: usize,
    pub(crate) node: N,
}

/// What is seen under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found<N> {
    Nothing,
    /// Anything but a directory.
    Single(Part<N>),
    /// A directory, by the directories it is merged from, topmost first; never empty.
    Directory(Vec<Part<N>>),
}

/// The directories the root is merged from.
pub(crate) fn root<L: Layers>(layers: &L) -> Result<Vec<Part<L::Node>>, L::Error> {
    let mut parts = Vec::with_capacity(layers.count());
    for layer in 0..layers.count() {
        parts.push(Part { layer, node: layers.root(layer)? });
    }
    find::cut(layers, parts)
}
