//! Extended attributes.

use super::core::Core;
use super::cursor::{Cursor, Place};
use super::error::ReadError;
use super::inode::Inode;
use crate::format::xattr::{KeyHeader, VALUE_MAX, XattrId, XattrTable};
use crate::format::{METADATA_SIZE, MetaRef};

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr {
    /// Full name, its prefix included: `user.comment`.
    pub name: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// An attribute's name, and where its value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XattrKey {
    /// Full name, its prefix included.
    pub name: Vec<u8>,
    /// Position of the value in the image: equal ones are the same value.
    place: Place,
}

/// What one inode's attributes may take in memory.
const TOTAL_MAX: usize = 16 << 20;
/// What an attribute takes besides its name and value, about.
const OVERHEAD: usize = 96;
/// What the names of one inode take, each with a zero byte: Linux lists no more (`XATTR_LIST_MAX`).
const LIST_MAX: usize = 64 << 10;

impl XattrKey {
    /// Where the value is: that of two keys with equal places is the same.
    pub fn place(&self) -> u64 {
        // Cannot lose bits: an offset has 13, and no image is as large as the rest.
        self.place.block << 16 | u64::from(self.place.offset)
    }
}

impl Core {
    pub(crate) fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ReadError> {
        let (mut found, mut total) = (Vec::new(), 0);
        for key in self.xattr_keys(inode)? {
            let value = self.xattr_value(&key)?;
            total += key.name.len() + value.len() + OVERHEAD;
            if total > TOTAL_MAX {
                return Err(ReadError::Range { what: "size of xattrs", value: total as u64 });
            }
            found.push(Xattr { name: key.name, value });
        }
        Ok(found)
    }

    pub(crate) fn xattr_keys(&self, inode: &Inode) -> Result<Vec<XattrKey>, ReadError> {
        let Some(index) = inode.xattr else { return Ok(Vec::new()) };
        let out_of_range = ReadError::Range { what: "xattr index", value: index.into() };
        let table = self.xattrs.ok_or(out_of_range)?;
        let id = self.xattr_id(&table, index)?;
        let mut found = Vec::new();
        if id.count == 0 {
            return Ok(found);
        }
        let mut total = 0;
        let mut cursor = self.xattr_cursor(&table, id.first)?;
        for _ in 0..id.count {
            let key = self.xattr_key(&table, &mut cursor)?;
            total += key.name.len() + 1;
            if total > LIST_MAX {
                return Err(ReadError::Range { what: "size of xattr names", value: total as u64 });
            }
            found.push(key);
        }
        Ok(found)
    }

    /// The value of an attribute.
    pub(crate) fn xattr_value(&self, key: &XattrKey) -> Result<Vec<u8>, ReadError> {
        let mut cursor = Cursor::new(self, key.place, self.superblock.bytes_used)?;
        let len = xattr_len(&mut cursor)?;
        let mut value = Vec::new();
        cursor.append(len as usize, &mut value)?;
        Ok(value)
    }

    fn xattr_id(&self, table: &XattrTable, index: u32) -> Result<XattrId, ReadError> {
        let positions = self.superblock.xattr_table + XattrTable::SIZE as u64;
        let bytes =
            self.table_entry::<{ XattrId::SIZE }>(positions, index, table.ids, "xattr index")?;
        XattrId::decode(&bytes).map_err(|source| ReadError::Format { position: positions, source })
    }

    fn xattr_cursor(&self, table: &XattrTable, at: MetaRef) -> Result<Cursor<'_>, ReadError> {
        let place = Place::in_table(table.values, at);
        if place.offset as usize >= METADATA_SIZE {
            return Err(ReadError::Range { what: "xattr reference", value: at.0 });
        }
        Cursor::new(self, place, self.superblock.bytes_used)
    }

    /// Reads the key at the cursor, and goes on behind its value.
    fn xattr_key(
        &self,
        table: &XattrTable,
        cursor: &mut Cursor<'_>,
    ) -> Result<XattrKey, ReadError> {
        let bytes = cursor.array::<{ KeyHeader::SIZE }>()?;
        let key = cursor.check(KeyHeader::decode(&bytes))?;
        let mut name = key.prefix.as_bytes().to_vec();
        cursor.append(key.name_len.into(), &mut name)?;
        if key.name_len == 0 || name.contains(&0) {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(ReadError::XattrName { name });
        }
        let mut place = cursor.place();
        let len = xattr_len(cursor)?;
        if key.out_of_line {
            if len != 8 {
                let what = "size of an xattr value reference";
                return Err(ReadError::Range { what, value: len.into() });
            }
            let at = MetaRef(u64::from_le_bytes(cursor.array()?));
            place = self.xattr_cursor(table, at)?.place();
        } else {
            cursor.skip(len.into())?;
        }
        Ok(XattrKey { name, place })
    }
}

fn xattr_len(cursor: &mut Cursor<'_>) -> Result<u32, ReadError> {
    let len = u32::from_le_bytes(cursor.array()?);
    match len > VALUE_MAX {
        true => Err(ReadError::Range { what: "size of an xattr value", value: len.into() }),
        false => Ok(len),
    }
}
