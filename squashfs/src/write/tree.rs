//! What is to be written: a tree of nodes whose file contents are opened on demand.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;

use super::digest::ContentDigest;

/// The bytes of a regular file, opened only while they are packed.
pub trait Content: Send + Sync {
    /// Number of bytes; what is read must have exactly this length.
    fn size(&self) -> u64;

    /// Bytes that differ whenever the content may differ, without reading it: device, inode, size
    /// and times of a file. `None` if there is no such thing.
    fn identity(&self) -> Option<Vec<u8>> {
        None
    }

    /// What it is, if that is known without reading it. The writer relies on it: blocks of such
    /// a content may be taken from an [earlier image](super::Previous) unseen.
    fn known_digest(&self) -> Option<&ContentDigest> {
        None
    }

    /// Says what it is, after it has been read.
    fn remember_digest(&self, _: ContentDigest) {}

    /// Opens it for reading. Called from several threads, perhaps more than once.
    fn open(&self) -> io::Result<Box<dyn OpenContent + '_>>;
}

/// An open [`Content`]; several threads may read it at once.
pub trait OpenContent: Send + Sync {
    /// Fills `buf` with the bytes at `offset`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The first offset at or after `from` that may hold something else than zeros, `None` if
    /// there is none: lets the writer skip the holes of a sparse file without reading them.
    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        Ok(Some(from))
    }

    /// False if the content is no longer what it was when its size was taken.
    fn is_unchanged(&self) -> io::Result<bool> {
        Ok(true)
    }
}

impl<T: AsRef<[u8]> + Send + Sync> Content for T {
    fn size(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn open(&self) -> io::Result<Box<dyn OpenContent + '_>> {
        Ok(Box::new(InMemory(self.as_ref())))
    }
}

struct InMemory<'a>(&'a [u8]);

impl OpenContent for InMemory<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let from = from.and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// An extended attribute with its full name, as in `user.note`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attribute {
    /// Name, prefix included.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// What every node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission, setuid, setgid and sticky bits (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u32,
    /// Extended attributes, in any order.
    pub xattrs: Vec<Attribute>,
}

impl Metadata {
    /// Owner 0:0, time 0, no extended attributes.
    pub fn with_mode(mode: u16) -> Self {
        Self { mode, ..Self::default() }
    }
}

/// What a node is.
pub enum NodeKind {
    /// A directory; its entries are added to the [`Tree`].
    Directory,
    /// A regular file.
    File(Box<dyn Content>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A block device with its number in the kernel's 32-bit encoding.
    BlockDevice(u32),
    /// A character device.
    CharDevice(u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl fmt::Debug for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("Directory"),
            Self::File(content) => write!(f, "File({} bytes)", content.size()),
            Self::Symlink(target) => write!(f, "Symlink({})", target.escape_ascii()),
            Self::BlockDevice(rdev) => write!(f, "BlockDevice({rdev:#x})"),
            Self::CharDevice(rdev) => write!(f, "CharDevice({rdev:#x})"),
            Self::Fifo => f.write_str("Fifo"),
            Self::Socket => f.write_str("Socket"),
        }
    }
}

/// A file of any kind: what an inode is in the image.
#[derive(Debug)]
pub struct Node {
    /// Mode, owner, time, attributes.
    pub metadata: Metadata,
    /// Kind and content.
    pub kind: NodeKind,
}

/// A node of one [`Tree`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// Position of the node in its tree, from 0 to less than [`Tree::len`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Why an entry cannot be added to a [`Tree`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// Empty, `.`, `..`, with a `/` or NUL, or longer than 255 bytes.
    #[error("`{}` cannot be a file's name", .0.escape_ascii())]
    Name(Vec<u8>),
    /// Something is there already.
    #[error("{} is there twice", .0.escape_ascii())]
    Exists(Vec<u8>),
    /// An entry would go below something else than a directory.
    #[error("{} is not a directory", .0.escape_ascii())]
    NotADirectory(Vec<u8>),
    /// A directory would get a second name.
    #[error("{} would be a hard link to a directory", .0.escape_ascii())]
    DirectoryLink(Vec<u8>),
}

/// A file system to be written. Entries are always in byte order of their names.
///
/// A node with several names (a hard link) is one node added under one name and
/// [linked](Tree::link) under the others.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Entries of each node that is a directory; index into `directories`.
    entries: BTreeMap<NodeId, BTreeMap<Box<[u8]>, NodeId>>,
    links: BTreeMap<NodeId, u32>,
}

