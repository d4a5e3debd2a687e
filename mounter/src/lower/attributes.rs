//! Attributes of the layers' files, each read once as long as there is room: an image may give thousands of files 64 KiB
//! of names, and each name 64 KiB of value.

use std::sync::Arc;

use mica_squashfs::Inode;
use mica_squashfs::read::XattrKey;

use super::layers::is_mark;
use super::{Lower, LowerPart, Res};

/// Bytes of names and of values that are kept, for all layers.
pub(super) const ROOM: usize = 2 << 20;

pub(super) type Keys = Arc<Vec<XattrKey>>;

impl Lower {
    /// The names of a file's attributes, the overlay's own included.
    pub(crate) fn xattr_keys(&self, part: LowerPart) -> Res<Keys> {
        if !self.marked[part.layer] {
            return Ok(Keys::default());
        }
        self.keys_of(part.layer, &self.inode(part.layer, part.node.reference)?)
    }

    pub(super) fn keys_of(&self, layer: usize, inode: &Inode) -> Res<Keys> {
        // Files that have the same attributes share them.
        let Some(set) = inode.xattr_set() else { return Ok(Keys::default()) };
        let key = (layer, set);
        if let Some(keys) = self.xattr_keys.get(key) {
            return Ok(keys);
        }
        let keys = self.image(layer).xattr_keys(inode).map_err(|e| self.fail(layer, e))?;
        let bytes = keys.iter().map(|key| key.name.len() + size_of_val(key)).sum();
        let keys = Arc::new(keys);
        self.xattr_keys.put(key, Arc::clone(&keys), bytes);
        Ok(keys)
    }

    /// The value of an attribute; `None` if the file has none of this name.
    pub(crate) fn xattr(&self, part: LowerPart, name: &[u8]) -> Res<Option<Arc<Vec<u8>>>> {
        let keys = self.xattr_keys(part)?;
        match keys.iter().find(|key| key.name == name) {
            Some(key) => self.xattr_value(part.layer, key).map(Some),
            None => Ok(None),
        }
    }

    /// The value of one of the [`Lower::xattr_keys`].
    pub(crate) fn xattr_value(&self, layer: usize, key: &XattrKey) -> Res<Arc<Vec<u8>>> {
        let at = (layer, key.place());
        if let Some(value) = self.xattr_values.get(at) {
            return Ok(value);
        }
        let value = self.image(layer).xattr_value(key).map_err(|e| self.fail(layer, e))?;
        let (bytes, value) = (value.capacity(), Arc::new(value));
        self.xattr_values.put(at, Arc::clone(&value), bytes);
        Ok(value)
    }

    /// The value of a mark of the overlay.
    pub(super) fn mark(&self, part: LowerPart, mark: &[u8]) -> Res<Option<Arc<Vec<u8>>>> {
        let keys = self.xattr_keys(part)?;
        match keys.iter().find(|key| is_mark(&key.name, mark)) {
            Some(key) => self.xattr_value(part.layer, key).map(Some),
            None => Ok(None),
        }
    }
}
