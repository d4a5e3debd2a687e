//! File contents: reading, finding duplicates, cutting into blocks, compressing, in this order of
//! writing whatever the number of threads.
//!
//! [`Feed`] produces what is to be stored, item by item, in an order that depends on the input
//! alone; workers read and compress; [`write_data`] takes the items in the same order and writes.
//! Small files are read ahead in batches, put into fragment blocks, and never read twice. Larger
//! ones are read block by block by the worker that compresses the block.
//!
//! Memory: a bounded number of blocks and batches in flight, and one fragment block that fills.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::sync::Arc;

use super::block::Reader;
use super::digest::{ContentDigest, PIECE};
use super::fragment::{Cut, Failure, Filling, Small};
use super::layout::{Layout, Stored};
use super::plan::Plan;
use super::pool::{Pending, Pool, Worker};
use super::reuse::{BlockIndex, IndexEntry, Key};
use super::tree::{Content, NodeId, NodeKind, Tree};
use super::{WriteError, WriteOptions};
use crate::format::{BlockSize, FragmentEntry, FragmentPosition};

/// Where a file's content is.
#[derive(Clone, Default)]
pub(super) struct FileRecord {
    pub(super) size: u64,
    pub(super) start: u64,
    pub(super) blocks: Vec<BlockSize>,
    pub(super) sparse: u64,
    pub(super) fragment: Option<FragmentPosition>,
}

/// What the data part of the image holds.
pub(super) struct Data {
    /// By node.
    pub(super) records: Vec<Option<FileRecord>>,
    pub(super) fragments: Vec<FragmentEntry>,
    pub(super) duplicates: u64,
    /// Blocks taken from an earlier image.
    pub(super) reused: u64,
    pub(super) index: Option<BlockIndex>,
}

impl Data {
    /// Gives duplicates the place of the first file with their content.
    fn resolve(&mut self, duplicates: &[(NodeId, NodeId)]) {
        for (id, of) in duplicates {
            self.records[id.index()] = self.records[of.index()].clone();
        }
        self.duplicates = duplicates.len() as u64;
    }
}

/// One regular file with content.
#[derive(Clone, Copy)]
pub(super) struct File<'t> {
    pub(super) id: NodeId,
    pub(super) content: &'t dyn Content,
    pub(super) size: u64,
    /// Another file has the same size, so it may be a duplicate.
    pub(super) twin: bool,
    /// What it is, if that is known in pieces of the size of blocks.
    pub(super) known: Option<&'t ContentDigest>,
}

/// The next thing to store.
pub(super) enum Item<'t> {
    Begin { id: NodeId, hash: u64 },
    Block { id: NodeId, offset: u64, raw: u32, stored: Pending<Result<Stored, ReadFailure>> },
    Holes { id: NodeId, blocks: u64, bytes: u64 },
    End { file: File<'t>, reader: Arc<Reader<'t>> },
    Duplicate { id: NodeId, of: NodeId },
    Small { id: NodeId, at: FragmentPosition },
    Fragment { hash: u64, stored: Pending<Result<Stored, Failure>> },
}

/// Why a worker could not deliver.
pub(super) enum ReadFailure {
    Io(io::Error),
    Changed,
    Codec(crate::codec::CodecError),
    Worker,
}

impl From<io::Error> for ReadFailure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Changed,
            _ => Self::Io(error),
        }
    }
}

impl ReadFailure {
    pub(super) fn of(self, plan: &Plan<'_>, id: NodeId) -> WriteError {
        let path = plan.shown(id);
        match self {
            Self::Io(source) => WriteError::Read { path, source },
            Self::Changed => WriteError::Changed { path },
            Self::Codec(source) => WriteError::Codec(source),
            Self::Worker => WriteError::Worker,
        }
    }
}