impl Tree {
    /// A tree with nothing but its root.
    pub fn new(root: Metadata) -> Self {
        let root = Node { metadata: root, kind: NodeKind::Directory };
        let entries = BTreeMap::from([(NodeId(0), BTreeMap::new())]);
        Self { nodes: vec![root], entries, links: BTreeMap::new() }
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// The node itself.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The node itself, to change its metadata.
    pub fn metadata_mut(&mut self, id: NodeId) -> &mut Metadata {
        &mut self.nodes[id.index()].metadata
    }

    /// Number of nodes (a hard-linked file is one).
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All nodes, parents before what they hold.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// False: there is always a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The entries of a directory in byte order of their names; nothing for other nodes.
    pub fn children(&self, id: NodeId) -> impl DoubleEndedIterator<Item = (&[u8], NodeId)> {
        self.entries.get(&id).into_iter().flatten().map(|(name, id)| (&**name, *id))
    }

    /// The entry `name` of the directory `parent`.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.entries.get(&parent)?.get(name).copied()
    }

    /// The names a node that is no directory has.
    pub fn link_count(&self, id: NodeId) -> u32 {
        1 + self.links.get(&id).copied().unwrap_or(0)
    }

    /// Adds `node` as entry `name` of the directory `parent`.
    pub fn insert(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId, TreeError> {
        let id = NodeId(self.nodes.len() as u32);
        self.enter(parent, name, id)?;
        if matches!(node.kind, NodeKind::Directory) {
            self.entries.insert(id, BTreeMap::new());
        }
        self.nodes.push(node);
        Ok(id)
    }

    /// Gives `target` one more name: a hard link.
    pub fn link(&mut self, parent: NodeId, name: &[u8], target: NodeId) -> Result<(), TreeError> {
        if matches!(self.node(target).kind, NodeKind::Directory) {
            return Err(TreeError::DirectoryLink(name.to_vec()));
        }
        self.enter(parent, name, target)?;
        *self.links.entry(target).or_default() += 1;
        Ok(())
    }

    /// The directory at `path` (components split by `/`), made with mode 0755 where missing.
    pub fn make_directories(&mut self, path: &[u8]) -> Result<NodeId, TreeError> {
        let mut at = self.root();
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            at = match self.child(at, name) {
                Some(child) if self.entries.contains_key(&child) => child,
                Some(_) => return Err(TreeError::NotADirectory(path.to_vec())),
                None => {
                    let metadata = Metadata::with_mode(0o755);
                    self.insert(at, name, Node { metadata, kind: NodeKind::Directory })?
                }
            };
        }
        Ok(at)
    }

    /// The node at `path` (components split by `/`).
    pub fn find(&self, path: &[u8]) -> Option<NodeId> {
        let mut names = path.split(|&b| b == b'/').filter(|name| !name.is_empty());
        names.try_fold(self.root(), |at, name| self.child(at, name))
    }

    fn enter(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), TreeError> {
        let bad = matches!(name, b"" | b"." | b"..") || name.len() > 255;
        if bad || name.contains(&b'/') || name.contains(&0) {
            return Err(TreeError::Name(name.to_vec()));
        }
        let entries = self.entries.get_mut(&parent);
        let entries = entries.ok_or_else(|| TreeError::NotADirectory(name.to_vec()))?;
        match entries.entry(name.into()) {
            Entry::Occupied(_) => return Err(TreeError::Exists(name.to_vec())),
            Entry::Vacant(place) => place.insert(id),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Node {
        let kind = NodeKind::File(Box::new(b"x".to_vec()));
        Node { metadata: Metadata::with_mode(0o644), kind }
    }

    #[test]
    fn names_are_checked() {
        let mut tree = Tree::new(Metadata::with_mode(0o755));
        let root = tree.root();
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(matches!(tree.insert(root, bad, file()), Err(TreeError::Name(_))));
        }
        let id = tree.insert(root, &[0xff; 255], file()).unwrap();
        assert_eq!(
            tree.insert(root, &[0xff; 255], file()).unwrap_err(),
            TreeError::Exists(vec![0xff; 255])
        );
        assert!(matches!(tree.insert(id, b"x", file()), Err(TreeError::NotADirectory(_))));
        assert!(matches!(tree.link(root, b"x", root), Err(TreeError::DirectoryLink(_))));
        tree.link(root, b"second", id).unwrap();
        assert_eq!(tree.link_count(id), 2);
    }
}
