//! A picture of a tree: everything that a copy of it has to have, by path.

use super::*;

/// Everything about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u32,
    pub nlink: u32,
    pub size: u64,
    pub device: Option<(u32, u32)>,
    /// Hash of a file's content, target of a link.
    pub content: String,
    pub xattrs: BTreeMap<String, String>,
    /// The first path (in order) that is the same file.
    pub same_as: String,
}

pub type Picture = BTreeMap<Vec<u8>, Node>;

/// The tree in a directory.
pub fn of_directory(root: &Path) -> Picture {
    let mut picture = Picture::new();
    let mut inodes = BTreeMap::new();
    add(root, Vec::new(), &mut picture);
    for (path, node) in &mut picture {
        let ino = fs::symlink_metadata(root.join(OsStr::from_bytes(path))).unwrap().ino();
        node.same_as = inodes.entry(ino).or_insert_with(|| text(path)).clone();
    }
    picture
}

fn add(path: &Path, name: Vec<u8>, picture: &mut Picture) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    let content = if kind.is_file() {
        hash_file(path)
    } else if kind.is_symlink() {
        text(fs::read_link(path).unwrap().as_os_str().as_bytes())
    } else {
        String::new()
    };
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let mut child = name.clone();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(entry.file_name().as_bytes());
            add(&entry.path(), child, picture);
        }
    }
    let device = (kind.is_block_device() || kind.is_char_device())
        .then(|| (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())));
    let node = Node {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: metadata.mtime() as u32,
        nlink: if kind.is_dir() { 0 } else { metadata.nlink() as u32 },
        size: if kind.is_dir() { 0 } else { metadata.size() },
        device,
        content,
        xattrs: read_xattrs(path),
        same_as: String::new(),
    };
    picture.insert(name, node);
}

/// Bytes as somebody who reads a failed test wants them: short, and as text.
fn text(bytes: &[u8]) -> String {
    if bytes.len() > 300 {
        return format!("{} bytes, {}", bytes.len(), blake3::hash(bytes));
    }
    bytes.escape_ascii().to_string()
}

fn hash_file(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).unwrap();
    std::io::copy(&mut file, &mut hasher).unwrap();
    hasher.finalize().to_string()
}

fn read_xattrs(path: &Path) -> BTreeMap<String, String> {
    let mut names = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut value = vec![0; 65536];
    names[..len]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (text(name), text(&value[..len]))
        })
        // The kernel of a machine with SELinux adds one to every file.
        .filter(|(name, _)| name != "security.selinux")
        .collect()
}

/// The tree in an image, as our reader sees it.
pub fn of_image(image: &Image) -> Picture {
    let mut picture = Picture::new();
    let mut numbers = BTreeMap::new();
    for entry in walk(image) {
        let entry = entry.unwrap();
        let inode = entry.inode;
        let content = match inode.kind {
            InodeKind::File { .. } => hash_image_file(image, &inode),
            InodeKind::Symlink { .. } => text(&image.read_link(&inode).unwrap()),
            _ => String::new(),
        };
        let xattrs = image
            .xattrs(&inode)
            .unwrap()
            .into_iter()
            .map(|x| (text(&x.name), text(&x.value)))
            .collect();
        let node = Node {
            mode: inode.file_kind().mode_bits() | u32::from(inode.mode),
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            // Of a directory: squashfs-tools-ng counts all entries, not the subdirectories alone.
            nlink: if inode.is_dir() { 0 } else { inode.nlink },
            size: if inode.is_dir() { 0 } else { inode.size() },
            device: inode.device(),
            content,
            xattrs,
            same_as: numbers.entry(inode.number).or_insert_with(|| text(&entry.path)).clone(),
        };
        assert!(picture.insert(entry.path, node).is_none(), "a path appears twice");
    }
    picture
}

/// Hashes by blocks, and compares with `read_at` here and there.
fn hash_image_file(image: &Image, inode: &mica_squashfs::Inode) -> String {
    let mut hasher = blake3::Hasher::new();
    let blocks = image.blocks(inode).unwrap();
    let mut bytes = Vec::new();
    let mut again = vec![0; 1000];
    for index in 0..blocks.count() {
        blocks.read(index, &mut bytes).unwrap();
        hasher.update(&bytes);
        if index % 7 == 0 || index + 1 == blocks.count() {
            let offset = index * u64::from(blocks.block_size());
            let n = image.read_at(inode, offset, &mut again).unwrap();
            assert_eq!(again[..n.min(bytes.len())], bytes[..n.min(bytes.len())]);
        }
    }
    assert_eq!(image.read_at(inode, inode.size(), &mut again).unwrap(), 0);
    hasher.finalize().to_string()
}

/// Compares two pictures and says what differs, not everything there is.
pub fn assert_same(want: &Picture, got: &Picture, what: &str) {
    for (path, node) in want {
        let name = String::from_utf8_lossy(path);
        let got = got.get(path).unwrap_or_else(|| panic!("{what}: {name} is missing"));
        assert_eq!(got, node, "{what}: {name} (left: ours, right: source)");
    }
    for path in got.keys() {
        assert!(want.contains_key(path), "{what}: {} is extra", String::from_utf8_lossy(path));
    }
}