/// A hash of the path that decides where fragment blocks and segments end.
pub(super) fn path_hash(path: &[u8]) -> u64 {
    let hash = blake3::hash(path);
    let (head, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    u64::from_le_bytes(*head)
}

/// Stores all contents.
pub(super) fn write_data<'t, W: Write>(
    tree: &'t Tree,
    plan: &Plan<'t>,
    options: &WriteOptions,
    pool: &Pool<'t>,
    layout: &mut Layout<'_, W>,
) -> Result<Data, WriteError> {
    let mut feed = Feed::new(tree, plan, options, pool)?;
    let window = options.window();
    let mut queue = VecDeque::new();
    let mut records = vec![None; tree.len()];
    for File { id, size, .. } in &feed.files {
        records[id.index()] = Some(FileRecord { size: *size, ..FileRecord::default() });
    }
    let mut writer = Writer {
        plan,
        layout,
        data: Data {
            records,
            fragments: Vec::new(),
            duplicates: 0,
            reused: 0,
            index: options.index.then(|| BlockIndex::new(options.description())),
        },
        duplicates: Vec::new(),
        pieces: Vec::new(),
        remember: options.remembers(),
    };
    let mut in_flight = 0;
    loop {
        while in_flight < window {
            let Some(item) = feed.next()? else { break };
            in_flight += usize::from(item.is_work());
            queue.push_back(item);
        }
        let Some(item) = queue.pop_front() else { break };
        in_flight -= usize::from(item.is_work());
        writer.item(item)?;
    }
    // At the end: the first of several small files may get its place after the others are seen.
    writer.data.resolve(&writer.duplicates);
    Ok(writer.data)
}

impl Item<'_> {
    fn is_work(&self) -> bool {
        matches!(self, Self::Block { .. } | Self::Fragment { .. })
    }
}

struct Writer<'a, 'b, 't, W: Write> {
    plan: &'a Plan<'t>,
    layout: &'a mut Layout<'b, W>,
    data: Data,
    duplicates: Vec<(NodeId, NodeId)>,
    /// Offsets and keys of the blocks of the file that is being stored.
    pieces: Vec<(u64, Key)>,
    /// All blocks have keys, and files are told what they are.
    remember: bool,
}

impl<W: Write> Writer<'_, '_, '_, W> {
    fn item(&mut self, item: Item<'_>) -> Result<(), WriteError> {
        match item {
            Item::Begin { id, hash } => {
                self.layout.boundary(hash).map_err(WriteError::Output)?;
                self.record(id).start = self.layout.position();
                self.pieces.clear();
            }
            Item::Block { id, offset, raw, stored } => {
                let stored = stored.wait()?.map_err(|failure| failure.of(self.plan, id))?;
                self.store(&stored)?;
                self.pieces.extend(stored.key.map(|key| (offset, key)));
                let record = self.record(id);
                record.blocks.push(stored.size);
                if stored.size.is_hole() {
                    record.sparse += u64::from(raw);
                }
            }
            Item::Holes { id, blocks, bytes } => {
                let record = self.record(id);
                let count = record.blocks.len() + blocks as usize;
                record.blocks.resize(count, BlockSize::HOLE);
                record.sparse += bytes;
            }
            Item::End { file: File { id, content, size, known, .. }, reader } => {
                let failed = |source| WriteError::Read { path: self.plan.shown(id), source };
                if !reader.is_unchanged().map_err(failed)? {
                    return Err(WriteError::Changed { path: self.plan.shown(id) });
                }
                self.record(id).blocks.shrink_to_fit();
                if self.remember && known.is_none() {
                    content.remember_digest(ContentDigest::new(size, self.pieces.drain(..)));
                }
            }
            Item::Duplicate { id, of } => self.duplicates.push((id, of)),
            Item::Small { id, at } => self.record(id).fragment = Some(at),
            Item::Fragment { hash, stored } => {
                self.layout.boundary(hash).map_err(WriteError::Output)?;
                let stored = stored.wait()?.map_err(|(id, failure)| failure.of(self.plan, id))?;
                let start = self.layout.position();
                self.store(&stored)?;
                self.data.fragments.push(FragmentEntry { start, size: stored.size });
            }
        }
        Ok(())
    }

    fn store(&mut self, stored: &Stored) -> Result<(), WriteError> {
        if let (Some(index), Some(key), Some(digest)) =
            (&mut self.data.index, stored.key, stored.digest)
        {
            let (offset, size) = (self.layout.position(), stored.size);
            index.push(IndexEntry { key, offset, size, stored: digest });
        }
        self.data.reused += u64::from(stored.reused);
        self.layout.put(&stored.bytes).map_err(WriteError::Output)
    }

    fn record(&mut self, id: NodeId) -> &mut FileRecord {
        self.data.records[id.index()].get_or_insert_default()
    }
}

