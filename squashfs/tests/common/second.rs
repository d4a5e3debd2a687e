//! backhand, the second reader.

use std::io::{BufReader, Read as _};

use super::*;

/// Opens an image with backhand.
pub fn open(path: &Path) -> backhand::FilesystemReader<'static> {
    let file = BufReader::new(File::open(path).unwrap());
    backhand::FilesystemReader::from_reader(file).unwrap()
}

/// Both readers see the same tree: names, modes, owners, times, content, targets.
pub fn compare_with_backhand(path: &Path) {
    use backhand::InnerNode;
    let image = Image::open(path, &Default::default()).unwrap();
    let theirs = open(path);
    let mut nodes: Vec<_> = theirs.files().collect();
    nodes.sort_by(|a, b| a.fullpath.as_os_str().as_bytes().cmp(b.fullpath.as_os_str().as_bytes()));
    let mut entries: Vec<_> = walk(&image).map(|e| e.unwrap()).collect();
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(nodes.len(), entries.len());
    for (node, entry) in nodes.iter().zip(&entries) {
        let path = node.fullpath.as_os_str().as_bytes();
        assert_eq!(&path[1..], entry.path);
        let inode = &entry.inode;
        let header = node.header;
        assert_eq!(
            (header.permissions & 0o7777, header.uid, header.gid, header.mtime),
            (inode.mode, inode.uid, inode.gid, inode.mtime)
        );
        match (&node.inner, &inode.kind) {
            (InnerNode::File(file), InodeKind::File { .. }) => {
                let mut bytes = Vec::new();
                theirs.file(file).reader().read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes.len() as u64, inode.size());
                let mut ours = vec![0; bytes.len()];
                assert_eq!(image.read_at(inode, 0, &mut ours).unwrap(), bytes.len());
                assert!(ours == bytes, "{}", node.fullpath.display());
            }
            (InnerNode::Symlink(link), InodeKind::Symlink { .. }) => {
                let ours = image.read_link(inode).unwrap();
                assert_eq!(link.link.as_os_str().as_bytes(), ours);
            }
            (InnerNode::Dir(_), InodeKind::Directory { .. })
            | (InnerNode::CharacterDevice(_), InodeKind::CharDevice { .. })
            | (InnerNode::BlockDevice(_), InodeKind::BlockDevice { .. })
            | (InnerNode::NamedPipe, InodeKind::Fifo)
            | (InnerNode::Socket, InodeKind::Socket) => {}
            _ => panic!("{}: another kind", node.fullpath.display()),
        }
    }
}
