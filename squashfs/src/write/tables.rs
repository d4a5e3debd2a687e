//! Inodes, directory listings and extended attributes.

use std::collections::HashMap;

use super::data::FileRecord;
use super::meta::{Ids, MetaWriter};
use super::plan::Plan;
use super::tree::{Attribute, Node, NodeId, NodeKind, Tree};
use super::{WriteError, WriteOptions};
use crate::codec::Compressor;
use crate::format::dir::SIZE_EXTRA;
use crate::format::xattr::{KeyHeader, XattrTable};
use crate::format::{
    DirEntryHeader, DirHeader, DirIndex, InodeBody, InodeRecord, InodeType, METADATA_SIZE, MetaRef,
    SYMLINK_MAX, XattrId, XattrPrefix,
};

/// The encoded tables, with positions relative to themselves.
pub(super) struct Tables {
    pub(super) inodes: Vec<u8>,
    pub(super) directories: Vec<u8>,
    /// Inode references in the order of inode numbers.
    pub(super) export: Vec<u8>,
    pub(super) ids: Ids,
    pub(super) xattrs: Option<Xattrs>,
    pub(super) root: MetaRef,
}

/// The encoded extended attributes.
pub(super) struct Xattrs {
    values: Vec<u8>,
    ids: Vec<u8>,
    count: u32,
}

impl Xattrs {
    /// The whole table starting at `at`, and the position the superblock names.
    pub(super) fn place(
        &self,
        at: u64,
        compressor: &mut Compressor,
    ) -> Result<(Vec<u8>, u64), WriteError> {
        let mut bytes = self.values.clone();
        let ids_at = at + bytes.len() as u64;
        let mut ids = MetaWriter::new(compressor);
        ids.write(&self.ids)?;
        let (ids, starts) = ids.finish()?;
        bytes.extend_from_slice(&ids);
        let position = at + bytes.len() as u64;
        XattrTable { values: at, ids: self.count }.encode(&mut bytes);
        bytes.extend(starts.iter().flat_map(|start| (ids_at + start).to_le_bytes()));
        Ok((bytes, position))
    }
}

/// Encodes everything but the data.
pub(super) fn encode(
    tree: &Tree,
    plan: &Plan<'_>,
    records: &[Option<FileRecord>],
    options: &WriteOptions,
) -> Result<Tables, WriteError> {
    let (xattrs, xattr_ids) = encode_xattrs(tree, plan, options)?;
    let mut inode_compressor = options.compressor(METADATA_SIZE as u32)?;
    let mut directory_compressor = options.compressor(METADATA_SIZE as u32)?;
    let mut encoder = Encoder {
        tree,
        plan,
        records,
        xattr_ids,
        ids: Ids::default(),
        inodes: MetaWriter::steady(&mut inode_compressor),
        listings: Listings::new(&mut directory_compressor),
        references: vec![MetaRef(0); tree.len()],
        scratch: Vec::new(),
    };
    let mut export = Vec::with_capacity(8 * plan.order.len());
    for &id in &plan.order {
        encoder.node(id)?;
        export.extend_from_slice(&encoder.references[id.index()].0.to_le_bytes());
    }
    let root = encoder.references[tree.root().index()];
    Ok(Tables {
        inodes: encoder.inodes.finish()?.0,
        directories: encoder.listings.table.finish()?.0,
        export,
        ids: encoder.ids,
        xattrs,
        root,
    })
}

struct Encoder<'a> {
    tree: &'a Tree,
    plan: &'a Plan<'a>,
    records: &'a [Option<FileRecord>],
    /// Index of the attribute set by node.
    xattr_ids: HashMap<NodeId, u32>,
    ids: Ids,
    inodes: MetaWriter<'a>,
    listings: Listings<'a>,
    /// Where each node's inode is.
    references: Vec<MetaRef>,
    scratch: Vec<u8>,
}