/// Produces the items.
struct Feed<'a, 't> {
    plan: &'a Plan<'t>,
    paths: Paths<'a, 't>,
    pool: &'a Pool<'t>,
    block_size: u32,
    /// All files with content in the order of their inodes.
    files: Vec<File<'t>>,
    next: usize,
    /// First file of each content; only large files with twins.
    large: HashMap<NodeId, NodeId>,
    /// The same of small files, by size and digest.
    seen: HashMap<(u64, Key), NodeId>,
    small: Small<'a, 't>,
    filling: Filling<'t>,
    ready: VecDeque<Item<'t>>,
    current: Option<Cutting<'t>>,
    remember: bool,
}

/// Hashes of paths; the files of a directory follow each other, so its path is kept.
struct Paths<'a, 't> {
    plan: &'a Plan<'t>,
    dir: Option<NodeId>,
    path: Vec<u8>,
    /// Length of the directory's path, with the slash behind it.
    prefix: usize,
}

impl Paths<'_, '_> {
    fn hash(&mut self, id: NodeId) -> u64 {
        let parent = self.plan.parent(id);
        if self.dir != Some(parent) {
            self.path = self.plan.path(parent);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            (self.dir, self.prefix) = (Some(parent), self.path.len());
        }
        self.path.truncate(self.prefix);
        self.path.extend_from_slice(self.plan.name(id));
        path_hash(&self.path)
    }
}

/// A large file that is being cut into blocks.
struct Cutting<'t> {
    file: File<'t>,
    reader: Arc<Reader<'t>>,
    offset: u64,
    /// Nothing before this offset is known to be a hole.
    data_from: u64,
}

impl<'a, 't> Feed<'a, 't> {
    fn new(
        tree: &'t Tree,
        plan: &'a Plan<'t>,
        options: &WriteOptions,
        pool: &'a Pool<'t>,
    ) -> Result<Self, WriteError> {
        let block_size = options.block_size;
        let mut files = files_with_content(tree, plan);
        let large = super::twins::find(&files, block_size, plan, pool, options.window())?;
        if u64::from(block_size) == PIECE {
            files.iter_mut().for_each(|file| file.known = file.content.known_digest());
        }
        let small = || files.iter().filter(|file| file.size < block_size.into());
        let twins = small().filter(|file| file.twin).count();
        let unknown = small().filter(|file| file.known.is_none()).copied().collect();
        Ok(Self {
            plan,
            paths: Paths { plan, dir: None, path: Vec::new(), prefix: 0 },
            pool,
            block_size,
            files,
            next: 0,
            large,
            seen: HashMap::with_capacity(twins),
            small: Small::new(unknown, pool, options.jobs()),
            filling: Filling::new(block_size as usize),
            ready: VecDeque::new(),
            current: None,
            remember: options.remembers(),
        })
    }

