//! What a stack shows, without a mount: for those who ask where a path comes from, or what two stacks differ in.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use mica_squashfs::{Image, Inode, ReadError};

use crate::ids::Ids;
use crate::lower::{Lower, LowerError, LowerPart};
use crate::overlay::{self, Found, Merged, resolve};
use crate::stack::Stack;

/// A stack to look at.
pub struct View {
    lower: Lower,
    images: Vec<std::sync::Arc<Image>>,
}

/// A stack that can't be looked at.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ViewError(#[from] Fault);

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Lower(#[from] LowerError),
    #[error("cannot read layer {layer}")]
    Inode { layer: usize, source: ReadError },
    #[error("a directory is more than {} KiB deep", PATH_MAX >> 10)]
    Deep,
}

/// Longest path of a directory that is walked.
const PATH_MAX: usize = 64 << 10;

impl From<LowerError> for ViewError {
    fn from(error: LowerError) -> Self {
        Self(error.into())
    }
}

/// An entry that the stack shows.
pub struct Seen<'a> {
    /// From the root of the stack, without a leading slash.
    pub path: PathBuf,
    /// The layer it comes from, of a directory the topmost.
    pub layer: usize,
    /// That layer's image.
    pub image: &'a Image,
    /// What it is there.
    pub inode: Inode,
}

impl View {
    /// Looks at these layers.
    pub fn new(stack: Stack) -> Self {
        let images = stack.layers.iter().map(|layer| layer.image.clone()).collect();
        let lower = Lower::new(stack, Ids::new("", "", 0, 0), 0, false);
        Self { lower, images }
    }

    /// Which layers show something at this path, topmost first: several only of a directory.
    ///
    /// # Errors
    /// An image is damaged.
    pub fn layers_of(&self, path: &Path) -> Result<Vec<usize>, ViewError> {
        let mut parts = overlay::root(&self.lower)?;
        let mut names = path.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        while let Some(name) = names.next() {
            parts = match overlay::find(&self.lower, &parts, name.as_bytes())? {
                Found::Directory(parts) => parts,
                Found::Single(part) if names.next().is_none() => vec![part],
                Found::Single(_) | Found::Nothing => Vec::new(),
            };
        }
        Ok(parts.into_iter().map(|part| part.layer).collect())
    }

    /// Hands each entry that the stack shows to `each`, a directory before what it holds.
    ///
    /// # Errors
    /// An image is damaged; a directory at a second place in its tree is damage.
    pub fn walk<'a>(&'a self, mut each: impl FnMut(Seen<'a>)) -> Result<(), ViewError> {
        let mut folders = vec![(PathBuf::new(), overlay::root(&self.lower)?)];
        let walked = self.lower.walked();
        while let Some((path, parts)) = folders.pop() {
            if path.as_os_str().len() > PATH_MAX {
                return Err(Fault::Deep.into());
            }
            let merged = Merged::new(&walked, &parts)?;
            for item in merged.items() {
                let path = path.join(OsStr::from_bytes(&item.name));
                each(self.seen(path.clone(), item.top)?);
                if item.is_dir {
                    let below = resolve(&self.lower, &parts, &item.name, &item.candidates())?;
                    folders.push((path, below));
                }
            }
        }
        Ok(())
    }

    fn seen(&self, path: PathBuf, part: LowerPart) -> Result<Seen<'_>, ViewError> {
        let (layer, image) = (part.layer, &*self.images[part.layer]);
        let inode = image.inode(part.node.reference);
        let inode = inode.map_err(|source| Fault::Inode { layer, source })?;
        Ok(Seen { path, layer, image, inode })
    }
}