impl Encoder<'_> {
    fn node(&mut self, id: NodeId) -> Result<(), WriteError> {
        let node = self.tree.node(id);
        let (body, tail) = match &node.kind {
            NodeKind::Directory => self.directory(id)?,
            kind => self.other(id, kind)?,
        };
        let metadata = &node.metadata;
        let full = || WriteError::TooManyIds { path: self.plan.shown(id) };
        let record = InodeRecord {
            mode: metadata.mode & 0o7777,
            uid: self.ids.index(metadata.uid).ok_or_else(full)?,
            gid: self.ids.index(metadata.gid).ok_or_else(full)?,
            mtime: metadata.mtime,
            number: self.plan.number_of(id),
            xattr: self.xattr_ids.get(&id).copied(),
            body,
        };
        self.scratch.clear();
        record.encode(&tail, &mut self.scratch);
        self.references[id.index()] = self.inodes.position();
        self.inodes.write(&self.scratch)?;
        Ok(())
    }

    fn other(&self, id: NodeId, kind: &NodeKind) -> Result<(InodeBody, Vec<u8>), WriteError> {
        let nlink = self.tree.link_count(id);
        Ok(match kind {
            NodeKind::File(_) => {
                let empty = FileRecord::default();
                let record = self.records[id.index()].as_ref().unwrap_or(&empty);
                let tail = record.blocks.iter().flat_map(|block| block.0.to_le_bytes()).collect();
                let (start, size) = (record.start, record.size);
                let (sparse, fragment) = (record.sparse, record.fragment);
                (InodeBody::File { start, size, sparse, nlink, fragment }, tail)
            }
            NodeKind::Symlink(target) => {
                let length = u32::try_from(target.len()).ok();
                let target_len = length.filter(|&len| (1..=SYMLINK_MAX).contains(&len));
                let target_len = target_len
                    .ok_or_else(|| WriteError::SymlinkTarget { path: self.plan.shown(id) })?;
                (InodeBody::Symlink { nlink, target_len }, target.clone())
            }
            NodeKind::BlockDevice(rdev) => {
                (InodeBody::BlockDevice { nlink, rdev: *rdev }, Vec::new())
            }
            NodeKind::CharDevice(rdev) => {
                (InodeBody::CharDevice { nlink, rdev: *rdev }, Vec::new())
            }
            NodeKind::Fifo => (InodeBody::Fifo { nlink }, Vec::new()),
            NodeKind::Socket | NodeKind::Directory => (InodeBody::Socket { nlink }, Vec::new()),
        })
    }

    fn directory(&mut self, id: NodeId) -> Result<(InodeBody, Vec<u8>), WriteError> {
        let start = self.listings.table.position();
        let mut subdirectories = 0;
        self.listings.begin();
        for (name, child) in self.tree.children(id) {
            let kind = inode_type(self.tree.node(child));
            subdirectories += u32::from(kind == InodeType::Directory);
            let (at, number) = (self.references[child.index()], self.plan.number_of(child));
            self.listings.entry(name, kind, at, number)?;
        }
        let (length, index) = self.listings.end()?;
        let too_large = || WriteError::DirectoryTooLarge { path: self.plan.shown(id) };
        let size = length.checked_add(SIZE_EXTRA).ok_or_else(too_large)?;
        // Only the extended form has an index, and only a listing beyond one block needs one.
        let mut tail = Vec::new();
        for entry in &index {
            let name_len = entry.name.len() as u32;
            DirIndex { position: entry.position, start: entry.start, name_len }.encode(&mut tail);
            tail.extend_from_slice(&entry.name);
        }
        let parent = match id == self.tree.root() {
            true => self.plan.order.len() as u32 + 1,
            false => self.plan.number_of(self.plan.parent(id)),
        };
        let body = InodeBody::Directory {
            block: u32::try_from(start.block()).map_err(|_| too_large())?,
            offset: start.offset(),
            size,
            nlink: 2 + subdirectories,
            parent,
            index_count: u16::try_from(index.len()).map_err(|_| too_large())?,
        };
        Ok((body, tail))
    }
}

fn inode_type(node: &Node) -> InodeType {
    match node.kind {
        NodeKind::Directory => InodeType::Directory,
        NodeKind::File(_) => InodeType::File,
        NodeKind::Symlink(_) => InodeType::Symlink,
        NodeKind::BlockDevice(_) => InodeType::BlockDevice,
        NodeKind::CharDevice(_) => InodeType::CharDevice,
        NodeKind::Fifo => InodeType::Fifo,
        NodeKind::Socket => InodeType::Socket,
    }
}

/// Writes listings: groups entries under headers and notes where the index points.
struct Listings<'a> {
    table: MetaWriter<'a>,
    /// Encoded entries of the group that is not finished.
    group: Vec<u8>,
    header: DirHeader,
    first_name: Vec<u8>,
    /// Bytes of this listing that are written.
    written: u32,
    /// Where the listing's last index entry points.
    indexed: u32,
    index: Vec<IndexEntry>,
}

struct IndexEntry {
    position: u32,
    start: u32,
    name: Vec<u8>,
}

impl<'a> Listings<'a> {
    fn new(compressor: &'a mut Compressor) -> Self {
        Self {
            table: MetaWriter::new(compressor),
            group: Vec::new(),
            header: DirHeader { count: 0, start: 0, number: 0 },
            first_name: Vec::new(),
            written: 0,
            indexed: 0,
            index: Vec::new(),
        }
    }

