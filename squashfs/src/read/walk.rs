//! Walking the tree of an image.

use super::{Image, Inode, InodeRef, ReadDir, ReadError, Repeated, Visited};

/// Deepest directory that is walked. Twice as deep as a path that a system call takes can be.
pub const DEPTH_MAX: usize = 2048;
/// Longest path that is walked.
const PATH_MAX: usize = 64 << 10;

/// A file found by [`walk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkEntry {
    /// Path from the image's root, without a leading `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// Its inode.
    pub inode: Inode,
}

/// A file or directory that cannot be walked.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", show(.path))]
pub struct WalkError {
    /// Path from the image's root.
    pub path: Vec<u8>,
    /// Why.
    #[source]
    pub fault: WalkFault,
}

/// Why a file cannot be walked.
#[derive(Debug, thiserror::Error)]
pub enum WalkFault {
    /// The image cannot be read there.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The directory appears at a second place: inside itself, as a hard link, or by its entries.
    #[error(transparent)]
    Repeated(#[from] Repeated),
    /// Deeper than [`DEPTH_MAX`], or a path of more than 64 KiB.
    #[error("more than {DEPTH_MAX} directories or 64 KiB deep")]
    Depth,
}

fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// Walks the image from its root, every directory before what is in it, names in the image's order (sorted).
///
/// An error is about one file or directory; the walk goes on behind it. Every directory is visited once, so the
/// walk ends whatever the image holds.
pub fn walk(image: &Image) -> Walk<'_> {
    walk_from(image, image.root())
}

/// The same of what is below an inode; paths begin there.
pub fn walk_from(image: &Image, start: InodeRef) -> Walk<'_> {
    Walk {
        image,
        start: Some(start),
        path: Vec::new(),
        stack: Vec::new(),
        seen: Visited::default(),
    }
}

/// The iterator of [`walk`].
pub struct Walk<'a> {
    image: &'a Image,
    /// The root, until it was visited.
    start: Option<InodeRef>,
    /// Path of the entry last seen.
    path: Vec<u8>,
    /// Open directories, outermost first, with the length of their path.
    stack: Vec<(ReadDir<'a>, usize)>,
    /// Directories visited.
    seen: Visited,
}

impl Walk<'_> {
    /// Does not enter the directory that was returned last.
    pub fn skip_directory(&mut self) {
        if self.stack.last().is_some_and(|(_, len)| *len == self.path.len()) {
            self.stack.pop();
        }
    }

    fn visit(&mut self, reference: InodeRef) -> Result<WalkEntry, WalkError> {
        self.enter(reference).map_err(|fault| WalkError { path: self.path.clone(), fault })
    }

    fn enter(&mut self, reference: InodeRef) -> Result<WalkEntry, WalkFault> {
        let inode = self.image.inode(reference)?;
        if inode.is_dir() {
            if self.stack.len() >= DEPTH_MAX || self.path.len() > PATH_MAX {
                return Err(WalkFault::Depth);
            }
            self.seen.enter(&inode)?;
            let entries = self.image.read_dir(&inode)?;
            self.stack.push((entries, self.path.len()));
        }
        Ok(WalkEntry { path: self.path.clone(), inode })
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<WalkEntry, WalkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(root) = self.start.take() {
            return Some(self.visit(root));
        }
        loop {
            let (entries, len) = self.stack.last_mut()?;
            self.path.truncate(*len);
            match entries.next() {
                None => {
                    self.stack.pop();
                }
                Some(Ok(entry)) => {
                    if let Err(repeated) = self.seen.read(entries) {
                        self.stack.clear();
                        return Some(Err(WalkError {
                            path: self.path.clone(),
                            fault: repeated.into(),
                        }));
                    }
                    if !self.path.is_empty() {
                        self.path.push(b'/');
                    }
                    self.path.extend_from_slice(&entry.name);
                    return Some(self.visit(entry.inode));
                }
                Some(Err(error)) => {
                    let fault = WalkFault::Read(error);
                    return Some(Err(WalkError { path: self.path.clone(), fault }));
                }
            }
        }
    }
}
