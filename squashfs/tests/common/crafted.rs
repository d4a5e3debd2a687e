//! Images with wrong things in them that no packer writes: loops, directories under many names, bombs.
//!
//! Used by path from other crates' tests too, so it uses the public interface alone.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test uses a part of it")]

use mica_squashfs::codec::{Compression, Compressor};

const META: usize = 8192;
const NONE: u32 = u32::MAX;

/// What directories say of the one above them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parents {
    /// The first directory that holds them.
    Right,
    /// A number that no inode has, as some writers do.
    Unknown,
}

enum Kind {
    Dir(Vec<(Vec<u8>, usize)>),
    File { content: Vec<u8>, size: u64, holes: usize, nlink: u32 },
    Char(u32),
}

struct Node {
    kind: Kind,
    mode: u16,
    xattr: u32,
    parent: u32,
    /// Shares the listing of this directory.
    like: Option<usize>,
}

/// An image in the making; node 0 is the root.
pub struct Crafted {
    nodes: Vec<Node>,
    /// Encoded pairs of each set of attributes, and how many.
    sets: Vec<(Vec<u8>, u32)>,
    block_log: u16,
    parents: Parents,
    /// Directories record three bytes less than they should, as squashfs-tools-ng did before 1.1.3.
    pub short: bool,
}

impl Crafted {
    pub fn new(parents: Parents) -> Crafted {
        let mut image =
            Crafted { nodes: Vec::new(), sets: Vec::new(), block_log: 17, parents, short: false };
        image.dir();
        image
    }

    fn node(&mut self, kind: Kind, mode: u16) -> usize {
        self.nodes.push(Node { kind, mode, xattr: NONE, parent: 0, like: None });
        self.nodes.len() - 1
    }

    pub fn dir(&mut self) -> usize {
        self.node(Kind::Dir(Vec::new()), 0o755)
    }

    /// A directory with the very listing of another one.
    pub fn dir_like(&mut self, other: usize) -> usize {
        let dir = self.dir();
        self.nodes[dir].like = Some(other);
        dir
    }

    pub fn file(&mut self, content: &[u8], nlink: u32) -> usize {
        let (content, size) = (content.to_vec(), content.len() as u64);
        self.node(Kind::File { content, size, holes: 0, nlink }, 0o644)
    }

    /// A file of so many blocks that are not stored.
    pub fn holes(&mut self, blocks: usize) -> usize {
        let size = (blocks as u64) << self.block_log;
        self.node(Kind::File { content: Vec::new(), size, holes: blocks, nlink: 1 }, 0o644)
    }

    pub fn whiteout(&mut self) -> usize {
        self.node(Kind::Char(0), 0)
    }

    pub fn add(&mut self, dir: usize, name: &str, child: usize) {
        if self.nodes[child].parent == 0 {
            self.nodes[child].parent = dir as u32 + 1;
        }
        let Kind::Dir(entries) = &mut self.nodes[dir].kind else { panic!("no directory") };
        entries.push((name.into(), child));
    }

    /// Gives a node a set of attributes.
    pub fn set_xattrs(&mut self, node: usize, set: usize) {
        self.nodes[node].xattr = set as u32;
    }

    /// A set of `user.` attributes.
    pub fn xattrs(&mut self, pairs: &[(&str, &[u8])]) -> usize {
        let mut bytes = Vec::new();
        for (name, value) in pairs {
            put(&mut bytes, &[0, name.len() as u16]);
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
            bytes.extend_from_slice(value);
        }
        self.sets.push((bytes, pairs.len() as u32));
        self.sets.len() - 1
    }

    fn size_of(&self, node: &Node) -> usize {
        match &node.kind {
            Kind::Dir(_) => 40,
            Kind::File { content, holes, .. } => {
                56 + 4 * (content.len().div_ceil(1 << self.block_log) + holes)
            }
            Kind::Char(_) => 24,
        }
    }

