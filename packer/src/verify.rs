//! Reading a written image again, through two readers, and comparing it with its input.
//!
//! Our own reader sees everything; backhand is the second opinion, on all but extended attributes
//! and hard links, which it does not know. It is not asked where it cannot read: it is built with
//! zstd and gzip, and takes no symlink of 256 bytes or more and no file of 2 TiB or more.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backhand::{BackhandError, FilesystemReader, InnerNode, NodeHeader};
use mica_squashfs::codec::Compression;
use mica_squashfs::read::{WalkError, walk};
use mica_squashfs::write::{Attribute, Content, Node, NodeId, NodeKind};
use mica_squashfs::{Image, Inode, InodeKind, OpenError, OpenOptions, ReadError};

use crate::Scan;

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Entries, all found in both.
    pub entries: u64,
    /// Bytes of contents, all equal.
    pub bytes: u64,
    /// What backhand says.
    pub second_opinion: SecondOpinion,
}

/// What the second reader says of an image that ours finds right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondOpinion {
    /// The same.
    Agrees,
    /// Nothing: it cannot read such an image, for this reason.
    None(&'static str),
}

/// Why an image is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The image cannot be opened.
    #[error("cannot open {}", image.display())]
    Open {
        /// The image.
        image: PathBuf,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// The tree of the image cannot be walked.
    #[error("cannot walk the image")]
    Walk(#[from] WalkError),
    /// A part of the image cannot be read.
    #[error("cannot read {} from the image", path.display())]
    Image {
        /// The entry.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ReadError,
    },
    /// backhand cannot read the image.
    #[error("backhand cannot read the image")]
    Backhand(#[from] BackhandError),
    /// A content cannot be read, from the input or by backhand.
    #[error("cannot read {}", path.display())]
    Read {
        /// The entry.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something differs.
    #[error("{}: {what} differs in the image, as read by {reader}", path.display())]
    Differs {
        /// The entry.
        path: PathBuf,
        /// What.
        what: &'static str,
        /// Who says so.
        reader: &'static str,
    },
}

/// Reads `image` again and compares it with the input it was packed from.
pub fn verify(image: &Path, scan: &Scan) -> Result<Verified, VerifyError> {
    let opened = Image::open(image, &OpenOptions::default())
        .map_err(|source| VerifyError::Open { image: image.to_owned(), source })?;
    let mut expected: BTreeMap<Vec<u8>, NodeId> = scan.entries().collect();
    expected.insert(Vec::new(), scan.tree.root());
    let bytes = Ours { image: &opened, scan }.compare(&expected)?;
    let second_opinion = match beyond_backhand(&opened, scan) {
        Some(reason) => SecondOpinion::None(reason),
        None => SecondOpinion::Agrees,
    };
    if second_opinion == SecondOpinion::Agrees {
        let file = File::open(image)
            .map_err(|source| VerifyError::Read { path: image.to_owned(), source })?;
        let reader =
            FilesystemReader::from_reader_with_offset(BufReader::new(file), opened.start())?;
        Backhand { reader: &reader, scan }.compare(&expected)?;
    }
    Ok(Verified { entries: expected.len() as u64, bytes, second_opinion })
}

fn beyond_backhand(image: &Image, scan: &Scan) -> Option<&'static str> {
    if !matches!(image.compression(), Compression::Zstd | Compression::Gzip) {
        return Some("the compression");
    }
    scan.tree.ids().find_map(|id| match &scan.tree.node(id).kind {
        NodeKind::Symlink(target) if target.len() >= 256 => Some("a symlink of 256 bytes or more"),
        NodeKind::File(content) if content.size() >= 2 << 40 => Some("a file of 2 TiB or more"),
        _ => None,
    })
}

fn shown(path: &[u8]) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path))
}

fn differs(path: &[u8], what: &'static str, reader: &'static str) -> VerifyError {
    VerifyError::Differs { path: shown(path), what, reader }
}

