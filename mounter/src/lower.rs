//! The read-only side: the stack's images as layers of the overlay, and the content of their files.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use mica_squashfs::{Block, FileKind, Image, Inode, InodeRef, ReadError};

use crate::decode::{Ahead, Decoder, OpenFile};
use crate::ids::{Attr, Ids, Time, lower_ino};
use crate::kind::Kind;
use crate::overlay::{Class, Entry, Layers, Marks, Part};
use crate::stack::Stack;
use crate::trace::{Recorder, Trace};

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

/// How many files have their block lists at hand.
const OPEN_FILES: usize = 256;

pub(crate) struct Lower {
    decoder: Arc<Decoder>,
    ahead: Ahead,
    /// Layers that have any attribute, and so may have marks.
    marked: Vec<bool>,
    pub(crate) has_xattrs: bool,
    ids: Ids,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    open: HashMap<u64, Arc<OpenFile>>,
    queue: VecDeque<u64>,
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
        Lower {
            has_xattrs: marked.contains(&true),
            marked,
            decoder: Arc::new(Decoder::new(stack, cache_bytes, record)),
            ahead: Ahead::default(),
            ids,
            files: Mutex::default(),
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

    fn inode(&self, layer: usize, reference: InodeRef) -> Res<Inode> {
        self.image(layer).inode(reference).map_err(|e| self.fail(layer, e))
    }

    /// Attributes of an inode; those of a merged directory are its topmost part's.
    pub(crate) fn attr(&self, part: LowerPart) -> Res<Attr> {
        let inode = self.inode(part.layer, part.node.reference)?;
        let size = inode.size();
        let time = Time { seconds: inode.mtime.into(), nanos: 0 };
        Ok(Attr {
            ino: lower_ino(part.layer, inode.number),
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

    /// Attributes with their prefixes, the overlay's own included.
    pub(crate) fn xattrs(&self, part: LowerPart) -> Res<Vec<(Vec<u8>, Vec<u8>)>> {
        if !self.marked[part.layer] {
            return Ok(Vec::new());
        }
        let inode = self.inode(part.layer, part.node.reference)?;
        if !inode.has_xattrs() {
            return Ok(Vec::new());
        }
        let xattrs = self.image(part.layer).xattrs(&inode).map_err(|e| self.fail(part.layer, e))?;
        Ok(xattrs.into_iter().map(|x| (x.name, x.value)).collect())
    }

    /// The blocks of a file; the lists of the files read last are kept.
    fn file(&self, part: LowerPart) -> Res<Arc<OpenFile>> {
        let key = lower_ino(part.layer, part.node.number);
        let lock = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = lock().open.get(&key) {
            return Ok(Arc::clone(file));
        }
        let inode = self.inode(part.layer, part.node.reference)?;
        self.refuse_metacopy(part, &inode)?;
        let blocks = self.image(part.layer).blocks(&inode);
        let blocks = blocks.map_err(|e| self.fail(part.layer, e))?;
        let file = Arc::new(OpenFile::new(part.layer, inode.reference.0, blocks));
        let mut files = lock();
        if files.open.insert(key, Arc::clone(&file)).is_none() {
            files.queue.push_back(key);
        }
        if files.queue.len() > OPEN_FILES
            && let Some(oldest) = files.queue.pop_front()
        {
            files.open.remove(&oldest);
        }
        Ok(file)
    }

    /// A file whose content overlayfs left in a layer below looks like zeros: never show those.
    fn refuse_metacopy(&self, part: LowerPart, inode: &Inode) -> Res<()> {
        if !inode.has_xattrs() {
            return Ok(());
        }
        match self.xattrs(part)?.iter().any(|(name, _)| is_mark(name, b"metacopy")) {
            true => {
                let wanted = "file with its own content (it has overlay.metacopy)";
                Err(self.fail(part.layer, ReadError::Kind { number: inode.number, wanted }))
            }
            false => Ok(()),
        }
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

    /// Whether a file's content can be had: fails if the inode doesn't say where it is.
    pub(crate) fn check_content(&self, part: LowerPart) -> Res<()> {
        self.file(part).map(drop)
    }

    /// Reads from a file: calls `reply` once, with as many bytes as there are, up to `size`.
    pub(crate) fn read<T>(
        &self,
        part: LowerPart,
        offset: u64,
        size: usize,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Res<T> {
        let file = self.file(part)?;
        let end = offset.saturating_add(size as u64).min(file.blocks.size());
        if offset >= end {
            return Ok(reply(&[]));
        }
        let block_size = u64::from(file.blocks.block_size());
        let (first, last) = (offset / block_size, (end - 1) / block_size);
        if file.goes_on(offset, end) {
            self.ahead.ask(&self.decoder, &file, last + 1);
        }
        let within = (offset % block_size) as usize;
        if first == last {
            let to = within + (end - offset) as usize;
            return self.decoder.with_block(
                &file,
                first,
                whole(within, to, block_size),
                |bytes, _| match bytes {
                    Some(bytes) => reply(&bytes[within..to]),
                    None => reply(&vec![0; to - within]),
                },
            );
        }
        let mut out = Vec::with_capacity((end - offset) as usize);
        for index in first..=last {
            let covered = end >= (index + 1) * block_size && (index > first || within == 0);
            self.decoder.with_block(&file, index, covered, |bytes, len| {
                let from = if index == first { within } else { 0 };
                let to = len.min((end - index * block_size) as usize);
                match bytes {
                    Some(bytes) => out.extend_from_slice(&bytes[from..to]),
                    None => out.resize(out.len() + (to - from), 0),
                }
            })?;
        }
        Ok(reply(&out))
    }

    /// Calls `store` with the blocks of a file if it has no more than `limit` bytes, and says how many; `None` if that was not
    /// to be.
    pub(crate) fn hand_over(
        &self,
        part: LowerPart,
        wish: Wish,
        limit: u64,
        store: Store<'_>,
    ) -> Res<Option<u64>> {
        let file = self.file(part)?;
        let (size, count) = (file.blocks.size(), file.blocks.count());
        let is_ready = match wish {
            Wish::Now if size > limit => return Ok(None),
            Wish::Now => true,
            Wish::Decoded => {
                size <= limit && (0..count).all(|index| self.decoder.is_decoded(&file, index))
            }
        };
        if !is_ready {
            self.ahead.ask(&self.decoder, &file, 0);
            return Ok(None);
        }
        for index in 0..count {
            let at = index * u64::from(file.blocks.block_size());
            self.decoder.with_block(&file, index, false, |bytes, _| {
                bytes.into_iter().for_each(|bytes| store(at, bytes));
            })?;
        }
        Ok(Some(size))
    }

    /// Decodes the blocks of which a read will take a part, and calls `store` with the other parts. Those that were decoded
    /// before are left alone.
    pub(crate) fn hand_over_rest(
        &self,
        part: LowerPart,
        range: Range<u64>,
        store: Store<'_>,
    ) -> Res<()> {
        let file = self.file(part)?;
        let (size, block_size) = (file.blocks.size(), u64::from(file.blocks.block_size()));
        if range.start >= size.min(range.end) {
            return Ok(());
        }
        let (first, last) = (range.start / block_size, (range.end.min(size) - 1) / block_size);
        for index in first..=last {
            let at = index * block_size;
            let end = size.min(at + block_size);
            let is_part = range.start > at || range.end < end;
            if !is_part || (self.decoder.is_decoded(&file, index) && size > block_size) {
                continue;
            }
            self.decoder.with_block(&file, index, false, |bytes, len| {
                let Some(bytes) = bytes else { return };
                let before = range.start.saturating_sub(at) as usize;
                let after = len.min((range.end - at) as usize);
                if before > 0 {
                    store(at, &bytes[..before]);
                }
                if after < len {
                    store(at + after as u64, &bytes[after..]);
                }
            })?;
        }
        Ok(())
    }

    /// Calls `sink` with every stored run of a file, in order; holes are left out.
    pub(crate) fn copy<E>(
        &self,
        part: LowerPart,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Res<Result<(), E>> {
        let file = self.file(part)?;
        for index in 0..file.blocks.count() {
            let at = index * u64::from(file.blocks.block_size());
            self.ahead.ask(&self.decoder, &file, index + 1);
            let written = self.decoder.with_block(&file, index, true, |bytes, _| match bytes {
                Some(bytes) => sink(at, bytes),
                None => Ok(()),
            })?;
            if written.is_err() {
                return Ok(written);
            }
        }
        Ok(Ok(()))
    }

    /// The next data (or hole) at or after `offset`; `None` past the end.
    pub(crate) fn seek(&self, part: LowerPart, offset: u64, hole: bool) -> Res<Option<u64>> {
        let file = self.file(part)?;
        let file = &file.blocks;
        if offset >= file.size() {
            return Ok(None);
        }
        let block_size = u64::from(file.block_size());
        for index in offset / block_size..file.count() {
            let block = file.block(index).map_err(|e| self.fail(part.layer, e))?;
            if matches!(block, Block::Hole { .. }) == hole {
                return Ok(Some(offset.max(index * block_size)));
            }
        }
        // The end of a file counts as a hole.
        Ok(hole.then_some(file.size()))
    }

    /// All paths under which a layer has an inode.
    pub(crate) fn paths_of(&self, layer: usize, number: u32) -> Res<Vec<Vec<Box<[u8]>>>> {
        let mut found = Vec::new();
        let mut todo = vec![(self.root(layer)?, Vec::<Box<[u8]>>::new())];
        while let Some((dir, path)) = todo.pop() {
            for entry in self.list(layer, dir)? {
                let is_dir = entry.class == Class::Directory;
                if !is_dir && entry.node.number != number {
                    continue;
                }
                let mut path = path.clone();
                path.push(entry.name);
                if entry.node.number == number {
                    found.push(path);
                } else if path.len() < 4096 {
                    todo.push((entry.node, path));
                }
            }
        }
        Ok(found)
    }

    fn is_whiteout(&self, layer: usize, node: LowerNode) -> Res<bool> {
        match node.kind {
            Kind::Char => Ok(self.attr(Part { layer, node })?.rdev == (0, 0)),
            Kind::File if self.marked[layer] => {
                let part = Part { layer, node };
                let attr = self.attr(part)?;
                Ok(attr.size == 0
                    && self.xattrs(part)?.iter().any(|(name, _)| is_mark(name, b"whiteout")))
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
}

/// Whether a read takes a block from its beginning to its end.
fn whole(from: usize, to: usize, block_size: u64) -> bool {
    from == 0 && to as u64 == block_size
}

fn is_mark(name: &[u8], mark: &[u8]) -> bool {
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
        let inode = self.inode(layer, dir.reference)?;
        let entries = self.image(layer).read_dir(&inode).map_err(|e| self.fail(layer, e))?;
        let mut list = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| self.fail(layer, e))?;
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

    fn get(&self, layer: usize, dir: LowerNode, name: &[u8]) -> Res<Option<(LowerNode, Class)>> {
        let inode = self.inode(layer, dir.reference)?;
        let Some(reference) =
            self.image(layer).lookup(&inode, name).map_err(|e| self.fail(layer, e))?
        else {
            return Ok(None);
        };
        let inode = self.inode(layer, reference)?;
        let node = LowerNode { reference, number: inode.number, kind: kind_of(inode.file_kind()) };
        Ok(Some((node, self.class(layer, node)?)))
    }

    fn marks(&self, layer: usize, node: LowerNode) -> Res<Marks> {
        let mut marks = Marks::default();
        for (name, value) in self.xattrs(Part { layer, node })? {
            if is_mark(&name, b"opaque") {
                marks.opaque |= value == b"y";
            } else if is_mark(&name, b"redirect") {
                marks.redirect = Some(value.into());
            }
        }
        Ok(marks)
    }
}
