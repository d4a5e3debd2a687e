//! Images by the tools that people use read in ours as the tree they were made of.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use common::picture::{self, Picture, assert_same};
use common::second::compare_with_backhand;
use common::{mksquashfs, run, second, torture};
use mica_squashfs::{Block, Image, OpenOptions};

fn open(path: &Path) -> Image {
    Image::open(path, &OpenOptions::default()).unwrap()
}

#[test]
fn mksquashfs_with_every_option() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    let want = picture::of_directory(&tree);
    let options: &[&str] = &[
        "-comp zstd -Xcompression-level 3",
        "-comp gzip -Xcompression-level 1",
        "-comp lz4",
        "-comp lz4 -Xhc -b 1M",
        "-comp xz -b 64K",
        "-comp xz -Xbcj x86,arm -b 256K",
        "-comp lzma -b 256K",
        "-comp lzo",
        "-comp lzo -Xalgorithm lzo1x_1_15 -b 1M",
        "-comp zstd -Xcompression-level 1 -b 4K",
        "-comp zstd -Xcompression-level 1 -b 1M -always-use-fragments",
        "-comp zstd -Xcompression-level 1 -tailends",
        "-comp gzip -Xcompression-level 1 -no-fragments -b 16K",
        "-comp gzip -noI -noD -noF -noX",
        "-comp lz4 -noI -noX -no-exports -no-duplicates",
        "-comp gzip -noD -noF -noId -no-sparse",
    ];
    for options in options {
        let out = scratch.path().join("image");
        mksquashfs(&tree, &out, options);
        assert_same(&want, &picture::of_image(&open(&out)), options);
        fs::remove_file(&out).unwrap();
    }
}

/// What gensquashfs does not take over: the root's own attributes.
fn without_root(mut picture: Picture) -> Picture {
    picture.remove(&b""[..]);
    picture
}

#[test]
fn gensquashfs_with_every_compressor() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    // It makes separate files of hard links, and drops xattrs without a value.
    rustix::fs::lremovexattr(tree.join("xattrs/user"), "user.empty").unwrap();
    for name in ["links/fifo-again", "links/short-again", "links/two", "three"] {
        fs::remove_file(tree.join(name)).unwrap();
    }
    let want = without_root(picture::of_directory(&tree));
    for options in ["-c zstd", "-c gzip -b 4K", "-c xz -b 1M -e", "-c lz4 -T", "-c zstd -e -j 2"] {
        let out = scratch.path().join("image");
        let script = format!("gensquashfs -q -k -x -D \"$0\" {options} \"$1\"");
        run("sh", &[&"-c", &script, &tree, &out]);
        assert_same(&want, &without_root(picture::of_image(&open(&out))), options);
        fs::remove_file(&out).unwrap();
    }
}

#[test]
fn tar2sqfs_with_xattrs() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    // tar has no sockets, tar2sqfs no hard links of anything but regular files.
    fs::remove_file(tree.join("links/fifo-again")).unwrap();
    fs::remove_file(tree.join("links/short-again")).unwrap();
    fs::remove_file(tree.join("specials/socket")).unwrap();
    let want = picture::of_directory(&tree);
    for compressor in ["zstd", "gzip"] {
        let out = scratch.path().join("image");
        let script = format!(
            "tar -C \"$0\" --format=pax --xattrs --xattrs-include='*' --sparse -cf - . \
             | tar2sqfs -q -c {compressor} \"$1\""
        );
        run("sh", &[&"-c", &script, &tree, &out]);
        assert_same(&want, &picture::of_image(&open(&out)), compressor);
        fs::remove_file(&out).unwrap();
    }
}

#[test]
fn a_directory_of_100_000_entries_is_searched_by_its_index() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for i in 0..100_000 {
        File::create(tree.join(format!("some-entry-{i}"))).unwrap();
    }
    for options in ["-comp gzip -noI -noD", "-comp zstd"] {
        let out = scratch.path().join("image");
        mksquashfs(&tree, &out, options);
        let image = open(&out);
        let root = image.inode(image.root()).unwrap();
        let mut count = 0;
        for (i, entry) in image.read_dir(&root).unwrap().enumerate() {
            let entry = entry.unwrap();
            count += 1;
            if i % 97 == 0 {
                let found = image.lookup(&root, &entry.name).unwrap();
                assert_eq!(found, Some(entry.inode));
                assert_eq!(image.inode_of_number(entry.number).unwrap(), Some(entry.inode));
                assert_eq!(image.inode(entry.inode).unwrap().number, entry.number);
            }
        }
        assert_eq!(count, 100_000);
        for missing in ["", "a", "some-entry-", "some-entry-100000", "some-entry-5x", "zzz"] {
            assert_eq!(image.lookup(&root, missing.as_bytes()).unwrap(), None, "{missing}");
        }
    }
}