    /// The image; metadata are compressed, so that a bomb is small.
    pub fn bytes(mut self) -> Vec<u8> {
        let mut data = Vec::new();
        let mut starts = Vec::new();
        for node in &self.nodes {
            starts.push(96 + data.len() as u64);
            if let Kind::File { content, .. } = &node.kind {
                data.extend_from_slice(content);
            }
        }
        // Compressed metadata blocks have no places that are known before the table is written: inodes twice.
        let mut places = vec![0; self.nodes.len()];
        let mut at = 0;
        for (place, node) in places.iter_mut().zip(&self.nodes) {
            *place = at;
            at += self.size_of(node);
        }
        for node in &mut self.nodes {
            if let Kind::Dir(entries) = &mut node.kind {
                entries.sort();
            }
        }
        // Inodes are not compressed but for the block lists, which are at the end.
        let inode_block = |place: usize| (place / META * (META + 2)) as u32;
        let mut listings = Vec::new();
        let mut spans = vec![(0, 0); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            let Kind::Dir(entries) = &node.kind else { continue };
            let start = listings.len();
            let mut rest = &entries[..];
            while let Some((_, first)) = rest.first() {
                let block = inode_block(places[*first]);
                let run = rest
                    .iter()
                    .take(256)
                    .take_while(|(_, child)| {
                        inode_block(places[*child]) == block && child.abs_diff(*first) < 30_000
                    })
                    .count();
                put32(&mut listings, &[run as u32 - 1, block, *first as u32 + 1]);
                for (name, child) in &rest[..run] {
                    let kind = match self.nodes[*child].kind {
                        Kind::Dir(_) => 1,
                        Kind::File { .. } => 2,
                        Kind::Char(_) => 5,
                    };
                    let delta = (*child as i64 - *first as i64) as i16;
                    let offset = (places[*child] % META) as u16;
                    put(&mut listings, &[offset, delta as u16, kind, name.len() as u16 - 1]);
                    listings.extend_from_slice(name);
                }
                rest = &rest[run..];
            }
            spans[index] = (start, listings.len() - start);
        }
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(other) = node.like {
                spans[index] = spans[other];
            }
        }
        let (directory_table, blocks) = meta(&listings, true);
        let inodes = self.nodes.len() as u32;
        let mut table = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let number = index as u32 + 1;
            match &node.kind {
                Kind::Dir(_) => {
                    let (start, len) = spans[index];
                    let parent = match (self.parents, index) {
                        (Parents::Right, 1..) => node.parent,
                        _ => inodes + 1,
                    };
                    put(&mut table, &[8, node.mode, 0, 0]);
                    let block = blocks[start / META];
                    let extra = if self.short { 0 } else { 3 };
                    put32(&mut table, &[0, number, 2, len as u32 + extra, block, parent]);
                    put(&mut table, &[0, (start % META) as u16]);
                    put32(&mut table, &[node.xattr]);
                }
                Kind::File { content, size, holes, nlink } => {
                    put(&mut table, &[9, node.mode, 0, 0]);
                    put32(&mut table, &[0, number]);
                    for wide in [starts[index], *size, 0] {
                        table.extend_from_slice(&wide.to_le_bytes());
                    }
                    put32(&mut table, &[*nlink, NONE, 0, node.xattr]);
                    for block in content.chunks(1 << self.block_log) {
                        put32(&mut table, &[block.len() as u32 | 1 << 24]);
                    }
                    table.resize(table.len() + 4 * holes, 0);
                }
                Kind::Char(rdev) => {
                    put(&mut table, &[5, node.mode, 0, 0]);
                    put32(&mut table, &[0, number, 1, *rdev]);
                }
            }
            assert_eq!(table.len(), places[index] + self.size_of(node));
        }
        let holes = self.nodes.iter().any(|n| matches!(n.kind, Kind::File { holes: 1.., .. }));
        // With a block list that is to be small the inodes are compressed; there may be few then.
        assert!(!holes || places.last().unwrap() < &META, "a file of holes goes last");
        let inode_table = meta(&table, holes).0;
        self.assemble(data, inode_table, directory_table)
    }

    fn assemble(self, data: Vec<u8>, inodes: Vec<u8>, directories: Vec<u8>) -> Vec<u8> {
        let mut out = vec![0; 96];
        out.extend(data);
        let inode_table = out.len() as u64;
        out.extend(inodes);
        let directory_table = out.len() as u64;
        out.extend(directories);
        let mut xattr_table = u64::MAX;
        if !self.sets.is_empty() {
            let pairs: Vec<u8> = self.sets.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
            let (values, blocks) = meta(&pairs, true);
            let (start, mut at, mut ids) = (out.len() as u64, 0, Vec::new());
            out.extend(values);
            for (bytes, count) in &self.sets {
                let place = u64::from(blocks[at / META]) << 16 | (at % META) as u64;
                ids.extend_from_slice(&place.to_le_bytes());
                put32(&mut ids, &[*count, bytes.len() as u32]);
                at += bytes.len();
            }
            let mut positions = Vec::new();
            for chunk in ids.chunks(META) {
                positions.extend_from_slice(&(out.len() as u64).to_le_bytes());
                out.extend(meta(chunk, false).0);
            }
            xattr_table = out.len() as u64;
            out.extend_from_slice(&start.to_le_bytes());
            put32(&mut out, &[self.sets.len() as u32, 0]);
            out.extend(positions);
        }
        let ids = out.len() as u64;
        out.extend(meta(&0_u32.to_le_bytes(), false).0);
        let id_table = out.len() as u64;
        out.extend_from_slice(&ids.to_le_bytes());
        let mut head = Vec::new();
        put32(&mut head, &[0x7371_7368, self.nodes.len() as u32, 0, 1 << self.block_log, 0]);
        // zstd; no fragments
        put(&mut head, &[6, self.block_log, 0x10, 1, 4, 0]);
        let used = out.len() as u64;
        let none = u64::MAX;
        for wide in [0, used, id_table, xattr_table, inode_table, directory_table, none, none] {
            head.extend_from_slice(&u64::to_le_bytes(wide));
        }
        out[..96].copy_from_slice(&head);
        out.resize(out.len().next_multiple_of(4096), 0);
        out
    }
}

