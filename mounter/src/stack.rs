//! The images of a mount.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use mica_squashfs::chunks::ChunkTable;
use mica_squashfs::read::OpenFault;
use mica_squashfs::{Image, OpenError, OpenOptions, Source};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::readahead::ReadAhead;
use crate::verify::{Verified, Verify};

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
        let opened = open_source(image, Box::new(open_file(image)?))?;
        Ok(StackLayer { name: name.into(), image: Arc::new(opened) })
    }

    /// Opens an image whose bytes come from anywhere, such as one that is still being fetched.
    pub fn from_source(
        name: impl Into<String>,
        source: impl Source + 'static,
    ) -> Result<StackLayer, OpenError> {
        let image = Image::from_source(Box::new(source), &options())?;
        Ok(StackLayer { name: name.into(), image: Arc::new(image) })
    }

    /// The same of an image that is all here, if not in one file; compared with its chunk table as [`open_verified`](Self::open_verified)
    /// does, if there is one.
    pub fn from_local(
        name: impl Into<String>,
        source: impl Source + 'static,
        table: Option<ChunkTable>,
        verify: Verify,
    ) -> Result<StackLayer, OpenError> {
        let source = ReadAhead::new(source);
        match table.filter(|_| verify != Verify::Never) {
            Some(table) => {
                let always = verify == Verify::Always;
                StackLayer::from_source(name, Verified::new(source, table, always))
            }
            None => StackLayer::from_source(name, source),
        }
    }

    /// Opens an image file; the image's bytes are compared with its chunk table. A table that covers another number of bytes than the
    /// image has makes them all unreadable: compare [`ChunkTable::image_len`] first.
    pub fn open_verified(
        name: impl Into<String>,
        image: &Path,
        table: ChunkTable,
        verify: Verify,
    ) -> Result<StackLayer, OpenError> {
        if verify == Verify::Never {
            return StackLayer::open(name, image);
        }
        let source = Verified::new(open_file(image)?, table, verify == Verify::Always);
        let opened = open_source(image, Box::new(source))?;
        Ok(StackLayer { name: name.into(), image: Arc::new(opened) })
    }
}

/// What takes long ends when nobody waits for it.
fn options() -> OpenOptions {
    OpenOptions { interrupted: Some(crate::asker::gave_up), ..OpenOptions::default() }
}

fn named(image: &Path, fault: OpenFault) -> OpenError {
    OpenError { name: image.display().to_string(), fault }
}

fn open_file(image: &Path) -> Result<ReadAhead<File>, OpenError> {
    // What was a file when it was looked at may be a FIFO now, which would hold us: then reading fails instead.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(image, flags, Mode::empty()) {
        // A stack of more layers than the caller's soft limit.
        Err(Errno::MFILE) => {
            crate::descriptors::raise_descriptor_limit();
            rustix::fs::open(image, flags, Mode::empty())
        }
        opened => opened,
    };
    let file = file.map_err(|error| named(image, OpenFault::Io(error.into())))?;
    Ok(ReadAhead::new(File::from(file)))
}

fn open_source(image: &Path, source: Box<dyn Source>) -> Result<Image, OpenError> {
    let opened = Image::from_source(source, &options());
    opened.map_err(|error| named(image, error.fault))
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