#[test]
fn files_beyond_4_gib_cost_no_memory_and_read_anywhere() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let path = tree.join("sparse");
    // 1 GiB in 4 KiB blocks is what has its block list in memory; the second file is above it.
    for (options, size) in [("-comp lz4 -b 1M", 6_u64 << 30), ("-comp lz4 -b 4K", 3 << 29)] {
        let marks = [0, size / 3 * 2 - 3, size - 5000];
        let mut file = File::create(&path).unwrap();
        for at in marks {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&torture::noise(at, 5000)).unwrap();
        }
        let out = scratch.path().join("image");
        mksquashfs(&tree, &out, options);
        let image = open(&out);
        let root = image.inode(image.root()).unwrap();
        let inode = image.inode(image.lookup(&root, b"sparse").unwrap().unwrap()).unwrap();
        assert_eq!(inode.size(), size);
        for at in marks.iter().rev() {
            let mut got = vec![1; 5100];
            let n = image.read_at(&inode, *at, &mut got).unwrap();
            assert_eq!(got[..5000], torture::noise(*at, 5000), "{options} at {at}");
            assert!(got[5000..n].iter().all(|&b| b == 0));
        }
        let blocks = image.blocks(&inode).unwrap();
        assert!(matches!(blocks.block(blocks.count() / 3).unwrap(), Block::Hole { .. }));
        assert!(blocks.block(blocks.count()).is_err());
    }
}

#[test]
fn a_xar_by_make_xar() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/images/make_xar.xar");
    let image = open(Path::new(path));
    let header = image.xar_header().unwrap();
    assert_eq!((header.offset, header.uuid.as_deref()), (4096, Some("129e9448")));
    assert_eq!(header.version.as_deref(), Some("1795337559"));
    assert_eq!(header.xarexec_target.as_deref(), Some("run.sh"));
    assert_eq!(header.dependencies.as_deref(), Some(""));
    let numbers = image.resolve(b"sub/numbers").unwrap().unwrap();
    let mut text = vec![0; numbers.size() as usize];
    image.read_at(&numbers, 0, &mut text).unwrap();
    let want: String = (1..=300).map(|n| format!("{n}\n")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), want);
    assert_eq!(image.resolve(b"run.sh").unwrap().unwrap().mode & 0o111, 0o111);
    assert!(mica_squashfs::verify::verify(&image, None).damage.is_empty());
}

#[test]
fn backhand_reads_the_same_and_writes_what_we_read() {
    // backhand recurses by directory: 500 deep does not fit a test's stack.
    let body = std::thread::Builder::new().stack_size(1 << 28).spawn(compare_both_ways).unwrap();
    body.join().unwrap();
}

fn compare_both_ways() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    torture::make(&tree);
    // backhand has no symlinks of 256 bytes; its writer has no xattrs and no hard links either.
    fs::remove_file(tree.join("links/long")).unwrap();
    let out = scratch.path().join("image");
    mksquashfs(&tree, &out, "-comp zstd -Xcompression-level 1");
    compare_with_backhand(&out);
    // backhand's own image of the same tree.
    let again = scratch.path().join("by-backhand");
    let reader = second::open(&out);
    let mut writer = backhand::FilesystemWriter::from_fs_reader(&reader).unwrap();
    writer.write(File::create(&again).unwrap()).unwrap_or_else(|e| panic!("{e:?}"));
    compare_with_backhand(&again);
    let ours = picture::of_image(&open(&again));
    let source = picture::of_directory(&tree);
    for (path, node) in &ours {
        let want = &source[path];
        assert_eq!((node.size, &node.content), (want.size, &want.content));
    }
    assert_eq!(ours.len(), source.len());
}
