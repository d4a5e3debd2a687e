//! Opening the earlier image that blocks are taken from.
//!
//! It only saves time, so whatever is wrong with it means that it is not used; `tracing` says why.

use std::fs::File;
use std::path::Path;

use mica_squashfs::write::{BlockIndex, Previous};
use mica_squashfs::{Image, OpenOptions};

use crate::PackOptions;
use crate::pack::{PACKING, index_path};

/// The image at `path`, if it was packed as `options` say.
pub(crate) fn open(path: &Path, options: &PackOptions) -> Option<Previous> {
    let refused = |reason: &str| {
        tracing::info!(image = %path.display(), reason, "the previous image is not used");
    };
    let image = match Image::open(path, &OpenOptions::default()) {
        Ok(image) => image,
        Err(error) => {
            refused(&error.to_string());
            return None;
        }
    };
    let index = match std::fs::read(index_path(path)).map(|bytes| BlockIndex::parse(&bytes)) {
        Ok(Ok(index)) => index,
        // Without an index the header says how the image was packed, and decoding what is in it.
        _ => {
            let description = image.xar_header().and_then(|header| header.other(PACKING));
            if description != Some(options.description().as_str()) {
                refused("it was packed in another way");
                return None;
            }
            match BlockIndex::of_image(&image, &options.description()) {
                Ok(index) => index,
                Err(error) => {
                    refused(&error.to_string());
                    return None;
                }
            }
        }
    };
    let start = image.start();
    match File::open(path) {
        Ok(file) => Some(Previous::new(Box::new(file), start, &index)),
        Err(error) => {
            refused(&error.to_string());
            None
        }
    }
}