    fn begin(&mut self) {
        (self.written, self.indexed) = (0, 0);
        self.index.clear();
    }

    fn entry(
        &mut self,
        name: &[u8],
        kind: InodeType,
        at: MetaRef,
        number: u32,
    ) -> Result<(), WriteError> {
        let start = u32::try_from(at.block()).map_err(|_| WriteError::TooManyInodes)?;
        let size = (DirEntryHeader::SIZE + name.len()) as u32;
        let delta = i64::from(number) - i64::from(self.header.number);
        let group_end = self.written + DirHeader::SIZE as u32 + self.group.len() as u32 + size;
        // A new header every block's worth of listing gives the index something to point at.
        let fits = self.header.count < crate::format::dir::ENTRIES_MAX
            && start == self.header.start
            && (-32768..=32767).contains(&delta)
            && group_end - self.indexed <= METADATA_SIZE as u32;
        if self.header.count > 0 && !fits {
            self.flush()?;
        }
        if self.header.count == 0 {
            self.header = DirHeader { count: 0, start, number };
            self.first_name.clear();
            self.first_name.extend_from_slice(name);
        }
        let number_delta = (i64::from(number) - i64::from(self.header.number)) as i16;
        let name_len = name.len() as u16;
        DirEntryHeader { offset: at.offset(), number_delta, kind, name_len }
            .encode(&mut self.group);
        self.group.extend_from_slice(name);
        self.header.count += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        let group_size = (DirHeader::SIZE + self.group.len()) as u32;
        if self.written > 0 && self.written + group_size - self.indexed > METADATA_SIZE as u32 {
            let start = self.table.position().block() as u32;
            self.index.push(IndexEntry {
                position: self.written,
                start,
                name: self.first_name.clone(),
            });
            self.indexed = self.written;
        }
        let mut header = Vec::with_capacity(DirHeader::SIZE);
        self.header.encode(&mut header);
        self.table.write(&header)?;
        self.table.write(&self.group)?;
        self.written += group_size;
        self.group.clear();
        self.header.count = 0;
        Ok(())
    }

    /// Length of the listing and its index.
    fn end(&mut self) -> Result<(u32, Vec<IndexEntry>), WriteError> {
        if self.header.count > 0 {
            self.flush()?;
        }
        Ok((self.written, std::mem::take(&mut self.index)))
    }
}

type XattrIds = HashMap<NodeId, u32>;

fn encode_xattrs(
    tree: &Tree,
    plan: &Plan<'_>,
    options: &WriteOptions,
) -> Result<(Option<Xattrs>, XattrIds), WriteError> {
    let mut by_node = HashMap::new();
    let mut by_set: HashMap<Vec<&Attribute>, u32> = HashMap::new();
    let mut compressor = options.compressor(METADATA_SIZE as u32)?;
    let mut values = MetaWriter::new(&mut compressor);
    let mut ids = Vec::new();
    for &id in &plan.order {
        let mut set: Vec<&Attribute> = tree.node(id).metadata.xattrs.iter().collect();
        if set.is_empty() {
            continue;
        }
        set.sort();
        let index = match by_set.get(&set) {
            Some(&index) => index,
            None => {
                let first = values.position();
                let mut pairs = Vec::new();
                for xattr in &set {
                    let refused = || WriteError::Attribute {
                        path: plan.shown(id),
                        name: String::from_utf8_lossy(&xattr.name).into_owned(),
                    };
                    encode_pair(xattr, &mut pairs).ok_or_else(refused)?;
                }
                values.write(&pairs)?;
                let (count, size) = (set.len() as u32, pairs.len() as u32);
                XattrId { first, count, size }.encode(&mut ids);
                let index = by_set.len() as u32;
                by_set.insert(set, index);
                index
            }
        };
        by_node.insert(id, index);
    }
    let count = by_set.len() as u32;
    let xattrs = (count > 0).then_some(());
    let values = values.finish()?.0;
    Ok((xattrs.map(|()| Xattrs { values, ids, count }), by_node))
}

/// Appends key and value; `None` if the format cannot hold them.
fn encode_pair(xattr: &Attribute, out: &mut Vec<u8>) -> Option<()> {
    let (prefix, name) = XattrPrefix::split(&xattr.name)?;
    let name_len = u16::try_from(name.len()).ok()?;
    let fits = !name.is_empty() && xattr.name.len() <= crate::format::xattr::NAME_MAX;
    let length = u32::try_from(xattr.value.len()).ok()?;
    if !fits || length > crate::format::xattr::VALUE_MAX {
        return None;
    }
    KeyHeader { prefix, out_of_line: false, name_len }.encode(out);
    out.extend_from_slice(name);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&xattr.value);
    Some(())
}