fn put(out: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

/// Metadata blocks, and where each begins.
fn meta(bytes: &[u8], compressed: bool) -> (Vec<u8>, Vec<u32>) {
    let mut compressor = Compressor::new(Compression::Zstd, Some(3), 1 << 17).unwrap();
    let (mut out, mut blocks, mut packed) = (Vec::new(), Vec::new(), Vec::new());
    for chunk in bytes.chunks(META) {
        blocks.push(out.len() as u32);
        if compressed && compressor.compress(chunk, &mut packed).unwrap() {
            put(&mut out, &[packed.len() as u16]);
            out.extend_from_slice(&packed);
        } else {
            put(&mut out, &[chunk.len() as u16 | 0x8000]);
            out.extend_from_slice(chunk);
        }
    }
    blocks.push(out.len() as u32);
    (out, blocks)
}

/// Directories that lead back into themselves.
pub fn cycle(parents: Parents) -> Vec<u8> {
    let mut image = Crafted::new(parents);
    let around = image.dir();
    image.add(0, "loop", around);
    for name in ["a", "b"] {
        image.add(around, name, around);
    }
    with_links(image)
}

/// Sixty levels of directories with two names each: 2^60 paths.
pub fn levels(parents: Parents) -> Vec<u8> {
    let mut image = Crafted::new(parents);
    let mut above = 0;
    for _ in 0..60 {
        let below = image.dir();
        image.add(above, "a", below);
        image.add(above, "b", below);
        above = below;
    }
    with_links(image)
}

/// A directory with a thousand names in itself.
pub fn wide(parents: Parents) -> Vec<u8> {
    let mut image = Crafted::new(parents);
    let around = image.dir();
    image.add(0, "loop", around);
    for name in 0..1000 {
        image.add(around, &format!("{name}"), around);
    }
    with_links(image)
}

/// Many directories that have one listing, with as many entries.
pub fn shared_listing(directories: usize, entries: usize) -> Vec<u8> {
    let mut image = Crafted::new(Parents::Right);
    let full = image.dir();
    image.add(0, "full", full);
    let file = image.file(b"x", 2);
    for name in 0..entries {
        image.add(full, &format!("{name:07}"), file);
    }
    for name in 0..directories {
        let dir = image.dir_like(full);
        image.add(0, &format!("like-{name:07}"), dir);
    }
    with_links(image)
}

fn with_links(mut image: Crafted) -> Vec<u8> {
    let file = image.file(b"hello\n", 2);
    image.add(0, "file", file);
    image.add(0, "file2", file);
    image.bytes()
}