/// The first entry that only one of the two has.
fn same_paths(
    expected: &BTreeMap<Vec<u8>, NodeId>,
    mut found: Vec<&[u8]>,
    reader: &'static str,
) -> Result<(), VerifyError> {
    found.sort_unstable();
    for (want, got) in expected.keys().zip(&found) {
        if want != got {
            return Err(differs(want.as_slice().min(got), "its presence", reader));
        }
    }
    match expected.keys().map(Vec::as_slice).nth(found.len()).or(found.get(expected.len()).copied())
    {
        Some(extra) => Err(differs(extra, "its presence", reader)),
        None => Ok(()),
    }
}

struct Ours<'a> {
    image: &'a Image,
    scan: &'a Scan,
}

impl Ours<'_> {
    const NAME: &'static str = "mica";

    fn compare(&self, expected: &BTreeMap<Vec<u8>, NodeId>) -> Result<u64, VerifyError> {
        let entries: Vec<_> = walk(self.image).collect::<Result<_, _>>()?;
        same_paths(expected, entries.iter().map(|entry| &*entry.path).collect(), Self::NAME)?;
        let (mut bytes, mut numbers) = (0, HashMap::new());
        for entry in &entries {
            let id = expected[&entry.path];
            let first = numbers.insert(id, entry.inode.number);
            if first.is_some_and(|number| number != entry.inode.number) {
                return Err(differs(&entry.path, "its hard links", Self::NAME));
            }
            self.metadata(&entry.path, &entry.inode, id)?;
            // A second name of the same inode has the same content.
            if first.is_none() {
                bytes += self.content(&entry.path, &entry.inode, self.scan.tree.node(id))?;
            }
        }
        let unique: std::collections::HashSet<_> = numbers.values().collect();
        match unique.len() == numbers.len() {
            true => Ok(bytes),
            false => Err(differs(b"", "the number of inodes", Self::NAME)),
        }
    }

    fn metadata(&self, path: &[u8], inode: &Inode, id: NodeId) -> Result<(), VerifyError> {
        let node = self.scan.tree.node(id);
        let metadata = &node.metadata;
        let checks = [
            (inode.mode == metadata.mode, "the mode"),
            ((inode.uid, inode.gid) == (metadata.uid, metadata.gid), "the owner"),
            (inode.mtime == metadata.mtime, "the modification time"),
            (inode.is_dir() || inode.nlink == self.scan.tree.link_count(id), "the link count"),
        ];
        if let Some((_, what)) = checks.iter().find(|(same, _)| !same) {
            return Err(differs(path, what, Self::NAME));
        }
        let xattrs = self.image.xattrs(inode);
        let xattrs = xattrs.map_err(|source| VerifyError::Image { path: shown(path), source })?;
        let mut found: Vec<Attribute> = xattrs
            .into_iter()
            .map(|xattr| Attribute { name: xattr.name, value: xattr.value })
            .collect();
        let mut wanted = metadata.xattrs.clone();
        found.sort();
        wanted.sort();
        if found == wanted {
            Ok(())
        } else {
            Err(differs(path, "an extended attribute", Self::NAME))
        }
    }

    fn content(&self, path: &[u8], inode: &Inode, node: &Node) -> Result<u64, VerifyError> {
        let failed = |source| VerifyError::Image { path: shown(path), source };
        let same = match (&inode.kind, &node.kind) {
            (InodeKind::File { .. }, NodeKind::File(content)) => {
                let blocks = self.image.blocks(inode).map_err(failed)?;
                let (mut block, mut index) = (Vec::new(), 0);
                if blocks.size() != content.size() {
                    return Err(differs(path, "the size", Self::NAME));
                }
                return compare_content(path, &**content, Self::NAME, |_| {
                    blocks.read(index, &mut block).map_err(failed)?;
                    index += 1;
                    Ok(std::mem::take(&mut block))
                });
            }
            (InodeKind::Symlink { .. }, NodeKind::Symlink(target)) => {
                self.image.read_link(inode).map_err(failed)? == *target
            }
            (InodeKind::BlockDevice { rdev }, NodeKind::BlockDevice(want))
            | (InodeKind::CharDevice { rdev }, NodeKind::CharDevice(want)) => rdev == want,
            (InodeKind::Directory { .. }, NodeKind::Directory)
            | (InodeKind::Fifo, NodeKind::Fifo)
            | (InodeKind::Socket, NodeKind::Socket) => true,
            _ => return Err(differs(path, "the kind", Self::NAME)),
        };
        if same { Ok(0) } else { Err(differs(path, "the target", Self::NAME)) }
    }
}

