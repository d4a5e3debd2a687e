use super::inode::{device_number, device_parts};
use super::xattr::{KeyHeader, XattrTable};
use super::*;

fn superblock() -> Superblock {
    Superblock {
        inodes: 7,
        mkfs_time: 1,
        block_size: 131_072,
        fragments: 1,
        compressor: 6,
        flags: Flags(Flags::EXPORT | Flags::DUPLICATES),
        ids: 2,
        root: MetaRef::new(0, 96),
        bytes_used: 5000,
        id_table: 4000,
        xattr_table: NO_TABLE,
        inode_table: 1000,
        directory_table: 2000,
        fragment_table: 3000,
        export_table: 3500,
    }
}

#[test]
fn superblock_comes_back_and_is_checked() {
    let good = superblock();
    assert_eq!(Superblock::decode(&good.encode()), Ok(good.clone()));
    assert!(Superblock::decode(&good.encode()[..95]).is_err());
    let bad = [
        Superblock { block_size: 131_073, ..good.clone() },
        Superblock { block_size: 2 << 20, ..good.clone() },
        Superblock { ids: 0, ..good.clone() },
        Superblock { bytes_used: u64::MAX, ..good.clone() },
        Superblock { inode_table: 2000, ..good.clone() },
        Superblock { directory_table: 6000, ..good.clone() },
        Superblock { id_table: NO_TABLE, ..good.clone() },
        Superblock { fragment_table: NO_TABLE, ..good.clone() },
        Superblock { export_table: 5000, ..good.clone() },
        Superblock { root: MetaRef::new(1000, 0), ..good.clone() },
    ];
    for bad in bad {
        assert!(Superblock::decode(&bad.encode()).is_err(), "{bad:?}");
    }
    let mut version = good.encode();
    version[28] = 3;
    assert_eq!(Superblock::decode(&version), Err(FormatError::Version { major: 3, minor: 0 }));
    // A big-endian machine of that time.
    version[..4].reverse();
    let error = Superblock::decode(&version).unwrap_err();
    let text = "a big-endian squashfs image of version 3 or older, instead of 4.0";
    assert_eq!(error.to_string(), text);
}

#[test]
fn inodes_come_back_in_the_smallest_form() {
    let file =
        |start, size, nlink| InodeBody::File { start, size, sparse: 0, nlink, fragment: None };
    let directory = |size, index_count| InodeBody::Directory {
        block: 9,
        offset: 17,
        size,
        nlink: 2,
        parent: 3,
        index_count,
    };
    let cases = [
        (file(96, 10, 1), None, InodeType::File),
        (file(96, 10, 2), None, InodeType::ExtFile),
        (file(1 << 32, 10, 1), None, InodeType::ExtFile),
        (file(96, 1 << 32, 1), None, InodeType::ExtFile),
        (file(96, 10, 1), Some(5), InodeType::ExtFile),
        (directory(65_535, 0), None, InodeType::Directory),
        (directory(65_536, 0), None, InodeType::ExtDirectory),
        (directory(3, 1), None, InodeType::ExtDirectory),
        (InodeBody::Symlink { nlink: 1, target_len: 4 }, None, InodeType::Symlink),
        (InodeBody::BlockDevice { nlink: 1, rdev: 8 }, None, InodeType::BlockDevice),
        (InodeBody::CharDevice { nlink: 1, rdev: 8 }, Some(1), InodeType::ExtCharDevice),
        (InodeBody::Fifo { nlink: 1 }, Some(1), InodeType::ExtFifo),
        (InodeBody::Socket { nlink: 1 }, None, InodeType::Socket),
    ];
    for (body, xattr, kind) in cases {
        let record = InodeRecord { mode: 0o4755, uid: 1, gid: 2, mtime: 3, number: 4, xattr, body };
        assert_eq!(record.kind(), kind);
        let mut bytes = Vec::new();
        record.encode(b"tail", &mut bytes);
        assert_eq!(bytes.len(), kind.fixed_size() + 4);
        assert_eq!(InodeRecord::decode(&bytes), Ok((kind, record)));
    }
    // The xattr index of a symlink stands behind its target.
    let body = InodeBody::Symlink { nlink: 1, target_len: 4 };
    let record =
        InodeRecord { mode: 0o777, uid: 0, gid: 0, mtime: 0, number: 1, xattr: Some(9), body };
    let mut bytes = Vec::new();
    record.encode(b"tail", &mut bytes);
    assert_eq!(bytes[24..], [b't', b'a', b'i', b'l', 9, 0, 0, 0]);
}

#[test]
fn small_structures_come_back() {
    let mut out = Vec::new();
    let header = DirHeader { count: 256, start: 77, number: 5 };
    header.encode(&mut out);
    assert_eq!(DirHeader::decode(&out), Ok(header));
    out.clear();
    let entry =
        DirEntryHeader { offset: 5, number_delta: -9, kind: InodeType::File, name_len: 256 };
    entry.encode(&mut out);
    assert_eq!(DirEntryHeader::decode(&out), Ok(entry));
    out.clear();
    let index = DirIndex { position: 8000, start: 4000, name_len: 1 };
    index.encode(&mut out);
    assert_eq!(DirIndex::decode(&out), Ok(index));
    out.clear();
    let fragment = FragmentEntry { start: 96, size: BlockSize::new(1000, false) };
    fragment.encode(&mut out);
    assert_eq!(FragmentEntry::decode(&out), Ok(fragment));
    out.clear();
    let key = KeyHeader { prefix: XattrPrefix::Security, out_of_line: true, name_len: 10 };
    key.encode(&mut out);
    assert_eq!(KeyHeader::decode(&out), Ok(key));
    out.clear();
    let id = XattrId { first: MetaRef::new(3, 4), count: 2, size: 90 };
    id.encode(&mut out);
    assert_eq!(XattrId::decode(&out), Ok(id));
    out.clear();
    let table = XattrTable { values: 1234, ids: 5 };
    table.encode(&mut out);
    assert_eq!(XattrTable::decode(&out), Ok(table));
    let header = MetaHeader { stored: 8192, compressed: false };
    assert_eq!(MetaHeader::decode(header.encode()), Ok(header));
    assert!(MetaHeader::decode([0, 0]).is_err());
    assert_eq!(XattrPrefix::split(b"user.a"), Some((XattrPrefix::User, &b"a"[..])));
    assert_eq!(XattrPrefix::split(b"system.posix_acl_access"), None);
}

#[test]
fn device_numbers_come_back() {
    for (major, minor) in [(0, 0), (8, 1), (0xfff, 0xf_ffff), (1, 0x100)] {
        let packed = device_number(major, minor).unwrap();
        assert_eq!(device_parts(packed), (major, minor));
    }
    assert_eq!(device_number(0x1000, 0), None);
    assert_eq!(device_number(0, 1 << 20), None);
}
