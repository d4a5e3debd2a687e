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

/// What one inode's attributes may take in memory; Linux lists at most 64 KiB of names, with 64 KiB of value each.
const TOTAL_MAX: usize = 16 << 20;
/// What an attribute takes besides its name and value, about.
const OVERHEAD: usize = 96;

impl Core {
    pub(crate) fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ReadError> {
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
            let xattr = self.xattr(&table, &mut cursor)?;
            total += xattr.name.len() + xattr.value.len() + OVERHEAD;
            if total > TOTAL_MAX {
                return Err(ReadError::Range { what: "size of xattrs", value: total as u64 });
            }
            found.push(xattr);
        }
        Ok(found)
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

    /// Reads the pair at the cursor.
    fn xattr(&self, table: &XattrTable, cursor: &mut Cursor<'_>) -> Result<Xattr, ReadError> {
        let bytes = cursor.array::<{ KeyHeader::SIZE }>()?;
        let key = cursor.check(KeyHeader::decode(&bytes))?;
        let mut name = key.prefix.as_bytes().to_vec();
        cursor.append(key.name_len.into(), &mut name)?;
        if key.name_len == 0 || name.contains(&0) {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(ReadError::XattrName { name });
        }
        let len = u32::from_le_bytes(cursor.array()?);
        let value = if key.out_of_line {
            if len != 8 {
                let what = "size of an xattr value reference";
                return Err(ReadError::Range { what, value: len.into() });
            }
            let at = MetaRef(u64::from_le_bytes(cursor.array()?));
            let mut cursor = self.xattr_cursor(table, at)?;
            let len = u32::from_le_bytes(cursor.array()?);
            xattr_value(&mut cursor, len)?
        } else {
            xattr_value(cursor, len)?
        };
        Ok(Xattr { name, value })
    }
}

fn xattr_value(cursor: &mut Cursor<'_>, len: u32) -> Result<Vec<u8>, ReadError> {
    if len > VALUE_MAX {
        return Err(ReadError::Range { what: "size of an xattr value", value: len.into() });
    }
    let mut value = Vec::new();
    cursor.append(len as usize, &mut value)?;
    Ok(value)
}
