//! The read-only side: the stack's images as layers of the overlay, and the content of their files.

mod attributes;
mod content;
mod layers;
mod links;

use std::sync::Arc;

use mica_squashfs::{FileKind, Image, Inode, InodeRef, ReadError};

use crate::bounded::Bounded;
use crate::decode::{Ahead, Decoder, OpenFile};
use crate::ids::{Attr, Ids, Time};
use crate::kind::Kind;
use crate::numbers::Numbers;
use crate::overlay::Part;
use crate::stack::Stack;
use crate::trace::{Recorder, Trace};
use links::LinksOnce;

/// An inode of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LowerNode {
    pub(crate) reference: InodeRef,
    pub(crate) number: u32,
    pub(crate) kind: Kind,
}

pub(crate) type LowerPart = Part<LowerNode>;

/// A layer that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read layer {layer}")]
pub(crate) struct LowerError {
    pub(crate) layer: String,
    /// Index of the block of the file, where it is about one.
    pub(crate) block: Option<u64>,
    #[source]
    pub(crate) source: ReadError,
}

pub(crate) type Res<T> = Result<T, LowerError>;

/// Takes bytes of a file and where in it they are.
pub(crate) type Store<'a> = &'a mut dyn FnMut(u64, &[u8]);

/// What is to be handed over of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// All of it, decoded if need be.
    Now,
    /// All of it, if it is decoded; else it begins to be.
    Decoded,
}

/// Bytes of block lists at hand: those of some thousand usual files, or of a dozen huge ones.
const LISTS: usize = 4 << 20;

pub(crate) struct Lower {
    decoder: Arc<Decoder>,
    ahead: Ahead,
    /// Layers that have any attribute, and so may have marks.
    marked: Vec<bool>,
    pub(crate) has_xattrs: bool,
    ids: Ids,
    pub(crate) numbers: Numbers,
    /// Block lists of files by inode number, without the cost of which a read begins.
    files: Bounded<u64, OpenFile>,
    xattr_keys: Bounded<(usize, u32), Vec<mica_squashfs::read::XattrKey>>,
    xattr_values: Bounded<(usize, u64), Vec<u8>>,
    /// Of each layer, once they were needed.
    links: Vec<LinksOnce>,
}

fn kind_of(kind: FileKind) -> Kind {
    match kind {
        FileKind::Directory => Kind::Directory,
        FileKind::File => Kind::File,
        FileKind::Symlink => Kind::Symlink,
        FileKind::BlockDevice => Kind::Block,
        FileKind::CharDevice => Kind::Char,
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
    }
}

impl Lower {
    pub(crate) fn new(stack: Stack, ids: Ids, cache_bytes: usize, record: bool) -> Lower {
        let marked: Vec<bool> = stack.layers.iter().map(|l| l.image.has_xattrs()).collect();
        let inodes = stack.layers.iter().map(|l| l.image.superblock().inodes);
        let numbers = Numbers::new(inodes);
        let links = stack.layers.iter().map(|_| LinksOnce::default()).collect();
        Lower {
            has_xattrs: marked.contains(&true),
            marked,
            decoder: Arc::new(Decoder::new(stack, cache_bytes, record)),
            ahead: Ahead::default(),
            ids,
            numbers,
            files: Bounded::new(LISTS),
            xattr_keys: Bounded::new(attributes::ROOM),
            xattr_values: Bounded::new(attributes::ROOM),
            links,
        }
    }

    /// Whether there are no layers at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.stack().is_empty()
    }

    fn fail(&self, layer: usize, source: ReadError) -> LowerError {
        self.decoder.fail(layer, None, source)
    }

    fn stack(&self) -> &[crate::stack::StackLayer] {
        &self.decoder.stack.layers
    }

    fn image(&self, layer: usize) -> &Image {
        self.decoder.image(layer)
    }

    /// The images, for sums over all.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Image> {
        self.stack().iter().map(|layer| layer.image.as_ref())
    }

    /// The number that the mount shows.
    pub(crate) fn ino(&self, part: LowerPart) -> u64 {
        self.numbers.lower(part.layer, part.node.number)
    }

    fn inode(&self, layer: usize, reference: InodeRef) -> Res<Inode> {
        self.image(layer).inode(reference).map_err(|e| self.fail(layer, e))
    }

    /// Attributes of an inode; those of a merged directory are its topmost part's.
    pub(crate) fn attr(&self, part: LowerPart) -> Res<Attr> {
        let inode = self.inode(part.layer, part.node.reference)?;
        let size = inode.size();
        let time = Time { seconds: inode.mtime.into(), nanos: 0 };
        Ok(Attr {
            ino: self.numbers.lower(part.layer, inode.number),
            kind: kind_of(inode.file_kind()),
            mode: inode.mode.into(),
            nlink: inode.nlink,
            uid: self.ids.uid(inode.uid),
            gid: self.ids.gid(inode.gid),
            rdev: inode.device().unwrap_or_default(),
            size,
            blocks: size.saturating_sub(inode.sparse_bytes()).div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
        })
    }

    pub(crate) fn read_link(&self, part: LowerPart) -> Res<Vec<u8>> {
        let inode = self.inode(part.layer, part.node.reference)?;
        self.image(part.layer).read_link(&inode).map_err(|e| self.fail(part.layer, e))
    }

    /// Where first reads are noted.
    pub(crate) fn recorder(&self) -> Option<Arc<Recorder>> {
        self.decoder.recorder.clone()
    }

    /// Decodes the blocks of a trace a little before they are asked for, until the end.
    pub(crate) fn follow(&self, trace: &Trace) {
        self.decoder.follow(trace, |touch| {
            let layer = touch.layer as usize;
            if layer >= self.stack().len() {
                return None;
            }
            let inode = self.inode(layer, InodeRef(touch.inode)).ok()?;
            let (reference, number) = (inode.reference, inode.number);
            let kind = kind_of(inode.file_kind());
            self.file(Part { layer, node: LowerNode { reference, number, kind } }).ok()
        });
    }

    /// Nobody reads any more.
    pub(crate) fn end(&self) {
        self.decoder.end();
    }
}