/// Compares a content with pieces that come one after the other; returns its size.
fn compare_content(
    path: &[u8],
    content: &dyn Content,
    reader: &'static str,
    mut next: impl FnMut(u64) -> Result<Vec<u8>, VerifyError>,
) -> Result<u64, VerifyError> {
    let failed = |source| VerifyError::Read { path: shown(path), source };
    let size = content.size();
    if size == 0 {
        return Ok(0);
    }
    let open = content.open().map_err(failed)?;
    let (mut at, mut wanted) = (0, Vec::new());
    while at < size {
        let piece = next(at)?;
        wanted.resize(piece.len(), 0);
        if piece.is_empty() || at + piece.len() as u64 > size {
            return Err(differs(path, "the size", reader));
        }
        open.read_exact_at(&mut wanted, at).map_err(failed)?;
        if wanted != piece {
            return Err(differs(path, "the content", reader));
        }
        at += piece.len() as u64;
    }
    Ok(size)
}

struct Backhand<'a> {
    reader: &'a FilesystemReader<'static>,
    scan: &'a Scan,
}

impl Backhand<'_> {
    const NAME: &'static str = "backhand";

    fn compare(&self, expected: &BTreeMap<Vec<u8>, NodeId>) -> Result<(), VerifyError> {
        let bare = |path: &'_ Path| -> Vec<u8> {
            let bytes = path.as_os_str().as_bytes();
            bytes.strip_prefix(b"/").unwrap_or(bytes).to_vec()
        };
        let nodes: Vec<_> = self.reader.files().map(|node| (bare(&node.fullpath), node)).collect();
        same_paths(expected, nodes.iter().map(|(path, _)| &**path).collect(), Self::NAME)?;
        for (path, node) in &nodes {
            let want = self.scan.tree.node(expected[path]);
            self.header(path, &node.header, want)?;
            let same = match (&node.inner, &want.kind) {
                (InnerNode::File(file), NodeKind::File(content)) => {
                    let mut bytes = self.reader.file(file).reader();
                    compare_content(path, &**content, Self::NAME, |at| {
                        let mut piece = vec![0; (content.size() - at).min(128 << 10) as usize];
                        bytes
                            .read_exact(&mut piece)
                            .map_err(|source| VerifyError::Read { path: shown(path), source })?;
                        Ok(piece)
                    })?;
                    bytes.read(&mut [0]).is_ok_and(|length| length == 0)
                }
                (InnerNode::Symlink(link), NodeKind::Symlink(target)) => {
                    link.link.as_os_str().as_bytes() == target
                }
                (InnerNode::CharacterDevice(device), NodeKind::CharDevice(want)) => {
                    device.device_number == *want
                }
                (InnerNode::BlockDevice(device), NodeKind::BlockDevice(want)) => {
                    device.device_number == *want
                }
                (InnerNode::Dir(_), NodeKind::Directory)
                | (InnerNode::NamedPipe, NodeKind::Fifo)
                | (InnerNode::Socket, NodeKind::Socket) => true,
                _ => return Err(differs(path, "the kind", Self::NAME)),
            };
            if !same {
                return Err(differs(path, "the content", Self::NAME));
            }
        }
        Ok(())
    }

    fn header(&self, path: &[u8], header: &NodeHeader, want: &Node) -> Result<(), VerifyError> {
        let metadata = &want.metadata;
        let checks = [
            (header.permissions & 0o7777 == metadata.mode, "the mode"),
            ((header.uid, header.gid) == (metadata.uid, metadata.gid), "the owner"),
            (header.mtime == metadata.mtime, "the modification time"),
        ];
        match checks.iter().find(|(same, _)| !same) {
            Some((_, what)) => Err(differs(path, what, Self::NAME)),
            None => Ok(()),
        }
    }
}