    fn next(&mut self) -> Result<Option<Item<'t>>, WriteError> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            if let Some(cutting) = self.current.take() {
                return self.cut(cutting).map(Some);
            }
            let Some(file) = self.files.get(self.next).copied() else {
                let Some(block) = self.filling.take_rest() else { return Ok(None) };
                self.fragment(block);
                continue;
            };
            self.next += 1;
            match self.large.get(&file.id) {
                Some(&of) => self.ready.push_back(Item::Duplicate { id: file.id, of }),
                None if file.size < self.block_size.into() => self.small(file)?,
                None => self.begin(file),
            }
        }
    }

    fn small(&mut self, file: File<'t>) -> Result<(), WriteError> {
        let (bytes, digest) = match file.known {
            Some(known) => (None, Some(known.pieces().first().map_or([0; 32], |(_, hash)| *hash))),
            None => {
                let taken = self.small.take(file.id);
                let (bytes, digest) = taken.map_err(|(id, failure)| failure.of(self.plan, id))?;
                (Some(bytes), digest)
            }
        };
        if let Some(digest) = digest {
            if self.remember && file.known.is_none() {
                let piece = Some((0, digest)).filter(|_| digest != [0; 32]);
                let digest = ContentDigest::new(file.size, piece);
                file.content.remember_digest(digest);
            }
            if file.twin {
                let of = *self.seen.entry((file.size, digest)).or_insert(file.id);
                if of != file.id {
                    self.ready.push_back(Item::Duplicate { id: file.id, of });
                    return Ok(());
                }
            }
        }
        let hash = self.paths.hash(file.id);
        for cut in self.filling.add(file, hash, bytes, digest) {
            self.fragment(cut);
        }
        Ok(())
    }

    fn fragment(&mut self, cut: Cut<'t>) {
        self.ready.extend(cut.positions().map(|(id, at)| Item::Small { id, at }));
        let hash = cut.hash();
        let stored = self.pool.submit(move |worker: &mut Worker| worker.store_fragment(cut));
        self.ready.push_back(Item::Fragment { hash, stored });
    }

    fn begin(&mut self, file: File<'t>) {
        let reader = Arc::new(Reader::new(file.content));
        let hash = self.paths.hash(file.id);
        self.ready.push_back(Item::Begin { id: file.id, hash });
        self.current = Some(Cutting { file, reader, offset: 0, data_from: 0 });
    }

    fn cut(&mut self, mut cutting: Cutting<'t>) -> Result<Item<'t>, WriteError> {
        let File { id, size, known, .. } = cutting.file;
        let (offset, block) = (cutting.offset, u64::from(self.block_size));
        if offset >= size {
            return Ok(Item::End { file: cutting.file, reader: cutting.reader });
        }
        if cutting.data_from <= offset {
            let data = match known {
                Some(known) => Ok(known.next(offset).map(|(at, _)| *at)),
                None => cutting.reader.get().and_then(|open| open.next_data(offset)),
            };
            let failed = |source| ReadFailure::from(source).of(self.plan, id);
            cutting.data_from = data.map_err(failed)?.unwrap_or(size).clamp(offset, size);
        }
        let end = match cutting.data_from {
            from if from >= size => size,
            from => from / block * block,
        };
        if end > offset {
            cutting.offset = end;
            self.current = Some(cutting);
            let blocks = (end - offset).div_ceil(block);
            return Ok(Item::Holes { id, blocks, bytes: end - offset });
        }
        let raw = block.min(size - offset) as u32;
        cutting.offset = offset + u64::from(raw);
        cutting.data_from = cutting.data_from.max(cutting.offset);
        let reader = Arc::clone(&cutting.reader);
        self.current = Some(cutting);
        let known = known.and_then(|known| known.next(offset)).map(|(_, hash)| *hash);
        let stored = self
            .pool
            .submit(move |worker: &mut Worker| worker.store_piece(&reader, offset, raw, known));
        Ok(Item::Block { id, offset, raw, stored })
    }
}

fn files_with_content<'t>(tree: &'t Tree, plan: &Plan<'t>) -> Vec<File<'t>> {
    let mut files: Vec<File<'t>> = Vec::new();
    let mut sizes: HashMap<u64, u32> = HashMap::new();
    for &id in &plan.order {
        if let NodeKind::File(content) = &tree.node(id).kind {
            let size = content.size();
            if size > 0 {
                *sizes.entry(size).or_default() += 1;
                files.push(File { id, content: &**content, size, twin: false, known: None });
            }
        }
    }
    for file in &mut files {
        file.twin = sizes[&file.size] > 1;
    }
    files
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    head.iter().all(|&b| b == 0) && rest.iter().all(|&b| b == 0)
}
