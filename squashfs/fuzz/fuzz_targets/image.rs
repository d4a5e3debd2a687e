//! Everything a reader does on one image.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mica_squashfs::delta::delta;
use mica_squashfs::read::walk;
use mica_squashfs::rebuild::{describe, rebuild};
use mica_squashfs::verify::verify;
use mica_squashfs::{Image, InodeKind, OpenOptions};

fuzz_target!(|data: &[u8]| {
    let Ok(image) = Image::from_source(Box::new(data.to_vec()), &OpenOptions::default()) else {
        return;
    };
    let _ = image.compressor_options();
    let mut buffer = vec![0; 5000];
    let mut out = Vec::new();
    for inode in walk(&image).flatten().map(|entry| entry.inode) {
        let _ = image.xattrs(&inode);
        let _ = image.inode_of_number(inode.number);
        let _ = image.lookup(&inode, b"file-7");
        let _ = image.read_link(&inode);
        if let InodeKind::File { size, .. } = inode.kind {
            let _ = image.read_at(&inode, size / 2, &mut buffer);
            let Ok(blocks) = image.blocks(&inode) else { continue };
            let last = blocks.count().saturating_sub(1);
            for index in [0, last / 2, last] {
                let _ = blocks.read(index, &mut out);
            }
        }
    }
    verify(&image, std::num::NonZero::new(1));
    let _ = delta(&image, &image);
    // Compressing takes the time of a hundred images.
    if data.len() % 32 == 0 {
        come_back(&image, data);
    }
});

/// Any image that opens comes back from its description.
fn come_back(image: &Image, data: &[u8]) {
    let one = std::num::NonZero::new(1);
    let described = describe(image, None, one).expect("memory does not fail");
    for file in described.contents.files() {
        file.expect("memory does not fail");
    }
    let (mut raw, mut again) = (Vec::new(), Vec::new());
    described.contents.copy_to(&mut raw, one).expect("what was described is there");
    rebuild(&described.recipe, None, &mut raw.as_slice(), &mut again, one).expect("the recipe fits");
    assert_eq!(again, data);
}
