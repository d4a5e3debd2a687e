//! The tables with two levels: ids, fragments, export, and the xattr ids.

use super::core::Core;
use super::cursor::{Cursor, Place};
use super::error::ReadError;
use super::inode::InodeRef;
use crate::format::table::{self, EXPORT_SIZE, ID_SIZE};
use crate::format::{FragmentEntry, METADATA_SIZE, NO_TABLE};

impl Core {
    /// A user or group id by its index.
    pub(crate) fn id(&self, index: u16) -> Result<u32, ReadError> {
        let ids = match self.ids.get() {
            Some(ids) => ids,
            None => {
                // Two threads may both read it; one result stays.
                let ids = self.read_ids()?;
                self.ids.get_or_init(|| ids)
            }
        };
        ids.get(usize::from(index))
            .copied()
            .ok_or(ReadError::Range { what: "id index", value: index.into() })
    }

    fn read_ids(&self) -> Result<Vec<u32>, ReadError> {
        let mut left = usize::from(self.superblock.ids) * ID_SIZE;
        let mut bytes = Vec::new();
        let mut index = 0;
        while left > 0 {
            let mut cursor = self.table_block(self.superblock.id_table, index)?;
            let n = left.min(METADATA_SIZE);
            cursor.append(n, &mut bytes)?;
            left -= n;
            index += 1;
        }
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    /// A cursor at the start of a table's metadata block `index`, by the positions at `positions`.
    fn table_block(&self, positions: u64, index: u64) -> Result<Cursor<'_>, ReadError> {
        let mut bytes = [0; 8];
        let at = positions + index * 8;
        self.read(at, &mut bytes)?;
        let place = Place { block: u64::from_le_bytes(bytes), offset: 0 };
        Cursor::new(self, place, self.superblock.bytes_used)
    }

    /// Entry `index` of a table of `count` entries.
    pub(crate) fn table_entry<const N: usize>(
        &self,
        positions: u64,
        index: u32,
        count: u32,
        what: &'static str,
    ) -> Result<[u8; N], ReadError> {
        if index >= count || positions == NO_TABLE {
            return Err(ReadError::Range { what, value: index.into() });
        }
        let byte = u64::from(index) * N as u64;
        let mut cursor = self.table_block(positions, byte / METADATA_SIZE as u64)?;
        cursor.skip(byte % METADATA_SIZE as u64)?;
        cursor.array()
    }

    /// Where a fragment block is.
    pub(crate) fn fragment(&self, index: u32) -> Result<FragmentEntry, ReadError> {
        let sb = &self.superblock;
        let bytes = self.table_entry::<{ FragmentEntry::SIZE }>(
            sb.fragment_table,
            index,
            sb.fragments,
            "fragment index",
        )?;
        FragmentEntry::decode(&bytes)
            .map_err(|source| ReadError::Format { position: sb.fragment_table, source })
    }

    /// The inode of a number, by the export table.
    pub(crate) fn export(&self, number: u32) -> Result<Option<InodeRef>, ReadError> {
        let sb = &self.superblock;
        if sb.export_table == NO_TABLE {
            return Ok(None);
        }
        let index = number
            .checked_sub(1)
            .ok_or(ReadError::Range { what: "inode number", value: number.into() })?;
        let bytes =
            self.table_entry::<EXPORT_SIZE>(sb.export_table, index, sb.inodes, "inode number")?;
        Ok(Some(InodeRef(u64::from_le_bytes(bytes))))
    }

    /// Checks that a table's positions lie inside the image.
    pub(crate) fn check_positions(
        &self,
        positions: u64,
        entries: u64,
        size: usize,
        what: &'static str,
    ) -> Result<(), ReadError> {
        let end = positions.checked_add(table::blocks(entries, size) * 8);
        if end.is_none_or(|end| end > self.superblock.bytes_used) {
            return Err(ReadError::Range { what, value: entries });
        }
        Ok(())
    }
}
