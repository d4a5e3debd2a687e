//! The images of a mount.

use std::path::Path;
use std::sync::Arc;

use mica_squashfs::{Image, OpenError, OpenOptions};

/// One image of a stack, and what messages call it.
#[derive(Clone)]
pub struct StackLayer {
    /// The layer's name in messages: a label, a file name.
    pub name: String,
    /// The image, shared with whoever else reads it.
    pub image: Arc<Image>,
}

impl StackLayer {
    /// Opens an image file, plain squashfs or XAR, as a layer.
    pub fn open(name: impl Into<String>, image: &Path) -> Result<StackLayer, OpenError> {
        let image = Arc::new(Image::open(image, &OpenOptions::default())?);
        Ok(StackLayer { name: name.into(), image })
    }
}

/// Images in overlay order.
#[derive(Clone, Default)]
pub struct Stack {
    /// Topmost first: the first that has a path decides what it is.
    pub layers: Vec<StackLayer>,
}

impl std::fmt::Debug for StackLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StackLayer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.layers).finish()
    }
}
